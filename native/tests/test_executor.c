/*
 * The executor on a runtime of this file's own, which multiplies plain int8 matrices: cores at once (the threads come
 * from pthread_create, called in the executor), batches of slices, dynamic shapes, and a failure at every call. Compile:
 * gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_executor.c native/executor/[a-z]*.c
 * native/kernels/[a-z]*.c -lm -lpthread
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "count.h"
#include "npumatmul_executor.h"

static uint32_t state = 99;
static int within(int low, int high) {
  state = state * 1664525u + 1013904223u;
  return low + (int)((state ^ (state >> 15)) % (uint32_t)(high - low + 1));
}

/* ---- a runtime ------------------------------------------------------------------------------------------------------- */

enum { CONTEXTS = 16 };

typedef struct {
  int dynamic, m, k, n; /* of a dynamic one, of the shape that is selected */
  rknn_tensor_mem *bound[3];
  atomic_int busy;
} fake_context;

static fake_context contexts[CONTEXTS];
static atomic_int calls, fail_at = -1, at_work, clashes, failures_seen;

/* Every call: counted, failing where it is told to, and seen when two threads use one context. */
static int enter(rknn_matmul_ctx ctx) {
  atomic_fetch_add(&at_work, 1);
  if (atomic_exchange(&contexts[ctx].busy, 1)) atomic_fetch_add(&clashes, 1);
  if (atomic_fetch_add(&calls, 1) != atomic_load(&fail_at)) return 0;
  atomic_fetch_add(&failures_seen, 1);
  return RKNN_ERR_TIMEOUT;
}

static int leave(rknn_matmul_ctx ctx, int code) {
  atomic_store(&contexts[ctx].busy, 0);
  atomic_fetch_sub(&at_work, 1);
  return code;
}

static int fake_set_io_mem(rknn_matmul_ctx ctx, rknn_tensor_mem *memory, rknn_matmul_tensor_attr *attr) {
  const int code = enter(ctx);
  const int which = attr->name[0] - 'A';
  if (!code) contexts[ctx].bound[which] = memory;
  return leave(ctx, contexts[ctx].dynamic && !contexts[ctx].m ? RKNN_ERR_CTX_INVALID : code);
}

static int fake_set_dynamic_shape(rknn_matmul_ctx ctx, rknn_matmul_shape *shape) {
  const int code = enter(ctx);
  fake_context *context = &contexts[ctx];
  if (!code) {
    context->m = shape->M;
    memset(context->bound, 0, sizeof context->bound);
    if (shape->K != context->k || shape->N != context->n) return leave(ctx, RKNN_ERR_PARAM_INVALID);
  }
  return leave(ctx, code);
}

/* C = A x B, all plain: int8, int8, int32. */
static int fake_run(rknn_matmul_ctx ctx) {
  const int code = enter(ctx);
  const fake_context *context = &contexts[ctx];
  for (int i = 0; i < 3; i++) {
    if (!context->bound[i]) return leave(ctx, RKNN_ERR_FAIL);
  }
  if (code) return leave(ctx, code);
  const int8_t *a = context->bound[0]->virt_addr, *b = context->bound[1]->virt_addr;
  int32_t *c = context->bound[2]->virt_addr;
  for (int m = 0; m < context->m; m++) {
    for (int n = 0; n < context->n; n++) {
      int32_t sum = 0;
      for (int k = 0; k < context->k; k++) sum += a[m * context->k + k] * b[k * context->n + n];
      c[m * context->n + n] = sum;
    }
  }
  return leave(ctx, 0);
}

static int fake_sync(rknn_context ctx, rknn_tensor_mem *memory, rknn_mem_sync_mode mode) {
  const int code = enter(ctx);
  return leave(ctx, memory && mode ? code : RKNN_ERR_PARAM_INVALID);
}

static const npumm_runtime runtime = {fake_set_io_mem, fake_run, fake_sync, fake_set_dynamic_shape};

static rknn_tensor_mem *new_memory(size_t bytes) {
  rknn_tensor_mem *memory = calloc(1, sizeof *memory);
  if (!memory || !(memory->virt_addr = calloc(1, bytes))) abort();
  memory->size = (uint32_t)bytes;
  return memory;
}

