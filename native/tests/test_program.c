/*
 * Programs: products and other steps in one call, steps that fail and are run again, functions of the caller, attending,
 * rows that threads share, and what has to be refused. On the runtime of fake_npu.h. Compile:
 * gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_program.c native/program/[a-z]*.c
 * native/executor/[a-z]*.c native/layers/[a-z]*.c native/kernels/[a-z]*.c -lm -lpthread
 */
#include <dirent.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>

#include "fake_npu.h"
#include "npumatmul_program.h"

enum { M = 12, K = 20, N = 16, STEPS = 4 };

static example product;
static float sums[M][N], doubled[M][N], added[M][N];
static int called, answer, asked, asked_answer;

static int function(void) {
  called++;
  return answer;
}

static int attend(void) {
  asked++;
  return asked_answer;
}

/* sums = a x b; doubled = sums * 2; added = doubled + sums; a function. */
static void make(npumm_op *ops, npumm_call *call) {
  memset(ops, 0, STEPS * sizeof *ops);
  memset(call, 0, sizeof *call);
  const npumm_rows_shape shape = {1, M, N};
  call->a = product.a;
  call->a_row_stride = K_MOST;
  call->a_col_stride = 1;
  call->out = sums;
  call->out_row_stride = sizeof sums[0];
  call->out_type = NPUMM_FLOAT32;
  ops[0].kind = NPUMM_OP_PRODUCT;
  ops[0].placed = &product.placed;
  ops[0].call = call;
  ops[1] = (npumm_op){.kind = NPUMM_OP_SCALE, .shape = shape, .scale = 2.0f};
  ops[1].x = (npumm_rows_from){&sums[0][0], 0, sizeof sums[0]};
  ops[1].out = (npumm_rows_to){&doubled[0][0], 0, sizeof doubled[0]};
  ops[2] = (npumm_op){.kind = NPUMM_OP_ADD, .shape = shape, .scale = 1.0f};
  ops[2].x = (npumm_rows_from){&doubled[0][0], 0, sizeof doubled[0]};
  ops[2].y = ops[1].x;
  ops[2].out = (npumm_rows_to){&added[0][0], 0, sizeof added[0]};
  ops[3].kind = NPUMM_OP_CALL;
  ops[3].callback = function;
}

static int is_right(void) {
  for (int m = 0; m < M; m++) {
    for (int n = 0; n < N; n++) {
      if ((double)added[m][n] != 3 * expected(&product, m, n)) return 0;
    }
  }
  return 1;
}

static void steps_follow_each_other(npumm_executor *executor) {
  npumm_op ops[STEPS];
  npumm_call call;
  npumm_report report = {0};
  make(ops, &call);
  npumm_run run = {.stop = STEPS, .threads = 1};
  called = answer = 0;
  HOLDS(npumm_program_run(executor, ops, &run, &report) == 0 && is_right() && called == 1 && run.first == STEPS);
  memset(added, 0, sizeof added);
  run = (npumm_run){.first = 1, .stop = 3, .threads = 2};
  HOLDS(npumm_program_run(executor, ops, &run, &report) == 0 && is_right() && called == 1);
}

/* Whatever call of the runtime fails, the product is the step that failed, and the rest can be run. */
static void failures_are_run_again(npumm_executor *executor) {
  npumm_op ops[STEPS];
  npumm_call call;
  make(ops, &call);
  for (int at = 0; at < 3; at++) {
    npumm_report report = {0};
    npumm_run run = {.stop = STEPS, .threads = 1};
    called = 0;
    atomic_store(&calls, 0);
    atomic_store(&fail_at, at);
    HOLDS(npumm_program_run(executor, ops, &run, &report) == RKNN_ERR_TIMEOUT);
    HOLDS(run.first == 0 && called == 0 && report.code == RKNN_ERR_TIMEOUT);
    atomic_store(&fail_at, -1);
    for (int i = 0; i < CORES; i++) product.handles[i].broken = 0;
    HOLDS(npumm_program_run(executor, ops, &run, &report) == 0 && is_right() && called == 1);
  }
}

