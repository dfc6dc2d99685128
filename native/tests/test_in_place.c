/*
 * A and C that are bound where they stand: ranges of rows are parts of one allocation, alone or shared by cores, and
 * either of both may be the caller's as ever. Compile:
 * gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_in_place.c native/executor/[a-z]*.c
 * native/kernels/[a-z]*.c -lm -lpthread
 */
#include "fake_npu.h"

/* Rows of a matrix in one allocation, and its parts, one per range of rows. */
typedef struct {
  rknn_tensor_mem *whole, parts[RANGES], *pointers[RANGES];
  npumm_bound bound;
} rows_in_memory;

static void divide(rows_in_memory *rows, const example *e, int row_bytes) {
  const npumm_placed_matmul *p = &e->placed;
  const int64_t padded =
      p->shapes[0]->padded_m > p->m_ranges[0].length ? p->shapes[0]->padded_m : p->m_ranges[0].length;
  rows->whole = new_memory((size_t)(p->m_count * padded * row_bytes));
  for (int i = 0; i < p->m_count; i++) {
    rows->parts[i] = (rknn_tensor_mem){.virt_addr = (char *)rows->whole->virt_addr + p->m_ranges[i].start * row_bytes,
                                       .size = (uint32_t)(padded * row_bytes)};
    rows->pointers[i] = &rows->parts[i];
  }
  rows->bound = (npumm_bound){rows->pointers, rows->whole};
}

typedef struct {
  example e;
  rows_in_memory a, c;
} bound_example;

static void build_bound(bound_example *b, int dynamic, int cores, int shared) {
  build(&b->e, dynamic, cores, 0);
  if (shared) share_rows(&b->e);
  divide(&b->a, &b->e, b->e.k);
  divide(&b->c, &b->e, b->e.n * 4);
  for (int m = 0; m < b->e.m; m++) memcpy((int8_t *)b->a.whole->virt_addr + m * b->e.k, b->e.a[m], (size_t)b->e.k);
}

static void take_down_bound(bound_example *b) {
  free_memory(b->a.whole);
  free_memory(b->c.whole);
  take_down(&b->e);
}

static int wrong_sums(const bound_example *b) {
  const int32_t *c = b->c.whole->virt_addr;
  int wrong = 0;
  for (int m = 0; m < b->e.m; m++) {
    for (int n = 0; n < b->e.n; n++) wrong += (double)c[m * b->e.n + n] != expected(&b->e, m, n);
  }
  return wrong;
}

static void both_are_bound_where_they_stand(npumm_executor *executor) {
  static bound_example b;
  slices_most = tiles_most = 1;
  for (int i = 0; i < 200; i++) {
    build_bound(&b, i & 1, i / 2 % 2 ? within(1, CORES) : 1, i / 2 % 2);
    const int synchronised = i / 4 % 2, ranges = b.e.placed.m_count;
    if (!synchronised) b.c.bound.whole = NULL;
    b.e.placed.a_memories = b.e.placed.c_memories = NULL; /* nothing is copied */
    const npumm_call call = {.a_bound = b.a.pointers, .out_bound = &b.c.bound};
    npumm_report report = {.step = NPUMM_STEP_NONE};
    CHECK(npumm_execute(i % 3 ? executor : NULL, &b.e.placed, &call, &report) == 0, "code %d", (int)report.code);
    CHECK(atomic_load(&clashes) == 0, "two threads used one context");
    CHECK(wrong_sums(&b) == 0, "%d wrong of %d x %d in %d ranges", wrong_sums(&b), b.e.m, b.e.n, ranges);
    CHECK(report.run_calls == (uint64_t)ranges && report.set_io_mem_calls == 3 * (uint64_t)ranges, "runs");
    CHECK(report.mem_sync_calls == (uint64_t)synchronised, "%d synchronisations", (int)report.mem_sync_calls);
    CHECK(report.macs == (uint64_t)(b.e.m * b.e.k * b.e.n), "macs %d", (int)report.macs);
    CHECK(report.conversions == (uint64_t)(!call.a_bound + !call.out_bound), "conversions %d", (int)report.conversions);
    take_down_bound(&b);
  }
}

