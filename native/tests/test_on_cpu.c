/*
 * Placed matmuls that the CPU multiplies: the same examples as of the NPU's, with B in native tiles, by several threads;
 * rows that stand in C of another; int8 results; what is not to be mixed. Compile: gcc -std=c17 -Inative/include
 * -Inative/kernels native/tests/test_on_cpu.c native/executor/[a-z]*.c native/kernels/[a-z]*.c -lm -lpthread
 */
#include "fake_npu.h"

enum { TILE = 32 };

static const npumm_on_cpu plain = {NPUMM_I8_I8, 0, TILE, TILE, 0};

static int64_t padded(int64_t extent) { return (extent + TILE - 1) / TILE * TILE; }

/* Give an example of the NPU to the CPU: tiles of B are native, A and C have room for what pads K and N alone. */
static void move_to_cpu(example *e, const npumm_on_cpu *how) {
  npumm_placed_matmul *p = &e->placed;
  const int64_t depth = padded(e->slices[0].k.length), width = padded(e->tile);
  for (int i = 0; i < p->slice_count * p->n_count; i++) {
    const npumm_range *k = &e->slices[i / p->n_count].k, *n = &e->n_ranges[i % p->n_count];
    rknn_tensor_mem *b = new_memory((size_t)(depth * width));
    int8_t *to = b->virt_addr;
    for (int64_t c = 0; c < n->length; c++) {
      for (int64_t r = 0; r < k->length; r++) {
        const int64_t tile = c / TILE * (depth / TILE) + r / TILE;
        to[(tile * TILE + c % TILE) * TILE + r % TILE] = e->b[k->start + r][n->start + c];
      }
    }
    free_memory(e->b_memories[i]);
    e->b_memories[i] = b;
  }
  int64_t rows = 0;
  for (int i = 0; i < p->m_count; i++) rows = e->m_ranges[i].length > rows ? e->m_ranges[i].length : rows;
  for (int i = 0; i < CORES * BUFFERS; i++) {
    free_memory(e->a_memories[i]);
    e->a_memories[i] = new_memory((size_t)(rows * depth));
  }
  for (int i = 0; i < CORES; i++) {
    free_memory(e->c_memories[i]);
    e->c_memories[i] = new_memory((size_t)(rows * width * 4));
  }
  for (int i = 0; i < p->m_count * p->slice_count * p->n_count; i++) {
    const npumm_shape shape = {.padded_m = (int32_t)e->m_ranges[i / (p->slice_count * p->n_count)].length,
                               .padded_k = (int32_t)depth,
                               .padded_n = (int32_t)width};
    e->shapes[i] = shape;
  }
  p->runtime = NULL;
  p->on_cpu = how;
}

static void results_are_those_of_the_npu(npumm_executor *executor) {
  static example e;
  static float out[M_MOST][N_MOST];
  for (int i = 0; i < 200; i++) {
    build(&e, 0, within(1, CORES), i / 2 % 2);
    move_to_cpu(&e, &plain);
    const int before = atomic_load(&calls);
    npumm_report report = {.step = NPUMM_STEP_NONE};
    const npumm_call call = {.a = e.a,
                             .a_row_stride = K_MOST,
                             .a_col_stride = 1,
                             .out = out,
                             .out_row_stride = sizeof out[0],
                             .out_type = NPUMM_FLOAT32};
    CHECK(npumm_execute(i % 5 ? executor : NULL, &e.placed, &call, &report) == 0, "code %d", (int)report.code);
    int wrong = 0;
    for (int m = 0; m < e.m; m++) {
      for (int n = 0; n < e.n; n++) wrong += (double)out[m][n] != expected(&e, m, n);
    }
    CHECK(wrong == 0, "%d wrong", wrong);
    CHECK(atomic_load(&calls) == before, "the runtime was called");
    const uint64_t macs = (uint64_t)e.m * (uint64_t)e.k * (uint64_t)e.n;
    CHECK(report.cpu_macs == macs && report.macs == 0 && report.run_calls == 0, "counts");
    take_down(&e);
  }
}

