/*
 * Results that stay in C: read in parts, and as rows of the next matmul, by the threads of several cores at once. Compile:
 * gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_deferred.c native/executor/[a-z]*.c
 * native/kernels/[a-z]*.c -lm -lpthread
 */
#include "fake_npu.h"

enum { TILES_MOST = RANGES * TILES };

/* A deferred result of an example, with all that it points to. */
typedef struct {
  npumm_deferred deferred;
  npumm_epilogue epilogue;
  rknn_tensor_mem *memories[TILES_MOST];
  int32_t padded_m[RANGES], padded_n[TILES];
  double factor[M_MOST];
  int32_t zero[M_MOST], sum[M_MOST];
  int32_t sums[M_MOST * N_MOST]; /* or float32 */
  float bias[N_MOST];
} keeper;

static void prepare(keeper *k, const example *e, npumm_element type) {
  memset(k, 0, sizeof *k);
  const npumm_placed_matmul *p = &e->placed;
  const npumm_shape *shape = e->shape_pointers[0];
  for (int i = 0; i < p->m_count; i++) { k->padded_m[i] = p->shapes[i * p->slice_count * p->n_count]->padded_m; }
  for (int i = 0; i < p->n_count; i++) k->padded_n[i] = shape->padded_n;
  for (int i = 0; i < p->m_count * p->n_count; i++) {
    k->memories[i] = new_memory((size_t)k->padded_m[i / p->n_count] * (size_t)shape->padded_n * 4);
  }
  for (int n = 0; n < e->n; n++) k->bias[n] = (float)within(-64, 64);
  k->epilogue = (npumm_epilogue){.scale = 2, .bias = k->bias, .low = -INFINITY, .high = INFINITY};
  k->deferred = (npumm_deferred){.rows = e->m,
                                 .cols = e->n,
                                 .type = type,
                                 .epilogue = &k->epilogue,
                                 .m_count = p->m_count,
                                 .n_count = p->n_count,
                                 .m_ranges = e->m_ranges,
                                 .n_ranges = e->n_ranges,
                                 .padded_m = k->padded_m,
                                 .padded_n = k->padded_n,
                                 .memories = k->memories,
                                 .row_factor = k->factor,
                                 .row_zero = k->zero,
                                 .row_sum = k->sum,
                                 .sums = p->slice_count > 1 ? k->sums : NULL};
}

static void drop(keeper *k) {
  for (int i = 0; i < k->deferred.m_count * k->deferred.n_count; i++) free_memory(k->memories[i]);
}

static int defer(npumm_executor *executor, const example *e, keeper *k, npumm_report *report) {
  const npumm_call call = {.a = e->a, .a_row_stride = K_MOST, .a_col_stride = 1, .out_deferred = &k->deferred};
  return npumm_execute(executor, &e->placed, &call, report);
}

/* What the example's result is, rounded to float32 once. */
static double value(const example *e, const keeper *k, int m, int n) {
  return expected(e, m, n) * 2 + (double)k->bias[n];
}

static double of_bfloat16(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float number;
  memcpy(&number, &wide, 4);
  return (double)number;
}

/* Any rows, of any type, as often as one likes. */
static void rows_are_finished_when_they_are_read(npumm_executor *executor) {
  static example e;
  static keeper k;
  static float out[M_MOST][N_MOST];
  for (int i = 0; i < 150; i++) {
    const npumm_element type = i % 3 ? NPUMM_FLOAT32 : NPUMM_BFLOAT16;
    build(&e, i & 1, within(1, CORES), i / 2 % 2);
    if (i / 4 % 2) share_rows(&e);
    prepare(&k, &e, type);
    npumm_report report = {.step = NPUMM_STEP_NONE};
    CHECK(defer(i % 4 ? executor : NULL, &e, &k, &report) == 0, "code %d", (int)report.code);
    const uint64_t runs = (uint64_t)(e.placed.m_count * e.placed.slice_count * e.placed.n_count);
    CHECK(report.run_calls == runs && report.set_io_mem_calls == 3 * runs, "runs %d", (int)report.run_calls);
    for (int again = 0; again < 3; again++) {
      const int first = within(0, e.m), rows = within(0, e.m - first);
      memset(out, 0x7f, sizeof out);
      CHECK(npumm_deferred_store(&k.deferred, first, rows, out, sizeof out[0]) == 0, "store");
      int wrong = 0;
      for (int m = 0; m < M_MOST; m++) {
        for (int n = 0; n < e.n; n++) {
          const uint16_t *halves = (const uint16_t *)(const void *)out[m];
          if (m >= rows) {
            wrong += memcmp(&out[m][n], "\x7f\x7f\x7f\x7f", 4) != 0;
          } else if (type == NPUMM_FLOAT32) {
            wrong += (double)out[m][n] != value(&e, &k, first + m, n);
          } else {
            const double want = value(&e, &k, first + m, n);
            wrong += fabs(of_bfloat16(halves[n]) - want) > fabs(want) / 256;
          }
        }
      }
      CHECK(wrong == 0, "%d wrong of rows %d + %d of %d", wrong, first, rows, e.m);
    }
    float row[1];
    CHECK(npumm_deferred_store(&k.deferred, 0, e.m + 1, row, 4) == NPUMM_BAD_ARGUMENT, "too many rows");
    CHECK(npumm_deferred_store(&k.deferred, -1, 1, row, 4) == NPUMM_BAD_ARGUMENT, "rows before the first");
    CHECK(npumm_deferred_store(&k.deferred, 0, 1, NULL, 4) == NPUMM_BAD_ARGUMENT, "nowhere");
    CHECK(npumm_deferred_store(NULL, 0, 1, row, 4) == NPUMM_BAD_ARGUMENT, "nothing");
    drop(&k);
    take_down(&e);
  }
}