/* A that stands there, with tiles of N and scales of columns, stored and deferred; and C that stands there, of rows of `a`. */
static void one_of_both_is_bound(npumm_executor *executor) {
  static bound_example b;
  static float out[M_MOST][N_MOST];
  slices_most = 1;
  for (int i = 0; i < 100; i++) {
    tiles_most = i & 1 ? 1 : TILES;
    const int shared = i / 2 % 2;
    build_bound(&b, i / 4 % 2, i & 1 && !shared ? 1 : within(1, CORES), shared);
    npumm_report report = {.step = NPUMM_STEP_NONE};
    if (i & 1) {
      const npumm_call call = {.a = b.e.a, .a_row_stride = K_MOST, .a_col_stride = 1, .out_bound = &b.c.bound};
      CHECK(npumm_execute(executor, &b.e.placed, &call, &report) == 0, "code %d", (int)report.code);
      CHECK(wrong_sums(&b) == 0, "%d wrong", wrong_sums(&b));
    } else {
      b.e.slices[0].column_scale = b.e.scales[0];
      const npumm_call call = {
          .a_bound = b.a.pointers, .out = out, .out_row_stride = sizeof out[0], .out_type = NPUMM_FLOAT32};
      CHECK(npumm_execute(executor, &b.e.placed, &call, &report) == 0, "code %d", (int)report.code);
      int wrong = 0;
      for (int m = 0; m < b.e.m; m++) {
        for (int n = 0; n < b.e.n; n++) wrong += (double)out[m][n] != expected(&b.e, m, n);
      }
      CHECK(wrong == 0, "%d wrong", wrong);
    }
    take_down_bound(&b);
  }
}

/* The call that fails is reported, at last the synchronisation; what is read stands there all the same. */
static void failures_are_reported(npumm_executor *executor) {
  static bound_example b;
  slices_most = tiles_most = 1;
  for (int i = 0; i < 20; i++) {
    build_bound(&b, i & 1, i / 2 % 2 ? within(1, CORES) : 1, i / 2 % 2);
    const npumm_call call = {.a_bound = b.a.pointers, .out_bound = &b.c.bound};
    npumm_report report = {.step = NPUMM_STEP_NONE};
    CHECK(npumm_execute(executor, &b.e.placed, &call, &report) == 0, "code %d", (int)report.code);
    const int total = (int)(report.run_calls + report.set_io_mem_calls + report.mem_sync_calls);
    for (int at = 0; at < total; at++) {
      for (int c = 0; c < CORES; c++) b.e.handles[c].broken = 0;
      atomic_store(&calls, 0);
      atomic_store(&failures_seen, 0);
      atomic_store(&fail_at, at);
      const int code = npumm_execute(executor, &b.e.placed, &call, &report);
      atomic_store(&fail_at, -1);
      if (!atomic_load(&failures_seen)) continue; /* a dynamic context selects its shape, or does not */
      int broken = 0;
      for (int c = 0; c < CORES; c++) broken += b.e.handles[c].broken;
      CHECK(code == RKNN_ERR_TIMEOUT && report.code == code, "call %d of %d: code %d", at, total, code);
      CHECK(broken == 1 && report.step >= NPUMM_STEP_BIND_A, "%d contexts broken, step %d", broken, (int)report.step);
    }
    CHECK(npumm_execute(executor, &b.e.placed, &call, &report) == 0 && wrong_sums(&b) == 0, "after failures");
    take_down_bound(&b);
  }
}