/* The first matmul is the NPU's and leaves its result in C; its rows go straight into the second one's A. */
static void rows_come_from_the_npu(npumm_executor *executor) {
  static example one, two;
  static float out[M_MOST][N_MOST], between[M_MOST][N_MOST];
  for (int i = 0; i < 100; i++) {
    const int cores = within(1, CORES);
    build_sized(&one, 0, within(1, M_MOST), within(1, K_MOST), within(cores, K_MOST), 0, cores, 0);
    build_sized(&two, CORES, one.m, one.n, within(cores, N_MOST), 0, cores, i % 2);
    move_to_cpu(&two, &plain);
    const npumm_placed_matmul *p = &one.placed;
    int32_t padded_m[RANGES], padded_n[TILES], zero[M_MOST], sum[M_MOST];
    double factor[M_MOST];
    static float sums[M_MOST * N_MOST];
    rknn_tensor_mem *memories[RANGES * TILES];
    for (int r = 0; r < p->m_count; r++) padded_m[r] = one.shapes[0].padded_m;
    for (int t = 0; t < p->n_count; t++) padded_n[t] = one.shapes[0].padded_n;
    for (int c = 0; c < p->m_count * p->n_count; c++) {
      memories[c] = new_memory((size_t)padded_m[0] * (size_t)padded_n[0] * 4);
    }
    npumm_deferred left = {.rows = one.m,
                           .cols = one.n,
                           .type = NPUMM_FLOAT32,
                           .m_count = p->m_count,
                           .n_count = p->n_count,
                           .m_ranges = one.m_ranges,
                           .n_ranges = one.n_ranges,
                           .padded_m = padded_m,
                           .padded_n = padded_n,
                           .memories = memories,
                           .row_factor = factor,
                           .row_zero = zero,
                           .row_sum = sum,
                           .sums = p->slice_count > 1 ? sums : NULL};
    npumm_report report = {.step = NPUMM_STEP_NONE};
    const npumm_call first = {.a = one.a, .a_row_stride = K_MOST, .a_col_stride = 1, .out_deferred = &left};
    CHECK(npumm_execute(executor, &one.placed, &first, &report) == 0, "code %d", (int)report.code);
    const float scale = 4096;
    two.placed.activation = (npumm_activation){NPUMM_F32_TO_I8, NPUMM_ROWS_STATIC, 127, 1, scale, 0, NULL};
    const npumm_call second = {
        .a_deferred = &left, .out = out, .out_row_stride = sizeof out[0], .out_type = NPUMM_FLOAT32};
    CHECK(npumm_execute(executor, &two.placed, &second, &report) == 0, "code %d", (int)report.code);
    CHECK(npumm_deferred_store(&left, 0, one.m, between, sizeof between[0]) == 0, "store");
    for (int m = 0; m < one.m; m++) { /* codes are worked out here */
      for (int k = 0; k < two.k; k++) {
        const double code = nearbyint((double)between[m][k] / (double)scale);
        two.a[m][k] = (int8_t)(code > 127 ? 127 : code < -127 ? -127 : code);
      }
    }
    int wrong = 0;
    for (int m = 0; m < two.m; m++) {
      for (int n = 0; n < two.n; n++) {
        const double want = expected(&two, m, n) * (double)scale;
        wrong += fabs((double)out[m][n] - want) > fabs(want) * 1e-6;
      }
    }
    CHECK(wrong == 0, "%d wrong", wrong);
    for (int c = 0; c < p->m_count * p->n_count; c++) free_memory(memories[c]);
    take_down(&one);
    take_down(&two);
  }
}

