/*
 * Whoever waits sleeps: a run that hangs or is delayed, and after a number of spins that is bounded a core's thread without
 * work, and the caller of an executor whose other cores are not done. Nobody spins without a processor for it, nor again
 * and again in vain. Threads of a program that spin next to them (OpenMP) then lose next to no CPU time to waiting. And the
 * simulator starts no threads of its own. Compile, from native/:
 *   gcc -std=c17 -O2 -Iinclude -Iexecutor -o test_waits tests/test_waits.c executor/crew.c executor/spin.c
 *   simulator/[a-z]*.c -lpthread -lm
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <semaphore.h>
#include <sys/wait.h>
#include <time.h>

#include "../executor/crew.h"
#include "../executor/spin.h"
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
  int64_t before = npumm_spins();
  if (pthread_create(&thread, NULL, call, NULL) || pthread_getcpuclockid(thread, &clock)) abort();
  sem_wait(&both_began);
  sem_wait(&both_began);
  sem_post(&gates[0]);
  CHECK(comes_to_rest(clock), "the caller waits for the other core");
  sem_post(&gates[1]);
  pthread_join(thread, NULL);
  if (pthread_getcpuclockid(worker, &clock)) abort();
  CHECK(comes_to_rest(clock), "a thread without work");
  /* three waits: the worker's for work, the caller's for the worker, the worker's for more work */
  CHECK(npumm_spins() - before <= 3 * NPUMM_SPINS_MOST, "%lld spins", (long long)(npumm_spins() - before));
  npumm_crew_destroy(crew);
}

/* ---- spinning ---------------------------------------------------------------------------------------------------- */

static int asked;

/* Comes when it is asked for the `at`-th time; never for 0. */
static int comes(void *at) { return ++asked == *(int *)at; }

static int64_t spins_of(npumm_spinner *spinner, int at, int has_come) {
  int64_t before = npumm_spins();
  asked = 0;
  CHECK_IS(npumm_spin(spinner, comes, &at), has_come);
  return npumm_spins() - before;
}

static void nothing(void *argument, int32_t core) { (void)argument, (void)core; }

static void test_spins(void) {
  npumm_spinner spinner = {0};
  npumm_pretend_processors(2);
  npumm_workers_awake(1);
  CHECK_IS(spins_of(&spinner, 1, 1), 0);
  CHECK_IS(spins_of(&spinner, 5, 1), 4);
  CHECK_IS(spins_of(&spinner, NPUMM_SPINS_MOST + 1, 1), NPUMM_SPINS_MOST);
  CHECK_IS(spins_of(&spinner, 0, 0), NPUMM_SPINS_MOST);
  /* in vain: 1, then 3, 7, 15, 31, 63, 63 waits sleep at once */
  CHECK_IS(spins_of(&spinner, 0, 0), 0);
  CHECK_IS(spins_of(&spinner, 0, 0), NPUMM_SPINS_MOST);
  int64_t all = 0;
  for (int i = 0; i < 1000; i++) all += spins_of(&spinner, 0, 0);
  CHECK(all > 0 && all <= 20 * NPUMM_SPINS_MOST, "%lld spins", (long long)all);
  CHECK_IS(spins_of(&spinner, 1, 1), 0); /* what is there already is no success of spinning */
  int64_t again = 0;
  for (int i = 0; i < 64 && !again; i++) again = spins_of(&spinner, 0, 0);
  CHECK_IS(again, NPUMM_SPINS_MOST);
  for (int i = 0; i < 63; i++) CHECK_IS(spins_of(&spinner, 0, 0), 0);
  CHECK_IS(spins_of(&spinner, 9, 1), 8);
  CHECK_IS(spins_of(&spinner, 9, 1), 8); /* after one success as at the beginning */

  npumm_workers_awake(1); /* two workers, and who calls them */
  CHECK_IS(spins_of(&spinner, 0, 0), 0);
  npumm_pretend_processors(3);
  CHECK_IS(spins_of(&spinner, 9, 1), 8);
  npumm_callers(1);
  CHECK_IS(spins_of(&spinner, 9, 1), 8);
  npumm_callers(1);
  CHECK_IS(spins_of(&spinner, 0, 0), 0);
  pid_t child = fork(); /* which has no workers */
  if (child == 0) {
    npumm_workers_awake(1);
    npumm_pretend_processors(2);
    _exit(spins_of(&spinner, 9, 1) != 8);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK_IS(status, 0);
  npumm_callers(-2);
  npumm_workers_awake(-2);

  npumm_pretend_processors(1);
  npumm_crew *alone = npumm_crew_create();
  int64_t before = npumm_spins();
  for (int i = 0; i < 100; i++) CHECK_IS(npumm_crew_run(alone, 3, nothing, NULL), 0);
  npumm_crew_destroy(alone);
  CHECK_IS(npumm_spins() - before, 0);
  npumm_pretend_processors(0);
}

/* ---- many calls, one after the other ----------------------------------------------------------------------------- */

enum { CORES = 5 };
static atomic_int entered[CORES];

static void enter(void *argument, int32_t core) { atomic_fetch_add(&entered[core], *(int *)argument); }

/* Each core is done once in every call, with the argument of that call, whether threads spin or sleep between them. */
static void test_calls(void) {
  for (int processors = 1; processors <= 8; processors += 7) {
    npumm_pretend_processors(processors);
    npumm_crew *many = npumm_crew_create();
    int sum[CORES] = {0};
    for (int i = 0; i < 3000; i++) {
      int count = 1 + i % CORES;
      CHECK_IS(npumm_crew_run(many, count, enter, &i), 0);
      for (int core = 0; core < count; core++) sum[core] += i;
      for (int core = 0; core < CORES; core++) CHECK_IS(atomic_load(&entered[core]), sum[core]);
      if (i % 500 == 0) pause_for(2);
    }
    npumm_crew_destroy(many);
    for (int core = 0; core < CORES; core++) atomic_store(&entered[core], 0);
  }
  npumm_pretend_processors(0);
}

int main(void) {
  start_log();
  test_runs();
  test_crew();
  test_spins();
  test_calls();
  return report("test_waits");
}
