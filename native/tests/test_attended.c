/*
 * A caller whom the runtime must not hold up: all cores are left to threads, work ends when the caller wants it to, and
 * runs that hang are given up without a trace in the caller's memory. On the runtime of fake_npu.h. Compile:
 * gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_attended.c native/executor/[a-z]*.c
 * native/kernels/[a-z]*.c -lm -lpthread
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <time.h>

#include "fake_npu.h"

/* ---- a runtime that can be held up ----------------------------------------------------------------------------------- */

enum { SET_IO_MEM, RUN, MEM_SYNC, SET_SHAPE, FUNCTIONS };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int held_function = -1, held_from; /* its calls from this one on wait; guarded by the lock */
static int held_calls, holding;
static atomic_int runs_begun, own_calls;
static pthread_t caller;

static void hold(int function) {
  if (pthread_equal(pthread_self(), caller)) atomic_fetch_add(&own_calls, function == RUN);
  pthread_mutex_lock(&lock);
  if (function == held_function && held_calls++ >= held_from) {
    holding++;
    while (held_function == function) pthread_cond_wait(&changed, &lock);
    holding--;
  }
  pthread_mutex_unlock(&lock);
}

static void hold_up(int function, int from) {
  pthread_mutex_lock(&lock);
  held_function = function;
  held_from = from;
  held_calls = 0;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
}

static int held_set_io_mem(rknn_matmul_ctx ctx, rknn_tensor_mem *memory, rknn_matmul_tensor_attr *attr) {
  hold(SET_IO_MEM);
  return fake_set_io_mem(ctx, memory, attr);
}

static int held_run(rknn_matmul_ctx ctx) {
  atomic_fetch_add(&runs_begun, 1);
  hold(RUN);
  return fake_run(ctx);
}

static int held_sync(rknn_context ctx, rknn_tensor_mem *memory, rknn_mem_sync_mode mode) {
  if (mode == RKNN_MEMORY_SYNC_FROM_DEVICE) hold(MEM_SYNC); /* the other way the caller synchronises itself */
  return fake_sync(ctx, memory, mode);
}

static int held_set_shape(rknn_matmul_ctx ctx, rknn_matmul_shape *shape) {
  hold(SET_SHAPE);
  return fake_set_dynamic_shape(ctx, shape);
}

static const npumm_runtime held = {held_set_io_mem, held_run, held_sync, held_set_shape};

/* ---- callers --------------------------------------------------------------------------------------------------------- */

static atomic_int asked, runs_when_asked;

static int go_on(void) {
  atomic_fetch_add(&asked, 1);
  return 0;
}

static int nobody_is_held(void) {
  pthread_mutex_lock(&lock);
  const int nobody = holding == 0;
  pthread_mutex_unlock(&lock);
  return nobody;
}

/*
 * End with what is going on, which goes on when that was heard. Until somebody is held up the answer is to go on: on a busy
 * machine the caller may be asked before any worker begins, and work that ends then ends without a run.
 */
static int end(void) {
  if (nobody_is_held()) return 0;
  if (atomic_fetch_add(&asked, 1) == 0) atomic_store(&runs_when_asked, atomic_load(&runs_begun));
  else hold_up(-1, 0);
  return 1;
}

static int give_up(void) {
  if (nobody_is_held()) return 0;
  return atomic_fetch_add(&asked, 1) == 0 ? 1 : 2;
}

static int32_t out[M_MOST][N_MOST];

static int call_attended(npumm_executor *executor, const example *e, int (*attend)(void)) {
  const npumm_call call = {.a = e->a,
                           .a_row_stride = K_MOST,
                           .a_col_stride = 1,
                           .out = out,
                           .out_row_stride = sizeof out[0],
                           .out_type = NPUMM_INT32};
  npumm_report report = {.step = NPUMM_STEP_NONE};
  atomic_store(&asked, 0);
  const int code = npumm_execute_attended(executor, &e->placed, &call, &report, attend);
  CHECK(report.code == code, "%d in the report, %d returned", (int)report.code, code);
  return code;
}