static void int8_is_cut_off(void) {
  static example e;
  static int8_t out[M_MOST][N_MOST];
  const npumm_on_cpu how = {NPUMM_I8_I8, 0, TILE, TILE, 1.0 / 700};
  slices_most = 1;
  build_sized(&e, 0, 9, K_MOST, N_MOST, 0, 2, 0);
  slices_most = SLICES;
  move_to_cpu(&e, &how);
  e.placed.c_type = NPUMM_C_INT8;
  const npumm_call call = {.a = e.a,
                           .a_row_stride = K_MOST,
                           .a_col_stride = 1,
                           .out = out,
                           .out_row_stride = sizeof out[0],
                           .out_type = NPUMM_INT8};
  npumm_report report = {.step = NPUMM_STEP_NONE};
  CHECK(npumm_execute(NULL, &e.placed, &call, &report) == 0, "code %d", (int)report.code);
  int wrong = 0, saturated = 0;
  for (int m = 0; m < e.m; m++) {
    for (int n = 0; n < e.n; n++) {
      const double value = trunc(expected(&e, m, n) / 700);
      wrong += out[m][n] != (value > 127 ? 127 : value < -128 ? -128 : value);
      saturated += fabs(value) > 128;
    }
  }
  CHECK(wrong == 0 && saturated > 0, "%d wrong, %d saturated", wrong, saturated);
  take_down(&e);
}

static void refused(const char *why, npumm_placed_matmul placed, const npumm_call *call) {
  npumm_report report = {.step = NPUMM_STEP_NONE};
  CHECK(npumm_execute(NULL, &placed, call, &report) == NPUMM_BAD_ARGUMENT, "%s: %d", why, (int)report.code);
}

static void refusals(void) {
  static example e;
  static float out[M_MOST][N_MOST];
  build(&e, 0, 2, 0);
  move_to_cpu(&e, &plain);
  const npumm_call call = {.a = e.a,
                           .a_row_stride = K_MOST,
                           .a_col_stride = 1,
                           .out = out,
                           .out_row_stride = sizeof out[0],
                           .out_type = NPUMM_FLOAT32};
  npumm_placed_matmul wrong = e.placed;
  wrong.c_type = NPUMM_C_FLOAT32;
  refused("C of floats for integers", wrong, &call);
  wrong.c_type = NPUMM_C_INT8;
  refused("int8 without a scale", wrong, &call);
  wrong = e.placed, wrong.range_cores = e.range_cores;
  refused("cores that share rows", wrong, &call);
  wrong = e.placed, wrong.c_memories = NULL;
  refused("no C", wrong, &call);
  npumm_call bound = call;
  bound.a = NULL, bound.a_bound = e.a_memories;
  refused("A in place", e.placed, &bound);
  npumm_deferred deferred = {.rows = e.m};
  npumm_call left = call;
  left.out = NULL, left.out_deferred = &deferred;
  refused("a result that is left in C", e.placed, &left);
  npumm_on_cpu odd = plain;
  odd.tile_k = 24;
  wrong = e.placed, wrong.on_cpu = &odd;
  npumm_report report = {.step = NPUMM_STEP_NONE};
  HOLDS(npumm_execute(NULL, &wrong, &call, &report) == NPUMM_BAD_ARGUMENT && report.step == NPUMM_STEP_RUN);
  for (int which = 0; which < 3; which++) { /* memory that is too small is not written beyond */
    rknn_tensor_mem *memory = which == 0 ? e.a_memories[0] : which == 1 ? e.b_memories[0] : e.c_memories[0];
    const uint32_t size = memory->size;
    memory->size = 31;
    HOLDS(npumm_execute(NULL, &e.placed, &call, &report) == NPUMM_BUFFER_TOO_SMALL);
    memory->size = size;
  }
  HOLDS(npumm_execute(NULL, &e.placed, &call, &report) == 0);
  take_down(&e);
}

int main(void) {
  npumm_executor *executor = npumm_executor_create();
  if (!executor) abort();
  results_are_those_of_the_npu(executor);
  rows_come_from_the_npu(executor);
  int8_is_cut_off();
  refusals();
  npumm_executor_destroy(executor);
  return report("test_on_cpu");
}
