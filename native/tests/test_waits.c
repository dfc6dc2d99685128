/*
 * Whoever waits sleeps: a run that hangs or is delayed, a core's thread without work, the caller of an executor whose
 * other cores are not done. Threads of a program that spin next to them (OpenMP) then lose no CPU time to waiting. And
 * the simulator starts no threads of its own. Compile, from native/:
 *   gcc -std=c17 -O2 -Iinclude -Iexecutor -o test_waits tests/test_waits.c executor/crew.c simulator/[a-z]*.c -lpthread -lm
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <pthread.h>
#include <semaphore.h>
#include <time.h>

#include "../executor/crew.h"
#include "check.h"

static void pause_for(long milliseconds) {
  struct timespec time = {.tv_nsec = milliseconds * 1000000};
  nanosleep(&time, NULL);
}

static int64_t cpu_nanoseconds(clockid_t clock) {
  struct timespec used = {0};
  clock_gettime(clock, &used);
  return (int64_t)used.tv_sec * 1000000000 + used.tv_nsec;
}

/* Whether a thread comes to rest: for some while it uses no CPU time at all, as whoever spins or polls does. */
static bool comes_to_rest(clockid_t clock) {
  for (int attempt = 0; attempt < 300; attempt++) {
    int64_t before = cpu_nanoseconds(clock);
    pause_for(30);
    if (cpu_nanoseconds(clock) == before) return true;
  }
  return false;
}

static int threads(void) {
  DIR *tasks = opendir("/proc/self/task");
  int count = 0;
  for (struct dirent *entry; (entry = readdir(tasks));) count += entry->d_name[0] != '.';
  closedir(tasks);
  return count;
}

static void *run_once(void *context) { return (void *)(intptr_t)rknn_matmul_run(*(rknn_matmul_ctx *)context); }

static void test_runs(void) {
  int before = threads();
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 64, 512, 512, 1, 1)), "not created");
  bind_all(&mm);
  for (int i = 0; i < 10; i++) CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  CHECK_IS(threads(), before);
  static const char *const faults[] = {"run:hang", "run:delay_ms=600:times=1"};
  for (int i = 0; i < 2; i++) {
    CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_FAULTS", faults[i]), 0);
    pthread_t thread;
    clockid_t clock;
    if (pthread_create(&thread, NULL, run_once, &mm.ctx) || pthread_getcpuclockid(thread, &clock)) abort();
    CHECK(comes_to_rest(clock), "%s", faults[i]);
    CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_FAULTS", NULL), 0);
    pthread_join(thread, NULL);
  }
  close_matmul(&mm);

  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_TIMING", "realtime"), 0);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_TIMING_CONSTANTS", "start_seconds=1e9"), 0);
  CHECK(open_matmul(&mm, make_info(2, 64, 512, 512, 1, 1)), "not created");
  bind_all(&mm);
  pthread_t thread;
  clockid_t clock;
  if (pthread_create(&thread, NULL, run_once, &mm.ctx) || pthread_getcpuclockid(thread, &clock)) abort();
  CHECK(comes_to_rest(clock), "a run that takes its time");
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_TIMING", NULL), 0);
  pthread_join(thread, NULL);
  close_matmul(&mm);
}

/* ---- the executor's threads -------------------------------------------------------------------------------------- */

static npumm_crew *crew;
static pthread_t caller, worker;
static sem_t gates[2]; /* of the core that the caller's thread does, and of the other */
static sem_t both_began;

static void work(void *argument, int32_t core) {
  (void)argument, (void)core;
  int mine = !pthread_equal(pthread_self(), caller);
  if (mine == 1) worker = pthread_self();
  sem_post(&both_began);
  sem_wait(&gates[mine]);
}

static void *call(void *argument) {
  caller = pthread_self();
  npumm_crew_run(crew, 2, work, argument);
  return NULL;
}

static void test_crew(void) {
  crew = npumm_crew_create();
  sem_init(&gates[0], 0, 0);
  sem_init(&gates[1], 0, 0);
  sem_init(&both_began, 0, 0);
  pthread_t thread;
  clockid_t clock;
  if (pthread_create(&thread, NULL, call, NULL) || pthread_getcpuclockid(thread, &clock)) abort();
  sem_wait(&both_began);
  sem_wait(&both_began);
  sem_post(&gates[0]);
  CHECK(comes_to_rest(clock), "the caller waits for the other core");
  sem_post(&gates[1]);
  pthread_join(thread, NULL);
  if (pthread_getcpuclockid(worker, &clock)) abort();
  CHECK(comes_to_rest(clock), "a thread without work");
  npumm_crew_destroy(crew);
}

int main(void) {
  start_log();
  test_runs();
  test_crew();
  return report("test_waits");
}