static void free_memory(rknn_tensor_mem *memory) {
  free(memory->virt_addr);
  free(memory);
}

/* ---- one matmul --------------------------------------------------------------------------------------------------------- */

enum { M_MOST = 20, K_MOST = 60, N_MOST = 60, RANGES = 6, SLICES = 5, TILES = 5, BUFFERS = 3, CORES = 4 };

typedef struct {
  int m, k, n, tile; /* all tiles of N and slices of K are equally long but the last */
  int8_t a[M_MOST][K_MOST], b[K_MOST][N_MOST];
  float bias[N_MOST];
  npumm_range m_ranges[RANGES], n_ranges[TILES];
  npumm_slice slices[SLICES];
  int32_t tile_cores[TILES], range_cores[RANGES];
  npumm_context handles[CONTEXTS];
  npumm_shape shapes[RANGES * SLICES * TILES], *shape_pointers[RANGES * SLICES * TILES];
  rknn_tensor_mem *a_memories[CORES * BUFFERS], *c_memories[CORES], *b_memories[SLICES * TILES];
  float scales[SLICES][N_MOST];
  npumm_placed_matmul placed;
} example;

static int cut(npumm_range *ranges, int most, int extent, int *length) {
  int count = within(1, most);
  *length = (extent + count - 1) / count;
  count = (extent + *length - 1) / *length;
  for (int i = 0; i < count; i++) {
    ranges[i].start = (int64_t)i * *length;
    ranges[i].length = extent - i * *length < *length ? extent - i * *length : *length;
  }
  return count;
}

/* Cores that share rows have ranges one behind the other; some have none. */
static void build(example *e, int dynamic, int cores, int scaled_each, int share_rows) {
  memset(e, 0, sizeof *e);
  e->m = within(1, M_MOST), e->k = within(1, K_MOST), e->n = within(cores, N_MOST);
  for (int i = 0; i < M_MOST * K_MOST; i++) e->a[i / K_MOST][i % K_MOST] = (int8_t)within(-128, 127);
  for (int i = 0; i < K_MOST * N_MOST; i++) e->b[i / N_MOST][i % N_MOST] = (int8_t)within(-128, 127);
  int rows, depth;
  npumm_range k_ranges[SLICES];
  npumm_placed_matmul *p = &e->placed;
  p->m_count = cut(e->m_ranges, RANGES, e->m, &rows);
  p->slice_count = cut(k_ranges, SLICES, e->k, &depth);
  p->n_count = cut(e->n_ranges, TILES, e->n, &e->tile);
  p->core_count = cores;
  p->a_count = within(1, BUFFERS);
  p->runtime = &runtime;
  p->activation.conversion = NPUMM_COPY_8;
  p->c_type = NPUMM_C_INT32;
  p->row_images = 1;
  p->common_scale = !scaled_each;
  for (int i = 0; i < p->slice_count; i++) {
    e->slices[i].k = k_ranges[i];
    e->slices[i].tiles = i;
    for (int n = 0; n < e->n; n++) e->scales[i][n] = (float)within(1, 16) / 4;
    e->slices[i].column_scale = scaled_each ? e->scales[i] : NULL;
    for (int t = 0; t < p->n_count; t++) {
      rknn_tensor_mem *b = new_memory((size_t)depth * (size_t)e->tile);
      for (int k = 0; k < e->slices[i].k.length; k++) {
        memcpy((int8_t *)b->virt_addr + k * e->tile, &e->b[k_ranges[i].start + k][e->n_ranges[t].start],
               (size_t)e->n_ranges[t].length);
      }
      e->b_memories[i * p->n_count + t] = b;
    }
  }
  for (int t = 0; t < p->n_count; t++) e->tile_cores[t] = t % cores;
  for (int r = 0, core = 0; r < p->m_count; r++) {
    core = within(core, cores - 1);
    e->range_cores[r] = core;
  }
  for (int i = 0; i < CORES * BUFFERS; i++) e->a_memories[i] = new_memory((size_t)rows * (size_t)depth);
  for (int i = 0; i < CORES; i++) e->c_memories[i] = new_memory((size_t)rows * (size_t)e->tile * 4);
  for (int core = 0; core < cores; core++) {
    contexts[core].dynamic = dynamic;
    contexts[core].m = dynamic ? 0 : rows;
    contexts[core].k = depth;
    contexts[core].n = e->tile;
    e->handles[core] = (npumm_context){(rknn_matmul_ctx)core, dynamic, 0, 0};
  }
  for (int i = 0; i < p->m_count * p->slice_count * p->n_count; i++) {
    npumm_shape *shape = &e->shapes[i];
    const int range = i / (p->slice_count * p->n_count);
    const int64_t length = e->m_ranges[range].length;
    shape->context = &e->handles[share_rows ? e->range_cores[range] : e->tile_cores[i % p->n_count]];
    shape->padded_m = dynamic ? (int32_t)length : rows;
    shape->padded_k = depth, shape->padded_n = e->tile;
    shape->io_attr.A.name[0] = 'A', shape->io_attr.B.name[0] = 'B', shape->io_attr.C.name[0] = 'C';
    e->shape_pointers[i] = shape;
  }
  p->m_ranges = e->m_ranges, p->n_ranges = e->n_ranges, p->slices = e->slices;
  if (share_rows) p->range_cores = e->range_cores;
  else p->tile_cores = e->tile_cores;
  p->a_memories = e->a_memories, p->c_memories = e->c_memories, p->b_memories = e->b_memories;
  p->shapes = e->shape_pointers;
}