static void callers_may_end_it(npumm_executor *executor) {
  npumm_op ops[STEPS];
  npumm_call call;
  npumm_report report = {0};
  make(ops, &call);
  npumm_run run = {.stop = STEPS, .threads = 1};
  answer = NPUMM_INTERRUPTED;
  HOLDS(npumm_program_run(executor, ops, &run, &report) == NPUMM_INTERRUPTED && run.first == 3);
  answer = 0;
  HOLDS(npumm_program_run(executor, ops, &run, &report) == 0);
  asked = asked_answer = 0;
  run = (npumm_run){.stop = STEPS, .threads = 1, .attend = attend};
  HOLDS(npumm_program_run(executor, ops, &run, &report) == 0 && is_right() && ops[0].proven <= 1);
  ops[0].proven = NPUMM_PROVEN; /* from here on in the calling thread */
  run.first = 0;
  HOLDS(npumm_program_run(executor, ops, &run, &report) == 0 && ops[0].proven == NPUMM_PROVEN);
}

/* Long enough for threads: every row is computed once, whichever thread does. */
static void threads_share_rows(npumm_executor *executor) {
  enum { ROWS = 700, WIDTH = 200 };
  float *x = malloc(sizeof(float) * ROWS * WIDTH), *out = calloc(ROWS * WIDTH, sizeof *out);
  if (!x || !out) abort();
  for (int i = 0; i < ROWS * WIDTH; i++) x[i] = (float)i;
  npumm_op op = {.kind = NPUMM_OP_SCALE, .shape = {7, 100, WIDTH}, .scale = 0.5f};
  op.x = (npumm_rows_from){x, 100 * WIDTH * 4, WIDTH * 4};
  op.out = (npumm_rows_to){out, 100 * WIDTH * 4, WIDTH * 4};
  for (int32_t threads = 1; threads < 12; threads++) {
    npumm_report report = {0};
    npumm_run run = {.stop = 1, .threads = threads};
    memset(out, 0, sizeof(float) * ROWS * WIDTH);
    HOLDS(npumm_program_run(executor, &op, &run, &report) == 0);
    int right = 1;
    for (int i = 0; i < ROWS * WIDTH; i++) right &= out[i] == (float)i * 0.5f;
    HOLDS(right);
  }
  free(x);
  free(out);
}

static int32_t tasks(void) {
  DIR *all = opendir("/proc/self/task");
  if (!all) abort();
  int32_t count = 0;
  for (struct dirent *entry; (entry = readdir(all));) count += entry->d_name[0] != '.';
  closedir(all);
  return count;
}

/* A token attends to a cache: by the executor's threads, which are all there are, and with the same bits. */
static void threads_share_heads(npumm_executor *executor) {
  enum { HEADS = 9, SHARED = 3, TOKENS = 600, DIM = 64 };
  const int64_t count = (int64_t)SHARED * TOKENS * DIM;
  float *k = malloc(sizeof(float) * count), *v = malloc(sizeof(float) * count),
        *q = malloc(sizeof(float) * HEADS * DIM);
  float wanted[HEADS * DIM], out[HEADS * DIM];
  if (!k || !v || !q) abort();
  for (int64_t i = 0; i < count; i++) k[i] = sinf((float)i), v[i] = cosf((float)(3 * i));
  for (int64_t i = 0; i < HEADS * DIM; i++) q[i] = sinf((float)(7 * i));
  npumm_kv_layer layer = {
      .type = NPUMM_KV_FLOAT32, .heads = SHARED, .capacity = TOKENS, .key_dim = DIM, .value_dim = DIM};
  layer.keys = (npumm_kv_rows){.data = k, .head_stride = TOKENS * DIM * 4, .row_stride = DIM * 4};
  layer.values = (npumm_kv_rows){.data = v, .head_stride = TOKENS * DIM * 4, .row_stride = DIM * 4};
  const npumm_attention how = {.heads = HEADS, .scale = 0.125f, .causal = 1};
  npumm_sequence sequence = {.layers = &layer, .layer_count = 1, .offset = TOKENS - 1, .position = TOKENS - 1};
  npumm_op op = {.kind = NPUMM_OP_ATTEND, .shape = {HEADS, 1, DIM}, .attention = &how};
  op.x = (npumm_rows_from){q, DIM * 4, DIM * 4};
  op.out = (npumm_rows_to){wanted, DIM * 4, DIM * 4};
  const int32_t there = tasks();
  for (int32_t threads = 1; threads < 5; threads++) {
    npumm_report report = {0};
    npumm_run run = {.sequences = &sequence, .sequence_count = 1, .stop = 1, .threads = threads};
    HOLDS(npumm_program_run(executor, &op, &run, &report) == 0);
    HOLDS(threads == 1 || memcmp(out, wanted, sizeof out) == 0);
    op.out.data = out;
  }
  HOLDS(tasks() == there);
  free(k);
  free(v);
  free(q);
}

