/*
 * Profiles: as many events of products and programs as the report counts of what they tell, threads that tell at once,
 * what is not kept, profiles that begin and end while threads are at work. On the runtime of fake_npu.h. Compile:
 * gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_profile.c native/program/[a-z]*.c
 * native/executor/[a-z]*.c native/layers/[a-z]*.c native/kernels/[a-z]*.c -lm -lpthread
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_npu.h"
#include "npumatmul_profile.h"
#include "npumatmul_program.h"

enum { M = 40, K = 50, N = 55, MANY = 100000, THREADS = 4, TIMES = 50 };

static float out[M_MOST][N_MOST];
static atomic_int ended;

static npumm_call call_of(const example *e) {
  npumm_call call;
  memset(&call, 0, sizeof call);
  call.a = e->a;
  call.a_row_stride = K_MOST;
  call.a_col_stride = 1;
  call.out = out;
  call.out_row_stride = sizeof out[0];
  call.out_type = NPUMM_FLOAT32;
  return call;
}

static uint64_t of_kind(const npumm_event *events, int64_t count, int32_t kind) {
  uint64_t found = 0;
  for (int64_t i = 0; i < count; i++) found += events[i].kind == kind;
  return found;
}

/* Every step is within the call, which ends last, and says whose it is and which core's. */
static int are_within(const npumm_event *events, int64_t count, int64_t number, int32_t cores) {
  const npumm_event *call = &events[count - 1];
  if (call->kind != NPUMM_SPAN_CALL || call->core != -1) return 0;
  for (int64_t i = 0; i < count - 1; i++) {
    const npumm_event *each = &events[i];
    if (each->product != number || each->nanoseconds < 0 || each->start < call->start || each->core < 0 ||
        each->core >= cores || each->start + each->nanoseconds > call->start + call->nanoseconds) {
      return 0;
    }
  }
  return 1;
}

static int64_t macs_of(const npumm_event *events, int64_t count, int32_t kind) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; i++) sum += events[i].kind == kind ? events[i].macs : 0;
  return sum;
}

static void events_are_what_reports_count(npumm_executor *executor, int32_t cores, int shared) {
  example e;
  build_sized(&e, 0, M, K, N, 1, cores, 0);
  if (shared) share_rows(&e);
  e.placed.number = 7;
  const npumm_call call = call_of(&e);
  npumm_report report = {0};
  npumm_event *events;
  int64_t lost;
  HOLDS(npumm_profile_start(MANY) == NPUMM_OK && npumm_profile_start(MANY) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_execute(executor, &e.placed, &call, &report) == 0);
  const int64_t count = npumm_profile_stop(&events, &lost);
  HOLDS(count > 0 && lost == 0 && are_within(events, count, 7, cores));
  HOLDS(of_kind(events, count, NPUMM_SPAN_RUN) == report.run_calls);
  HOLDS(of_kind(events, count, NPUMM_SPAN_STORE) == report.run_calls);
  HOLDS(of_kind(events, count, NPUMM_SPAN_BIND) == report.set_io_mem_calls);
  HOLDS(of_kind(events, count, NPUMM_SPAN_SELECT) == report.set_dynamic_shape_calls);
  HOLDS(of_kind(events, count, NPUMM_SPAN_SYNC_A) + of_kind(events, count, NPUMM_SPAN_SYNC_C) == report.mem_sync_calls);
  HOLDS(of_kind(events, count, NPUMM_SPAN_SYNC_A) == of_kind(events, count, NPUMM_SPAN_PACK_A));
  HOLDS(macs_of(events, count, NPUMM_SPAN_RUN) == (int64_t)report.macs &&
        events[count - 1].macs == (int64_t)report.macs);
  npumm_profile_free(events);
  HOLDS(npumm_execute(executor, &e.placed, &call, &report) == 0); /* nobody wants to know */
  HOLDS(npumm_profile_stop(&events, &lost) == 0 && !events && !lost);
  take_down(&e);
}

static void what_is_too_much_is_counted(npumm_executor *executor) {
  example e;
  build_sized(&e, 0, M, K, N, 0, 1, 0);
  const npumm_call call = call_of(&e);
  npumm_report report = {0};
  npumm_event *events;
  int64_t lost;
  HOLDS(npumm_profile_start(0) == NPUMM_BAD_ARGUMENT && npumm_profile_start(MANY) == NPUMM_OK);
  HOLDS(npumm_execute(executor, &e.placed, &call, &report) == 0);
  const int64_t all = npumm_profile_stop(&events, &lost);
  npumm_profile_free(events);
  HOLDS(npumm_profile_start(3) == NPUMM_OK && npumm_execute(executor, &e.placed, &call, &report) == 0);
  HOLDS(npumm_profile_stop(&events, &lost) == 3 && lost == all - 3);
  npumm_profile_free(events);
  take_down(&e);
}