static void what_cannot_be_bound_is_refused(npumm_executor *executor) {
  static bound_example b;
  static float out[M_MOST][N_MOST];
  static const int32_t zeros[N_MOST];
  static const float transform_of[K_MOST];
  npumm_report report = {.step = NPUMM_STEP_NONE};
  slices_most = tiles_most = 1;
  do build_bound(&b, 0, 1, 0);
  while (b.e.placed.m_count < 2 && (take_down_bound(&b), 1));
  const npumm_epilogue epilogue = {.scale = 1, .low = -INFINITY, .high = INFINITY};
  const npumm_call good = {.a_bound = b.a.pointers, .out_bound = &b.c.bound};
  npumm_call calls_bad[] = {good, good, good, good, good};
  calls_bad[0].a = b.e.a;
  calls_bad[1].out = out;
  calls_bad[2].a_bound = NULL;
  calls_bad[3].out_bound = NULL;
  calls_bad[4].epilogue = &epilogue;
  for (size_t i = 0; i < sizeof calls_bad / sizeof *calls_bad; i++) {
    CHECK(npumm_execute(executor, &b.e.placed, &calls_bad[i], &report) == NPUMM_BAD_ARGUMENT, "call %d", (int)i);
  }
  const npumm_hadamard transform = {.features = b.e.k, .power = 1, .divisor = transform_of};
  const npumm_activation unfit[] = {
      {NPUMM_COPY_8, NPUMM_ROWS_UNSCALED, 0, 0, 0, 3, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 1, 0, 0, NULL},
      {NPUMM_F32_TO_F16, NPUMM_ROWS_UNSCALED, 0, 0, 0, 0, NULL},
      {NPUMM_COPY_8, NPUMM_ROWS_UNSCALED, 0, 0, 0, 0, &transform},
  };
  const npumm_placed_matmul placed = b.e.placed;
  for (size_t i = 0; i < sizeof unfit / sizeof *unfit; i++) {
    b.e.placed.activation = unfit[i];
    CHECK(npumm_execute(executor, &b.e.placed, &good, &report) == NPUMM_BAD_ARGUMENT, "activation %d", (int)i);
  }
  b.e.placed = placed;
  int32_t *fields[] = {&b.e.shapes[1].a_group, &b.e.shapes[1].c_group, &b.e.shapes[1].padded_k,
                       &b.e.shapes[1].padded_n};
  for (int i = 0; i < 4; i++) {
    *fields[i] += 4;
    CHECK(npumm_execute(executor, &b.e.placed, &good, &report) == NPUMM_BAD_ARGUMENT, "shape %d", i);
    *fields[i] -= 4;
  }
  rknn_tensor_mem *parts[] = {&b.a.parts[1], &b.c.parts[1]};
  uint32_t *needed[] = {&b.e.shapes[1].io_attr.A.size, &b.e.shapes[1].io_attr.C.size};
  for (int i = 0; i < 2; i++) {
    *needed[i] = parts[i]->size + 1;
    CHECK(npumm_execute(executor, &b.e.placed, &good, &report) == NPUMM_BAD_ARGUMENT, "size %d", i);
    *needed[i] = parts[i]->size;
  }
  b.e.slices[0].column_scale = b.e.scales[0];
  CHECK(npumm_execute(executor, &b.e.placed, &good, &report) == NPUMM_BAD_ARGUMENT, "scales");
  b.e.slices[0].column_scale = NULL;
  b.e.slices[0].column_zero = zeros;
  CHECK(npumm_execute(executor, &b.e.placed, &good, &report) == NPUMM_BAD_ARGUMENT, "zero points");
  b.e.slices[0].column_zero = NULL;
  b.c.bound.parts = NULL;
  CHECK(npumm_execute(executor, &b.e.placed, &good, &report) == NPUMM_BAD_ARGUMENT, "no parts");
  b.c.bound.parts = b.c.pointers;
  CHECK(npumm_execute(executor, &b.e.placed, &good, &report) == 0 && wrong_sums(&b) == 0, "and again");
  take_down_bound(&b);
}

int main(void) {
  npumm_executor *executor = npumm_executor_create();
  if (!executor) return 1;
  both_are_bound_where_they_stand(executor);
  one_of_both_is_bound(executor);
  failures_are_reported(executor);
  what_cannot_be_bound_is_refused(executor);
  npumm_executor_destroy(executor);
  return report("test_in_place");
}