/* A product, then its double, twice: left out where a value is a nan, and counted as another value says. */
static void steps_are_left_out(npumm_executor *executor) {
  npumm_op ops[STEPS];
  npumm_call call;
  npumm_report report = {0};
  make(ops, &call);
  const npumm_op skip = {.kind = NPUMM_OP_SKIP, .shape = {.inner = 1}};
  float chosen[2], factor = 3;
  npumm_op six[] = {ops[0], ops[1], skip, ops[2], skip, ops[3]};
  six[2].x.data = &chosen[0], six[4].x.data = &chosen[1];
  six[3].weight = &factor;
  for (int which = 0; which < 4; which++) {
    chosen[0] = which & 1 ? NAN : 0.0f, chosen[1] = which & 2 ? NAN : -1.0f;
    memset(added, 0, sizeof added);
    called = answer = 0;
    npumm_run run = {.stop = 6, .threads = 1};
    HOLDS(npumm_program_run(executor, six, &run, &report) == 0 && run.first == 6 && called == !(which & 2));
    HOLDS((double)added[1][2] == (which & 1 ? 0 : 5 * expected(&product, 1, 2)));
  }
  npumm_op scale = ops[1];
  scale.weight = &factor;
  HOLDS(npumm_op_run(&scale, 0) == 0 && (double)doubled[3][1] == 3 * expected(&product, 3, 1));
  chosen[1] = NAN;
  for (int64_t inner = -1; inner <= 2; inner += 3) { /* as many steps as there are not */
    six[4].shape.inner = inner;
    npumm_run run = {.first = 4, .stop = 6, .threads = 1};
    HOLDS(npumm_program_run(executor, six, &run, &report) == NPUMM_BAD_ARGUMENT && run.first == 4);
  }
  six[4].shape.inner = 1, six[4].x.data = NULL;
  npumm_run run = {.first = 4, .stop = 6, .threads = 1};
  HOLDS(npumm_program_run(executor, six, &run, &report) == NPUMM_BAD_ARGUMENT);
  six[4].x.data = (const float *)(const void *)((const char *)chosen + 1);
  HOLDS(npumm_program_run(executor, six, &run, &report) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_op_run(&six[2], 0) == NPUMM_BAD_ARGUMENT);
}

static void mistakes_are_refused(npumm_executor *executor) {
  npumm_op ops[STEPS];
  npumm_call call;
  npumm_report report = {0};
  make(ops, &call);
  npumm_run run = {.stop = STEPS, .threads = 0};
  HOLDS(npumm_program_run(executor, ops, &run, &report) == NPUMM_BAD_ARGUMENT);
  run = (npumm_run){.first = -1, .stop = STEPS, .threads = 1};
  HOLDS(npumm_program_run(executor, ops, &run, &report) == NPUMM_BAD_ARGUMENT);
  run = (npumm_run){.stop = 1, .threads = 1};
  HOLDS(npumm_program_run(executor, NULL, &run, &report) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_program_run(executor, ops, NULL, &report) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_program_run(executor, ops, &run, NULL) == NPUMM_BAD_ARGUMENT);
  const npumm_op_kind needs[] = {NPUMM_OP_ROTATE, NPUMM_OP_APPEND, NPUMM_OP_ATTEND, NPUMM_OP_CALL, (npumm_op_kind)77};
  for (int i = 0; i < 5; i++) { /* no rotation, no sequences, no function, no such kind */
    npumm_op op = ops[1];
    op.kind = needs[i];
    run = (npumm_run){.stop = 1, .threads = 1};
    HOLDS(npumm_program_run(executor, &op, &run, &report) == NPUMM_BAD_ARGUMENT);
  }
  npumm_sequence sequence = {0};
  for (int64_t which = -1; which < 2; which++) {
    npumm_op op = ops[1];
    op.kind = NPUMM_OP_APPEND;
    op.sequence = which;
    run = (npumm_run){.sequences = &sequence, .sequence_count = 1, .stop = 1, .threads = 1};
    HOLDS(npumm_program_run(executor, &op, &run, &report) == NPUMM_BAD_ARGUMENT);
  }
  HOLDS(npumm_op_run(NULL, 0) == NPUMM_BAD_ARGUMENT);
}

int main(void) {
  build_sized(&product, 0, M, K, N, 0, 1, 0);
  npumm_executor *executor = npumm_executor_create();
  steps_follow_each_other(executor);
  failures_are_run_again(executor);
  callers_may_end_it(executor);
  threads_share_rows(executor);
  threads_share_heads(executor);
  steps_are_left_out(executor);
  mistakes_are_refused(executor);
  npumm_executor_destroy(executor);
  take_down(&product);
  return report("test_program");
}