static void take_down(example *e) {
  for (int i = 0; i < e->placed.slice_count * e->placed.n_count; i++) free_memory(e->b_memories[i]);
  for (int i = 0; i < CORES * BUFFERS; i++) free_memory(e->a_memories[i]);
  for (int i = 0; i < CORES; i++) free_memory(e->c_memories[i]);
}

static double expected(const example *e, int m, int n) {
  double sum = 0;
  for (int s = 0; s < e->placed.slice_count; s++) {
    const npumm_slice *slice = &e->slices[s];
    double part = 0;
    for (int64_t k = slice->k.start; k < slice->k.start + slice->k.length; k++) part += e->a[m][k] * e->b[k][n];
    sum += part * (slice->column_scale ? (double)slice->column_scale[n] : 1.0);
  }
  return sum;
}

/* Result and number of elements that are wrong. Sums here are below 2^24 quarters: exact in float32 too. */
static int run(npumm_executor *executor, const example *e, npumm_element type, npumm_report *report, int *wrong) {
  static float out[M_MOST][N_MOST]; /* or int32 or bfloat16 */
  memset(out, 0x7f, sizeof out);
  const npumm_epilogue epilogue = {.scale = 2, .low = -INFINITY, .high = INFINITY};
  const npumm_call call = {.a = e->a, .a_row_stride = K_MOST, .a_col_stride = 1, .out = out,
                           .out_row_stride = sizeof out[0], .out_type = type,
                           .epilogue = type == NPUMM_INT32 ? NULL : &epilogue};
  const int code = npumm_execute(executor, &e->placed, &call, report);
  CHECK(atomic_load(&at_work) == 0, "a core is still at work");
  CHECK(atomic_load(&clashes) == 0, "two threads used one context");
  *wrong = 0;
  for (int m = 0; m < e->m; m++) {
    for (int n = 0; n < e->n; n++) {
      const double want = expected(e, m, n) * (type == NPUMM_INT32 ? 1 : 2);
      if (type == NPUMM_INT32) {
        int32_t got;
        memcpy(&got, &out[m][n], 4);
        *wrong += (double)got != want;
      } else if (type == NPUMM_FLOAT32) {
        *wrong += (double)out[m][n] != want;
      } else {
        uint32_t bits = (uint32_t)((const uint16_t *)(const void *)out[m])[n] << 16;
        float got;
        memcpy(&got, &bits, 4);
        *wrong += fabs((double)got - want) > fabs(want) / 256;
      }
    }
  }
  return code;
}