static void steps_of_programs_are_told(npumm_executor *executor) {
  npumm_rows_shape shape = {1, M, N};
  npumm_op op = {.kind = NPUMM_OP_SCALE, .shape = shape, .scale = 2.0f};
  op.x = (npumm_rows_from){&out[0][0], 0, sizeof out[0]};
  op.out = (npumm_rows_to){&out[0][0], 0, sizeof out[0]};
  npumm_report report = {0};
  npumm_run run = {.stop = 1, .threads = 1};
  npumm_event *events;
  int64_t lost;
  HOLDS(npumm_profile_start(MANY) == NPUMM_OK && npumm_program_run(executor, &op, &run, &report) == 0);
  op.kind = (npumm_op_kind)77;
  HOLDS(npumm_op_run(&op, 0) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_profile_stop(&events, &lost) == 2 && events[0].kind == NPUMM_SPAN_STEP + NPUMM_OP_SCALE);
  HOLDS(events[0].bytes == 2 * M * N * 4 && events[1].kind == NPUMM_SPAN_PROGRAM);
  npumm_profile_free(events);
}

static void *scale_rows(void *unused) {
  (void)unused;
  float rows[8] = {0}, scaled[8];
  npumm_op op = {.kind = NPUMM_OP_SCALE, .shape = {1, 1, 8}, .scale = 2.0f};
  op.x = (npumm_rows_from){rows, 0, sizeof rows};
  op.out = (npumm_rows_to){scaled, 0, sizeof scaled};
  for (int i = 0; i < TIMES; i++) (void)npumm_op_run(&op, 0);
  atomic_fetch_add(&ended, 1);
  return NULL;
}

/* Once while one profile is on, and then while profiles come and go: nothing is lost, and nothing stays. */
static void threads_tell_at_once(void) {
  npumm_event *events;
  int64_t lost;
  for (int one = 1; one >= 0; one--) {
    pthread_t threads[THREADS];
    atomic_store(&ended, 0);
    if (one) HOLDS(npumm_profile_start(MANY) == NPUMM_OK);
    for (int i = 0; i < THREADS; i++) {
      if (pthread_create(&threads[i], NULL, scale_rows, NULL) != 0) abort();
    }
    while (!one && atomic_load(&ended) < THREADS) {
      if (npumm_profile_start(MANY) != NPUMM_OK) abort();
      const int64_t count = npumm_profile_stop(&events, &lost);
      if (count < 0 || count > THREADS * TIMES) abort();
      npumm_profile_free(events);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    const int64_t count = npumm_profile_stop(&events, &lost);
    HOLDS(count == (one ? THREADS * TIMES : 0) && lost == 0);
    int64_t threads_seen = 0;
    for (int64_t i = 0; i < count; i++) {
      int64_t before = 0;
      while (before < i && events[before].thread != events[i].thread) before++;
      threads_seen += before == i;
    }
    HOLDS(threads_seen == (one ? THREADS : 0));
    npumm_profile_free(events);
  }
}

/* A forked child is not measured by its parent's profile, and has none that it could end. */
static void children_have_none(void) {
  npumm_event *events;
  int64_t lost;
  HOLDS(npumm_profile_start(MANY) == NPUMM_OK);
  const pid_t child = fork();
  if (child == 0) {
    scale_rows(NULL);
    _exit(npumm_profile_stop(&events, &lost) == 0 && !events ? 0 : 1);
  }
  int status = -1;
  HOLDS(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  HOLDS(npumm_profile_stop(&events, &lost) == 0);
  npumm_profile_free(events);
}

int main(void) {
  npumm_executor *executor = npumm_executor_create();
  events_are_what_reports_count(executor, 1, 0);
  events_are_what_reports_count(executor, CORES, 0);
  events_are_what_reports_count(executor, CORES, 1);
  what_is_too_much_is_counted(executor);
  steps_of_programs_are_told(executor);
  npumm_executor_destroy(executor);
  threads_tell_at_once();
  children_have_none();
  return report("test_profile");
}