/* A chain of two: codes are worked out here from the values of the first, so that nothing of the executor is trusted. */
static void rows_go_straight_into_the_next_matmul(npumm_executor *executor) {
  static example one, two;
  static keeper k;
  static float out[M_MOST][N_MOST], again[M_MOST][N_MOST], between[M_MOST][N_MOST], divisor[K_MOST];
  for (int i = 0; i < 200; i++) {
    const int cores = within(1, CORES);
    build_sized(&one, 0, within(1, M_MOST), within(1, K_MOST), within(cores, K_MOST), i & 1, cores, i / 2 % 2);
    build_sized(&two, CORES, one.m, one.n, within(cores, N_MOST), i / 4 % 2, cores, i / 8 % 2);
    if (i / 16 % 2) share_rows(&one);
    if (i / 32 % 2) share_rows(&two);
    const npumm_element type = i % 3 ? NPUMM_FLOAT32 : NPUMM_BFLOAT16;
    prepare(&k, &one, type);
    npumm_report report = {.step = NPUMM_STEP_NONE};
    CHECK(defer(executor, &one, &k, &report) == 0, "code %d", (int)report.code);
    const float scale = ldexpf(1, within(8, 14));
    for (int c = 0; c < two.k; c++) divisor[c] = ldexpf(1, within(-2, 2));
    const npumm_hadamard transform = {.features = two.k, .power = 1, .divisor = divisor};
    const int divides = i % 5 == 0;
    two.placed.activation =
        (npumm_activation){NPUMM_F32_TO_I8, NPUMM_ROWS_STATIC, 127, 1, scale, 0, divides ? &transform : NULL};
    const npumm_call call = {
        .a_deferred = &k.deferred, .out = out, .out_row_stride = sizeof out[0], .out_type = NPUMM_FLOAT32};
    CHECK(npumm_execute(i % 7 ? executor : NULL, &two.placed, &call, &report) == 0, "code %d", (int)report.code);
    CHECK(atomic_load(&clashes) == 0, "two threads used one context");
    CHECK(npumm_deferred_store(&k.deferred, 0, one.m, between, sizeof between[0]) == 0, "store");
    int wrong = 0;
    for (int m = 0; m < two.m; m++) {
      for (int c = 0; c < two.k; c++) {
        const uint16_t *halves = (const uint16_t *)(const void *)between[m];
        const double finished = type == NPUMM_FLOAT32 ? value(&one, &k, m, c) : of_bfloat16(halves[c]);
        const double code = rint(finished / (divides ? (double)divisor[c] : 1.0) / (double)scale);
        two.a[m][c] = (int8_t)(code > 127 ? 127 : code < -128 ? -128 : code);
      }
      for (int n = 0; n < two.n; n++) wrong += (double)out[m][n] != expected(&two, m, n) * (double)scale;
    }
    CHECK(wrong == 0, "%d wrong: %d rows, %d slices, %d buffers", wrong, two.m, two.placed.slice_count,
          two.placed.a_count);

    /* scales that are measured: the same bits as of the rows that were read before */
    if (type == NPUMM_FLOAT32) {
      two.placed.activation = (npumm_activation){NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 0.9f, 0, 0, NULL};
      const npumm_call eager = {.a = between,
                                .a_row_stride = sizeof between[0],
                                .a_col_stride = sizeof between[0][0],
                                .out = again,
                                .out_row_stride = sizeof again[0],
                                .out_type = NPUMM_FLOAT32};
      memset(out, 0, sizeof out);
      memset(again, 0, sizeof again);
      CHECK(npumm_execute(executor, &two.placed, &call, &report) == 0, "code %d", (int)report.code);
      CHECK(npumm_execute(executor, &two.placed, &eager, &report) == 0, "code %d", (int)report.code);
      CHECK(memcmp(out, again, sizeof out) == 0, "measured rows differ");
      k.bias[within(0, one.n - 1)] = NAN;
      CHECK(npumm_execute(executor, &two.placed, &call, &report) == NPUMM_NOT_FINITE, "nan");
      int starts = 0; /* of cores that share rows any may be the first to find one */
      for (int r = 0; r < two.placed.m_count; r++) starts += report.row == two.m_ranges[r].start;
      CHECK(two.placed.range_cores ? starts == 1 : report.row == 0, "row %d", (int)report.row);
      CHECK(report.step == NPUMM_STEP_PACK_A, "step %d", (int)report.step);
    }
    drop(&k);
    take_down(&one);
    take_down(&two);
  }
}