static void results_are_right(npumm_executor *executor) {
  static example e;
  for (int i = 0; i < 200; i++) {
    const int scaled_each = i & 1, cores = within(1, CORES), dynamic = i / 2 % 2;
    const npumm_element types[] = {NPUMM_FLOAT32, NPUMM_BFLOAT16, NPUMM_INT32};
    build(&e, dynamic, cores, scaled_each, i / 4 % 2);
    for (int again = 0; again < 2; again++) {
      npumm_report report;
      int wrong;
      const npumm_element type = types[within(0, scaled_each ? 1 : 2)];
      const int code = run(i % 3 ? executor : NULL, &e, type, &report, &wrong);
      CHECK(code == 0 && wrong == 0, "code %d, %d wrong: %d cores, %d slices, %d buffers, type %d, rows shared: %d",
            code, wrong, cores, e.placed.slice_count, e.placed.a_count, type, e.placed.range_cores != NULL);
      const uint64_t runs = (uint64_t)(e.placed.m_count * e.placed.slice_count * e.placed.n_count);
      CHECK(report.run_calls == runs && report.set_io_mem_calls == 3 * runs, "runs %d", (int)report.run_calls);
      CHECK(report.macs == (uint64_t)(e.m * e.k * e.n), "macs %d", (int)report.macs);
      CHECK((report.set_dynamic_shape_calls == 0) == !dynamic || again, "selections");
    }
    take_down(&e);
  }
}

/* The call that fails stops everything, is reported, and the next call succeeds: contexts keep no wrong idea. */
static void failures_are_reported(npumm_executor *executor) {
  static example e;
  for (int i = 0; i < 40; i++) {
    build(&e, i % 2, 1 + i % CORES, 0, i / CORES % 2);
    npumm_report report;
    int wrong;
    atomic_store(&calls, 0);
    run(executor, &e, NPUMM_INT32, &report, &wrong);
    const int total = atomic_load(&calls);
    for (int at = 0; at < total; at += 1 + total / 12) {
      atomic_store(&calls, 0);
      atomic_store(&failures_seen, 0);
      atomic_store(&fail_at, at);
      const int code = run(executor, &e, NPUMM_INT32, &report, &wrong);
      atomic_store(&fail_at, -1);
      if (atomic_load(&failures_seen)) { /* selections are spared the second time, so the call may not come */
        CHECK(code == RKNN_ERR_TIMEOUT && report.code == code, "call %d of %d: code %d", at, total, code);
        CHECK(report.step >= NPUMM_STEP_SYNC_A && report.core >= 0 && report.core < e.placed.core_count, "report");
      }
      CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == 0 && wrong == 0, "after a failure: %d wrong", wrong);
    }
    take_down(&e);
  }
}

/* Activations, images of rows and slices that do not fit together: refused before memory is touched. */
static void unfit_activations_are_refused(npumm_executor *executor) {
  static example e;
  static const int32_t zeros[N_MOST];
  npumm_report report;
  int wrong;
  build(&e, 0, 1, 0, 0);
  const npumm_placed_matmul good = e.placed;
  const npumm_activation bad[] = {
      {NPUMM_COPY_8, NPUMM_ROWS_POWER_OF_TWO, 0, 0, 0, 0, NULL},
      {NPUMM_F32_TO_F16, NPUMM_ROWS_ABSMAX, 127, 1, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 128, 1, 0, 0, NULL},
      {NPUMM_F32_TO_I4, NPUMM_ROWS_ABSMAX, 127, 1, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 0, 1, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 0, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 1.5f, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, NAN, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_MINMAX, 127, 1, 0, 0, NULL}, /* slices without column_sums */
      {NPUMM_F32_TO_I8, NPUMM_ROWS_STATIC, 127, 1, 1, 3, NULL}, /* the same */
      {NPUMM_F32_TO_I8, NPUMM_ROWS_STATIC, 127, 1, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_STATIC, 127, 1, INFINITY, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_STATIC, 127, 1, 1, 128, NULL},
      {NPUMM_F32_TO_I4_SPLIT, NPUMM_ROWS_ABSMAX, 119, 1, 0, 0, NULL}, /* one image of rows */
      {NPUMM_F32_TO_I8, (npumm_row_scaling)99, 127, 1, 1, 0, NULL},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    e.placed.activation = bad[i];
    CHECK(run(executor, &e, NPUMM_FLOAT32, &report, &wrong) == NPUMM_BAD_ARGUMENT, "unfit activation %d", (int)i);
    CHECK(report.step == NPUMM_STEP_ARGUMENTS, "step %d", (int)report.step);
  }
  e.placed = good;
  e.slices[0].part = 2; /* a low part of what is no float16 */
  CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == NPUMM_BAD_ARGUMENT, "low part");
  e.slices[0].part = 0;
  e.slices[0].column_zero = zeros; /* sums of rows of floats */
  e.placed.activation = (npumm_activation){NPUMM_F32_TO_F16, NPUMM_ROWS_POWER_OF_TWO, 0, 0, 0, 0, NULL};
  CHECK(run(executor, &e, NPUMM_FLOAT32, &report, &wrong) == NPUMM_BAD_ARGUMENT, "zero points without integers");
  take_down(&e);
}

