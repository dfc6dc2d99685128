/*
 * Threads that take turns on a core: one packs and stores while another runs, and never do two of them run. On the runtime
 * of fake_npu.h. Compile: gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_turns.c
 * native/executor/[a-z]*.c native/kernels/[a-z]*.c -lm -lpthread
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <time.h>

#include "fake_npu.h"

enum { SECONDS_MOST = 60 };

/* ---- a runtime that sees what happens meanwhile ---------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int to_device, from_device, runs,
    waits; /* guarded by the lock; whether runs wait for others' packing and storing */
static int timed_out;
static int32_t turns; /* contexts that belong to one core */
static atomic_int running[CONTEXTS], overlaps;

static int seen_sync(rknn_context ctx, rknn_tensor_mem *memory, rknn_mem_sync_mode mode) {
  pthread_mutex_lock(&lock);
  if (mode == RKNN_MEMORY_SYNC_TO_DEVICE) to_device++;
  else from_device++;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
  return fake_sync(ctx, memory, mode);
}

static void wait_for(const int *count, int least) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += SECONDS_MOST;
  while (*count < least && !timed_out) timed_out = pthread_cond_timedwait(&changed, &lock, &until) != 0;
}

/* With `waits`: the first run ends when the other A was synchronised, the second one when the first C was. */
static int seen_run(rknn_matmul_ctx ctx) {
  atomic_int *core = &running[(int32_t)ctx / turns];
  if (atomic_fetch_add(core, 1)) atomic_fetch_add(&overlaps, 1);
  pthread_mutex_lock(&lock);
  const int run = runs++;
  if (waits) wait_for(run == 0 ? &to_device : &from_device, run == 0 ? 2 : 1);
  pthread_mutex_unlock(&lock);
  const struct timespec while_others_begin = {0, 200000};
  nanosleep(&while_others_begin, NULL);
  const int code = fake_run(ctx);
  atomic_fetch_sub(core, 1);
  return code;
}

static const npumm_runtime seen = {fake_set_io_mem, seen_run, seen_sync, fake_set_dynamic_shape};

static void reset(const example *e, int wait) {
  to_device = from_device = runs = timed_out = 0;
  waits = wait;
  turns = e->placed.turns;
}

static void check_result(const example *e, const float *out) {
  for (int i = 0; i < e->m * e->n; i++) {
    CHECK((double)out[i] == expected(e, i / e->n, i % e->n), "element %d is %g", i, (double)out[i]);
  }
}

static npumm_call call_of(const example *e, float *out) {
  return (npumm_call){
      .a = e->a, .a_row_stride = K_MOST, .a_col_stride = 1, .out = out, .out_row_stride = (int64_t)e->n * 4};
}

/* ---- tests ----------------------------------------------------------------------------------------------------------- */

/* Two ranges on one core: the second one is packed while the first one runs, which is stored while the second one runs. */
static void packs_and_stores_meanwhile(void) {
  slices_most = tiles_most = 1;
  example e;
  for (build_sized(&e, 0, 60, 50, 40, 1, 2, 0); e.placed.m_count != 2; build_sized(&e, 0, 60, 50, 40, 1, 2, 0)) {
    take_down(&e);
  }
  share_rows(&e);
  for (int r = 0; r < 2; r++) {
    e.range_cores[r] = r;
    e.shapes[r].context = &e.handles[r];
  }
  e.placed.turns = 2;
  e.placed.runtime = &seen;
  reset(&e, 1);
  float *out = calloc((size_t)e.m * (size_t)e.n, sizeof *out);
  const npumm_call call = call_of(&e, out);
  npumm_report report = {0};
  npumm_executor *executor = npumm_executor_create();
  HOLDS(npumm_execute(executor, &e.placed, &call, &report) == 0);
  HOLDS(!timed_out);
  HOLDS(report.run_calls == 2 && report.set_io_mem_calls == 6 && report.mem_sync_calls == 4);
  check_result(&e, out);
  npumm_executor_destroy(executor);
  free(out);
  take_down(&e);
  slices_most = SLICES, tiles_most = TILES;
}

/* Any ranges, slices and tiles, on one core or two: each core runs one thing at a time. */
static void runs_one_at_a_time(void) {
  npumm_executor *executor = npumm_executor_create();
  for (int i = 0; i < 60; i++) {
    example e;
    build(&e, i & 1, i / 2 % 2 ? 4 : 2, 0);
    share_rows(&e);
    e.placed.turns = 2;
    e.placed.runtime = &seen;
    reset(&e, 0);
    float *out = calloc((size_t)e.m * (size_t)e.n, sizeof *out);
    const npumm_call call = call_of(&e, out);
    npumm_report report = {0};
    HOLDS(npumm_execute(executor, &e.placed, &call, &report) == 0);
    HOLDS(report.run_calls == (uint64_t)(e.placed.m_count * e.placed.slice_count * e.placed.n_count));
    check_result(&e, out);
    free(out);
    take_down(&e);
  }
  CHECK(atomic_load(&overlaps) == 0, "%d runs began while another one was going on", atomic_load(&overlaps));
  npumm_executor_destroy(executor);
}

/* Threads without rows of their own, or that do not fill cores, take no turns. */
static void refuses_what_fits_nothing(void) {
  example e;
  build(&e, 0, 3, 0);
  float *out = calloc((size_t)e.m * (size_t)e.n, sizeof *out);
  const npumm_call call = call_of(&e, out);
  npumm_report report = {0};
  e.placed.turns = 3;
  HOLDS(npumm_execute(NULL, &e.placed, &call, &report) == NPUMM_BAD_ARGUMENT);
  share_rows(&e);
  e.placed.turns = 2;
  HOLDS(npumm_execute(NULL, &e.placed, &call, &report) == NPUMM_BAD_ARGUMENT);
  e.placed.turns = -1;
  HOLDS(npumm_execute(NULL, &e.placed, &call, &report) == NPUMM_BAD_ARGUMENT);
  e.placed.turns = 3;
  HOLDS(npumm_execute(NULL, &e.placed, &call, &report) == 0);
  check_result(&e, out);
  free(out);
  take_down(&e);
}

int main(void) {
  packs_and_stores_meanwhile();
  runs_one_at_a_time();
  refuses_what_fits_nothing();
  return report("test_turns");
}