/* The call that fails is reported; what was deferred is there all the same. */
static void failures_leave_what_is_deferred(npumm_executor *executor) {
  static example one, two;
  static keeper k;
  static float out[M_MOST][N_MOST], before[M_MOST][N_MOST];
  build_sized(&one, 0, 70, 40, 50, 1, 3, 0);
  build_sized(&two, CORES, 70, 50, 30, 1, 3, 0);
  prepare(&k, &one, NPUMM_FLOAT32);
  npumm_report report = {.step = NPUMM_STEP_NONE};
  for (int at = 0; at < 6; at++) {
    atomic_store(&calls, 0);
    atomic_store(&fail_at, at);
    const int code = defer(executor, &one, &k, &report);
    atomic_store(&fail_at, -1);
    CHECK(code == RKNN_ERR_TIMEOUT, "call %d: code %d", at, code);
  }
  CHECK(defer(executor, &one, &k, &report) == 0, "code %d", (int)report.code);
  two.placed.activation = (npumm_activation){NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 1, 0, 0, NULL};
  const npumm_call call = {
      .a_deferred = &k.deferred, .out = out, .out_row_stride = sizeof out[0], .out_type = NPUMM_FLOAT32};
  CHECK(npumm_execute(executor, &two.placed, &call, &report) == 0, "code %d", (int)report.code);
  memcpy(before, out, sizeof out);
  for (int at = 0; at < 10; at++) {
    atomic_store(&calls, 0);
    atomic_store(&fail_at, at);
    const int code = npumm_execute(executor, &two.placed, &call, &report);
    atomic_store(&fail_at, -1);
    CHECK(code == RKNN_ERR_TIMEOUT, "call %d: code %d", at, code);
    memset(out, 0, sizeof out);
    CHECK(npumm_execute(executor, &two.placed, &call, &report) == 0, "code %d", (int)report.code);
    int wrong = 0;
    for (int m = 0; m < two.m; m++) wrong += memcmp(out[m], before[m], (size_t)two.n * 4) != 0;
    CHECK(wrong == 0, "%d rows differ after a failure", wrong);
  }
  drop(&k);
  take_down(&one);
  take_down(&two);
}

static void what_does_not_fit_is_refused(npumm_executor *executor) {
  static example one, two;
  static keeper k;
  static float out[M_MOST][N_MOST];
  build_sized(&one, 0, 9, 20, 30, 0, 2, 0);
  build_sized(&two, CORES, 9, 30, 20, 0, 2, 0);
  prepare(&k, &one, NPUMM_FLOAT32);
  const npumm_deferred good = k.deferred;
  const npumm_matrix matrix = {out, sizeof out[0], NPUMM_FLOAT32};
  const npumm_epilogue reads = {.scale = 1, .residual = matrix, .low = -INFINITY, .high = INFINITY};
  npumm_deferred bad[] = {good, good, good, good, good, good, good, good, good};
  bad[0].rows--;
  bad[1].cols++;
  bad[2].type = NPUMM_INT32;
  bad[3].type = NPUMM_INT8;
  bad[4].memories = NULL;
  bad[5].row_sum = NULL;
  bad[6].epilogue = &reads;
  bad[7].m_count++;
  bad[8].n_ranges = NULL;
  npumm_report report = {.step = NPUMM_STEP_NONE};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    k.deferred = bad[i];
    CHECK(defer(executor, &one, &k, &report) == NPUMM_BAD_ARGUMENT, "deferred %d", (int)i);
    CHECK(report.step == NPUMM_STEP_ARGUMENTS, "step %d", (int)report.step);
  }
  k.deferred = good;
  CHECK(defer(executor, &one, &k, &report) == 0, "code %d", (int)report.code);
  const npumm_call call = {
      .a_deferred = &k.deferred, .out = out, .out_row_stride = sizeof out[0], .out_type = NPUMM_FLOAT32};
  CHECK(npumm_execute(executor, &two.placed, &call, &report) == NPUMM_BAD_ARGUMENT, "floats as they are");
  two.placed.activation = (npumm_activation){NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 1, 0, 0, NULL};
  CHECK(npumm_execute(executor, &two.placed, &call, &report) == 0, "code %d", (int)report.code);
  const npumm_deferred made = k.deferred;
  k.deferred.rows++;
  CHECK(npumm_execute(executor, &two.placed, &call, &report) == NPUMM_BAD_ARGUMENT, "rows");
  k.deferred = made;
  k.deferred.cols--;
  CHECK(npumm_execute(executor, &two.placed, &call, &report) == NPUMM_BAD_ARGUMENT, "columns");
  k.deferred = made;
  drop(&k);
  take_down(&one);
  take_down(&two);
}

int main(void) {
  npumm_executor *executor = npumm_executor_create();
  if (!executor) return 1;
  rows_are_finished_when_they_are_read(executor);
  rows_go_straight_into_the_next_matmul(executor);
  failures_leave_what_is_deferred(executor);
  what_does_not_fit_is_refused(executor);
  npumm_executor_destroy(executor);
  return report("test_deferred");
}