/* Rows that are transformed range by range: divided here, so that the values of the example come out. */
static void rows_are_transformed_before_they_are_packed(npumm_executor *executor) {
  static example e;
  static float a[M_MOST][K_MOST], out[M_MOST][N_MOST], divisor[K_MOST];
  for (int i = 0; i < 60; i++) {
    build(&e, i & 1, within(1, CORES), 0, i / 2 % 2);
    for (int k = 0; k < e.k; k++) divisor[k] = ldexpf(1, within(-4, 4));
    for (int m = 0; m < e.m; m++) { /* columns run backwards */
      for (int k = 0; k < e.k; k++) a[m][K_MOST - 1 - k] = (float)e.a[m][k] * divisor[k];
    }
    const npumm_hadamard transform = {.features = e.k, .power = 1, .divisor = divisor};
    e.placed.activation = (npumm_activation){NPUMM_F32_TO_I8, NPUMM_ROWS_STATIC, 127, 1, 1, 0, &transform};
    const npumm_call call = {.a = &a[0][K_MOST - 1], .a_row_stride = sizeof a[0], .a_col_stride = -(int64_t)sizeof a[0][0],
                             .out = out, .out_row_stride = sizeof out[0], .out_type = NPUMM_FLOAT32};
    npumm_report report;
    CHECK(npumm_execute(executor, &e.placed, &call, &report) == 0, "code %d", (int)report.code);
    int wrong = 0;
    for (int m = 0; m < e.m; m++) {
      for (int n = 0; n < e.n; n++) wrong += (double)out[m][n] != expected(&e, m, n);
    }
    CHECK(wrong == 0, "%d wrong", wrong);
    const int row = within(0, e.m - 1);
    a[row][K_MOST - e.k] = NAN;
    CHECK(npumm_execute(executor, &e.placed, &call, &report) == NPUMM_NOT_FINITE && report.row == row, "nan");
    e.placed.activation = (npumm_activation){NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 1, 1, 0, &transform};
    CHECK(npumm_execute(executor, &e.placed, &call, &report) == NPUMM_NOT_FINITE && report.row == row, "nan");
    const npumm_hadamard longer = {.features = e.k + 1, .power = 1}, wrong_power = {.features = e.k, .power = 3};
    const npumm_activation bad[] = {
        {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 1, 1, 0, &longer},
        {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 1, 1, 0, &wrong_power},
        {NPUMM_COPY_8, NPUMM_ROWS_UNSCALED, 127, 1, 1, 0, &transform},
    };
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
      e.placed.activation = bad[b];
      CHECK(npumm_execute(executor, &e.placed, &call, &report) == NPUMM_BAD_ARGUMENT, "unfit transform %d", (int)b);
      CHECK(report.step == NPUMM_STEP_ARGUMENTS, "step %d", (int)report.step);
    }
    take_down(&e);
  }
}

/*
 * Rows that are scaled in groups, some slices being parts of one: rows of `a` are those of the example times a power of
 * two per row and group, with 127 (and -128) once in each group, so that every value has its code and scales cancel.
 */