static int wrong_sums(const example *e) {
  int wrong = 0;
  for (int m = 0; m < e->m; m++) {
    for (int n = 0; n < e->n; n++) wrong += (double)out[m][n] != expected(e, m, n);
  }
  return wrong;
}

/* 4 ranges of rows x 4 tiles on 3 cores, one slice of K. */
static void build_long(example *e, int dynamic, int shares_rows) {
  slices_most = 1;
  do {
    build_sized(e, 0, 64, 20, 40, dynamic, 3, 0);
    if (e->placed.m_count >= 4 && e->placed.n_count >= 4) break;
    take_down(e);
  } while (1);
  e->placed.runtime = &held;
  e->placed.a_count = 1;
  if (shares_rows) share_rows(e);
}

/* ---- tests ----------------------------------------------------------------------------------------------------------- */

static void results_are_right(npumm_executor *executor) {
  static example e;
  slices_most = SLICES;
  for (int i = 0; i < 100; i++) {
    const int cores = within(1, CORES);
    build(&e, i / 2 % 2, cores, 0);
    e.placed.runtime = &held;
    if (i / 4 % 2) share_rows(&e);
    CHECK(call_attended(executor, &e, go_on) == 0 && wrong_sums(&e) == 0, "%d cores", cores);
    CHECK(atomic_load(&own_calls) == 0, "the caller's thread ran");
    take_down(&e);
  }
}

static void work_ends_when_the_caller_wants_it_to(npumm_executor *executor) {
  static example e;
  for (int i = 0; i < 4; i++) {
    build_long(&e, i & 1, i / 2);
    hold_up(RUN, 2); /* until the caller is asked */
    atomic_store(&runs_begun, 0);
    const int code = call_attended(executor, &e, end);
    hold_up(-1, 0);
    const int most = e.placed.m_count * e.placed.n_count, begun = atomic_load(&runs_begun);
    CHECK(code == NPUMM_INTERRUPTED, "code %d", code);
    CHECK(npumm_executor_lost(executor) == 0, "all came back");
    CHECK(atomic_load(&at_work) == 0, "a core is still at work");
    /* each other core may have been about to begin one when the caller was asked */
    const int asked_at = atomic_load(&runs_when_asked);
    CHECK(begun < asked_at + e.placed.core_count && begun < most, "%d runs, %d when the caller was asked, of %d", begun,
          asked_at, most);
    CHECK(call_attended(executor, &e, go_on) == 0 && wrong_sums(&e) == 0, "and again");
    take_down(&e);
  }
}

static void runs_that_hang_are_given_up(void) {
  static example e;
  for (int i = 0; i < 2 * FUNCTIONS; i++) {
    npumm_executor *executor = npumm_executor_create();
    build_long(&e, 1, i / FUNCTIONS);
    hold_up(i % FUNCTIONS, i / FUNCTIONS ? 0 : 1);
    const int code = call_attended(executor, &e, give_up);
    CHECK(code == NPUMM_GIVEN_UP, "code %d", code);
    if (code != NPUMM_GIVEN_UP) hold_up(-1, 0); /* the next call would wait for ever */
    else CHECK(npumm_executor_lost(executor) > 0, "nobody hangs");
    CHECK(call_attended(executor, &e, go_on) == NPUMM_GIVEN_UP, "it has no use any more");
    npumm_executor_destroy(executor); /* which waits for nobody */
    memset(out, 0x55, sizeof out);
    hold_up(-1, 0);
    while (npumm_executor_lost(executor) > 0) sched_yield();
    int touched = 0;
    for (int m = 0; m < M_MOST; m++) {
      for (int n = 0; n < N_MOST; n++) touched += out[m][n] != 0x55555555;
    }
    CHECK(touched == 0, "%d elements of the caller's were stored to", touched);
    npumm_executor_destroy(executor);
    take_down(&e);
  }
}

int main(void) {
  caller = pthread_self();
  npumm_executor *executor = npumm_executor_create();
  results_are_right(executor);
  work_ends_when_the_caller_wants_it_to(executor);
  npumm_executor_destroy(executor);
  runs_that_hang_are_given_up();
  return report("test_attended");
}