static void rows_are_scaled_in_groups(npumm_executor *executor) {
  static example e;
  static float a[M_MOST][K_MOST], out[M_MOST][N_MOST], scales[M_MOST][SLICES];
  static int32_t sums[SLICES][N_MOST];
  for (int i = 0; i < 200; i++) {
    build(&e, i & 1, within(1, CORES), i / 2 % 2, i / 4 % 2);
    const int slices = e.placed.slice_count, zero_points = i / 4 % 2;
    const npumm_hadamard same = {.features = e.k, .power = 1};
    int group_of[SLICES], first = 0;
    for (int s = 0; s < slices; s++) { /* a slice is a group of its own, or belongs to the one before */
      group_of[s] = s == 0 || e.slices[0].k.length == 1 || within(0, 2) ? s : group_of[s - 1];
      if (group_of[s] == s) first = s;
      const int64_t start = e.slices[first].k.start, end = e.slices[s].k.start + e.slices[s].k.length;
      for (int t = first; t <= s; t++) e.slices[t].group = (npumm_range){start, end - start};
    }
    for (int m = 0; m < e.m; m++) {
      for (int s = 0; s < slices; s++) {
        const int64_t from = e.slices[s].k.start, end = from + e.slices[s].k.length;
        scales[m][s] = group_of[s] == s ? ldexpf(1, within(-6, 6)) : scales[m][group_of[s]];
        for (int64_t k = from; k < end; k++) e.a[m][k] = (int8_t)within(-127, 127);
        if (group_of[s] == s) e.a[m][from] = 127;
        if (group_of[s] == s && zero_points && end - from > 1) e.a[m][from + 1] = -128;
        for (int64_t k = from; k < end; k++) a[m][k] = (float)e.a[m][k] * scales[m][s];
      }
    }
    for (int s = 0; s < slices; s++) {
      for (int n = 0; n < e.n; n++) {
        sums[s][n] = 0;
        for (int64_t k = e.slices[s].k.start; k < e.slices[s].k.start + e.slices[s].k.length; k++) sums[s][n] += e.b[k][n];
      }
      e.slices[s].column_sums = zero_points ? sums[s] : NULL;
    }
    e.placed.activation = (npumm_activation){NPUMM_F32_TO_I8, zero_points ? NPUMM_ROWS_MINMAX_GROUPS : NPUMM_ROWS_ABSMAX_GROUPS,
                                             127, 1, 0, 0, i % 3 ? NULL : &same};
    const npumm_call call = {.a = a, .a_row_stride = sizeof a[0], .a_col_stride = sizeof a[0][0], .out = out,
                             .out_row_stride = sizeof out[0], .out_type = NPUMM_FLOAT32};
    npumm_report report;
    CHECK(npumm_execute(i % 5 ? executor : NULL, &e.placed, &call, &report) == 0, "code %d", (int)report.code);
    int wrong = 0;
    for (int m = 0; m < e.m; m++) {
      for (int n = 0; n < e.n; n++) {
        double want = 0, magnitude = 0;
        for (int s = 0; s < slices; s++) {
          double part = 0;
          for (int64_t k = e.slices[s].k.start; k < e.slices[s].k.start + e.slices[s].k.length; k++) {
            part += (double)a[m][k] * e.b[k][n];
          }
          const double term = part * (e.slices[s].column_scale ? (double)e.slices[s].column_scale[n] : 1.0);
          want += term;
          magnitude += fabs(term);
        }
        /* a group of one value with a zero point has a step of value / 255, which is rounded */
        wrong += fabs((double)out[m][n] - want) > magnitude * (zero_points ? 0x1p-20 : 2 * SLICES * 0x1p-24);
      }
    }
    CHECK(wrong == 0, "%d of %d x %d wrong: %d slices, %d buffers, zero points %d", wrong, e.m, e.n, slices,
          e.placed.a_count, zero_points);
    const int row = within(0, e.m - 1), column = within(0, e.k - 1);
    const float kept = a[row][column];
    a[row][column] = INFINITY;
    CHECK(npumm_execute(executor, &e.placed, &call, &report) == NPUMM_NOT_FINITE && report.row == row &&
          report.step == NPUMM_STEP_PACK_A, "inf");
    a[row][column] = kept;
    const int s = within(0, slices - 1);
    const npumm_range good = e.slices[s].group;
    const npumm_range bad[] = {{good.start + 1, good.length}, {good.start, good.length - 1}, {good.start, e.k + 1}, {-1, e.k + 1}};
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
      if (b < 2 && group_of[s] != s) continue; /* which would still hold the slice */
      if (b == 1 && s + 1 < slices && group_of[s + 1] == s) continue;
      e.slices[s].group = bad[b];
      CHECK(npumm_execute(executor, &e.placed, &call, &report) == NPUMM_BAD_ARGUMENT, "unfit group %d", (int)b);
    }
    e.slices[s].group = good;
    e.placed.activation.levels = 128;
    CHECK(npumm_execute(executor, &e.placed, &call, &report) == NPUMM_BAD_ARGUMENT, "levels");
    take_down(&e);
  }
}

static void bad_arguments_are_refused(npumm_executor *executor) {
  static example e;
  npumm_report report;
  int wrong;
  CHECK(npumm_execute(executor, NULL, NULL, NULL) == NPUMM_BAD_ARGUMENT, "nothing");
  CHECK(npumm_execute(executor, NULL, NULL, &report) == NPUMM_BAD_ARGUMENT, "no matmul");
  build(&e, 0, 2, 0, 0);
  const npumm_placed_matmul good = e.placed;
  const struct {
    size_t offset;
    int32_t value;
  } bad[] = {{offsetof(npumm_placed_matmul, slice_count), 0},  {offsetof(npumm_placed_matmul, core_count), 1},
             {offsetof(npumm_placed_matmul, a_count), 0},      {offsetof(npumm_placed_matmul, a_count), NPUMM_A_MOST + 1},
             {offsetof(npumm_placed_matmul, row_images), 3},   {offsetof(npumm_placed_matmul, core_count), 0}};
  e.tile_cores[0] = 1;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    e.placed = good;
    memcpy((char *)&e.placed + bad[i].offset, &bad[i].value, sizeof bad[i].value);
    CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == NPUMM_BAD_ARGUMENT, "bad argument %d", (int)i);
    CHECK(report.step == NPUMM_STEP_ARGUMENTS, "step %d", (int)report.step);
  }
  e.placed = good;
  e.tile_cores[0] = 0;
  CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == 0 && wrong == 0, "and again");
  take_down(&e);
  /* of cores that share rows */
  for (build(&e, 0, 2, 0, 1); e.placed.m_count < 3; build(&e, 0, 2, 0, 1)) take_down(&e);
  static const int32_t wrong_cores[][3] = {{0, 1, 2}, {1, 0, 1}, {-1, 0, 0}};
  for (int i = 0; i < 3; i++) {
    memcpy(e.range_cores, wrong_cores[i], sizeof wrong_cores[i]);
    CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == NPUMM_BAD_ARGUMENT, "wrong cores of ranges %d", i);
  }
  for (int i = 0; i < RANGES; i++) e.range_cores[i] = 0;
  const int32_t buffers = e.placed.a_count;
  e.placed.a_count = NPUMM_A_MOST / 2 + 1;
  CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == NPUMM_BAD_ARGUMENT, "too many buffers");
  e.placed.a_count = buffers;
  for (int i = 0; i < RANGES * SLICES * TILES; i++) e.shapes[i].context = &e.handles[0];
  CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == 0 && wrong == 0, "all on one core");
  take_down(&e);
}

/* A forked child has no workers: what it inherited still computes, in its own thread, and can be given up. */
static void a_child_touches_no_thread(npumm_executor *executor) {
  static example e;
  build(&e, 0, CORES, 0, 0);
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    npumm_report report;
    int wrong;
    const int code = run(executor, &e, NPUMM_INT32, &report, &wrong);
    npumm_executor_destroy(executor);
    _exit(code != 0 || wrong != 0);
  }
  int status = 1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "the child ended with %d", status);
  take_down(&e);
}

int main(void) {
  npumm_executor *executor = npumm_executor_create();
  if (!executor) return 1;
  results_are_right(executor);
  failures_are_reported(executor);
  unfit_activations_are_refused(executor);
  rows_are_transformed_before_they_are_packed(executor);
  rows_are_scaled_in_groups(executor);
  bad_arguments_are_refused(executor);
  a_child_touches_no_thread(executor);
  npumm_executor_destroy(executor);
  npumm_executor_destroy(NULL);
  return report("test_executor");
}
