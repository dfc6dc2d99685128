/*
 * Worker threads that wait for work: they spin for a short while (spin.h), then they sleep. Whoever is free takes the next
 * core, the caller's thread too: it does not wait for a thread that has not been given a CPU yet, and with fewer CPUs than
 * cores no core waits for a thread of its own. Only a caller who attends to something else meanwhile leaves all cores to
 * the workers. Cores are taken and handed back without the lock, which is for going to sleep, waking, and giving up. See
 * crew.h.
 */
#define _GNU_SOURCE
#include "crew.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "npumatmul_kernels.h"
#include "spin.h"

enum { WORKERS_MOST = 16, ATTEND_MS = 100, GIVING_UP_MS = 5 };

/* Where a worker is. */
enum { WAITING, AT_WORK, IN_RUNTIME, GIVEN_UP };

typedef struct {
  npumm_crew *crew;
  pthread_t thread;
  atomic_int place; /* other than WAITING while it has a core */
  npumm_spinner spinner;
} worker;

struct npumm_crew {
  pid_t owner;
  pthread_mutex_t lock;
  pthread_cond_t start, finished;
  worker workers[WORKERS_MOST];
  int32_t started; /* workers that there are */
  int (*attend)(void);
  struct timespec attended; /* when it was asked last */
  atomic_int ended;
  /* The work at hand: as it is until all its cores are done. */
  void (*work)(void *, int32_t);
  void *argument;
  int32_t count;
  atomic_uint_fast64_t
      offered;     /* a number that is new with each work, and in the lower half cores that nobody took yet */
  atomic_int left; /* cores that are not done */
  /* Who has to be woken. */
  atomic_int sleeping, spinning, caller_sleeps;
  npumm_spinner spinner; /* the caller's */
  atomic_int quit, abandoned;
  /* After work was given up, guarded by the lock. */
  int32_t lost; /* workers that are in the runtime still */
  void (*release)(void *);
  void *left_behind;
};

/* The worker that a thread is, or NULL. */
static _Thread_local worker *self;

npumm_crew *npumm_crew_create(void) {
  npumm_crew *crew = calloc(1, sizeof *crew);
  if (!crew) return NULL;
  crew->owner = getpid();
  pthread_mutex_init(&crew->lock, NULL);
  pthread_cond_init(&crew->start, NULL);
  pthread_condattr_t monotonic;
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&crew->finished, &monotonic);
  pthread_condattr_destroy(&monotonic);
  return crew;
}

/* ---- working ------------------------------------------------------------------------------------------------------ */

void npumm_crew_depart(void) {
  if (self) atomic_store(&self->place, IN_RUNTIME);
}

int npumm_crew_return(void) {
  int expected = IN_RUNTIME;
  return self && !atomic_compare_exchange_strong(&self->place, &expected, AT_WORK);
}

/* The next core that nobody took yet, or -1. */
static int32_t take_core(npumm_crew *crew) {
  uint_fast64_t offered = atomic_load(&crew->offered);
  while ((uint32_t)offered > 0) {
    if (atomic_compare_exchange_weak(&crew->offered, &offered, offered - 1)) {
      return crew->count - (int32_t)(uint32_t)offered;
    }
  }
  return -1;
}

/* A run that was given up has ended after all. The lock is held. */
static void come_back(npumm_crew *crew) {
  if (crew->lost == 1 && crew->release) {
    crew->release(crew->left_behind);
    crew->release = NULL;
  }
  crew->lost--;
}

/* Whether work was given up while a worker, which was told so, was in it. */
static int was_abandoned(npumm_crew *crew) {
  pthread_mutex_lock(&crew->lock);
  const int abandoned = atomic_load(&crew->abandoned);
  if (abandoned) come_back(crew);
  else atomic_store(&self->place, WAITING); /* others were not in the runtime: the work ends in the usual way */
  pthread_mutex_unlock(&crew->lock);
  return abandoned;
}

/* Wake who sleeps. Nobody is between looking for what it waits for and going to sleep while the lock is held. */
static void wake(npumm_crew *crew, pthread_cond_t *who, int32_t count) {
  pthread_mutex_lock(&crew->lock);
  pthread_mutex_unlock(&crew->lock);
  for (int32_t i = 0; i < count; i++) pthread_cond_signal(who);
}

/* Take cores until there are none. */
static void take_cores(npumm_crew *crew) {
  for (int32_t core; (core = take_core(crew)) >= 0;) {
    if (self) atomic_store(&self->place, AT_WORK);
    crew->work(crew->argument, core);
    int expected = AT_WORK;
    if (self && !atomic_compare_exchange_strong(&self->place, &expected, WAITING) && was_abandoned(crew)) return;
    if (atomic_fetch_sub(&crew->left, 1) == 1 && atomic_load(&crew->caller_sleeps)) wake(crew, &crew->finished, 1);
  }
}

/* What workers wait for. */
static int has_news(void *argument) {
  npumm_crew *crew = argument;
  return (uint32_t)atomic_load(&crew->offered) > 0 || atomic_load(&crew->quit) || atomic_load(&crew->abandoned);
}

static void wait_for_news(npumm_crew *crew) {
  atomic_fetch_add(&crew->spinning, 1);
  const int came = npumm_spin(&self->spinner, has_news, crew);
  atomic_fetch_sub(&crew->spinning, 1);
  if (came) return;
  pthread_mutex_lock(&crew->lock);
  npumm_workers_awake(-1);
  atomic_fetch_add(&crew->sleeping, 1);
  while (!has_news(crew)) pthread_cond_wait(&crew->start, &crew->lock);
  atomic_fetch_sub(&crew->sleeping, 1);
  npumm_workers_awake(1);
  pthread_mutex_unlock(&crew->lock);
}

static void *serve(void *argument) {
  self = argument;
  npumm_crew *crew = self->crew;
  npumm_workers_awake(1);
  while (!atomic_load(&crew->quit) && !atomic_load(&crew->abandoned)) {
    take_cores(crew);
    wait_for_news(crew);
  }
  npumm_workers_awake(-1);
  return NULL;
}

/* Signals are for the threads of the program: the workers block them all. */
static void start_workers(npumm_crew *crew, int32_t wanted) {
  if (crew->started >= wanted) return;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (crew->started < wanted && crew->started < WORKERS_MOST) {
    worker *next = &crew->workers[crew->started];
    next->crew = crew;
    if (pthread_create(&next->thread, NULL, serve, next) != 0) break;
    crew->started++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ---- attending ---------------------------------------------------------------------------------------------------- */

static struct timespec now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time;
}

static struct timespec later(struct timespec time, long milliseconds) {
  time.tv_nsec += milliseconds * 1000000;
  time.tv_sec += time.tv_nsec / 1000000000;
  time.tv_nsec %= 1000000000;
  return time;
}

static int is_before(struct timespec one, struct timespec other) {
  return one.tv_sec != other.tv_sec ? one.tv_sec < other.tv_sec : one.tv_nsec < other.tv_nsec;
}

void npumm_crew_attend(npumm_crew *crew, int (*attend)(void)) {
  if (!crew) return;
  crew->attend = attend;
  atomic_store(&crew->ended, 0);
  if (attend) crew->attended = now();
}

int npumm_crew_is_ended(const npumm_crew *crew) {
  if (!crew && self) crew = self->crew;
  return crew && atomic_load(&crew->ended);
}

/* Ask, where it is time; whether runs are to be given up. No lock is held. */
static int asks_to_give_up(npumm_crew *crew) {
  if (is_before(now(), later(crew->attended, ATTEND_MS))) return 0;
  const int answer = crew->attend();
  crew->attended = now();
  if (answer) atomic_store(&crew->ended, 1);
  return answer > 1;
}

/*
 * Give up all cores that are not done, if their workers are all in the runtime; those who are not will soon be done. The
 * lock is held.
 */
static int abandon(npumm_crew *crew) {
  const uint_fast64_t offered = atomic_load(&crew->offered);
  uint_fast64_t expected_offer = offered;
  const int32_t untaken = (int32_t)(uint32_t)offered;
  if (!atomic_compare_exchange_strong(&crew->offered, &expected_offer, offered - (uint32_t)untaken)) return 0;
  atomic_fetch_sub(&crew->left, untaken); /* what nobody took is given up too */
  int32_t lost = 0;
  for (int32_t i = 0; i < crew->started; i++) {
    int expected = IN_RUNTIME;
    lost += atomic_compare_exchange_strong(&crew->workers[i].place, &expected, GIVEN_UP) || expected == GIVEN_UP;
  }
  if (lost == 0 || lost < atomic_load(&crew->left)) return 0; /* done by now, or somebody is not in the runtime */
  atomic_store(&crew->abandoned, 1);
  crew->lost = lost;
  pthread_cond_broadcast(&crew->start); /* the other workers end */
  return 1;
}

static int is_done(void *crew) { return atomic_load(&((npumm_crew *)crew)->left) == 0; }

/* Wait until all cores are done, or given up. The lock is held at the beginning and at the end. */
static int sleep_attending(npumm_crew *crew) {
  int giving_up = 0;
  while (!is_done(crew)) {
    if (giving_up && abandon(crew)) return NPUMM_GIVEN_UP;
    const struct timespec until = giving_up ? later(now(), GIVING_UP_MS) : later(crew->attended, ATTEND_MS);
    if (is_done(crew)) return 0; /* by what nobody took being given up */
    if (pthread_cond_timedwait(&crew->finished, &crew->lock, &until) != ETIMEDOUT || giving_up) continue;
    pthread_mutex_unlock(&crew->lock);
    giving_up = asks_to_give_up(crew);
    pthread_mutex_lock(&crew->lock);
  }
  return 0;
}

/* Wait until all cores are done or, where the caller attends, given up. */
static int wait_for_workers(npumm_crew *crew) {
  if (npumm_spin(&crew->spinner, is_done, crew)) return 0;
  int code = 0;
  pthread_mutex_lock(&crew->lock);
  atomic_store(&crew->caller_sleeps, 1);
  if (crew->attend) code = sleep_attending(crew);
  while (!code && !is_done(crew)) pthread_cond_wait(&crew->finished, &crew->lock);
  atomic_store(&crew->caller_sleeps, 0);
  pthread_mutex_unlock(&crew->lock);
  return code;
}

/* ---- for the executor --------------------------------------------------------------------------------------------- */

int npumm_crew_run(npumm_crew *crew, int32_t count, void (*work)(void *, int32_t), void *argument) {
  const int is_ours = crew && crew->owner == getpid(), attends = is_ours && crew->attend != NULL;
  if (is_ours && count > !attends) start_workers(crew, attends ? count : count - 1);
  if (attends) (void)asks_to_give_up(crew); /* nothing is going on yet that could be given up */
  if (!is_ours || count <= !attends || crew->started == 0) {
    for (int32_t core = 0; core < count; core++) work(argument, core);
    return 0;
  }
  crew->work = work;
  crew->argument = argument;
  crew->count = count;
  atomic_store(&crew->left, count);
  const uint_fast64_t number = (atomic_load(&crew->offered) >> 32) + 1;
  npumm_callers(1);
  atomic_store(&crew->offered, number << 32 | (uint32_t)count);
  const int32_t wanted = (attends ? count : count - 1) - atomic_load(&crew->spinning);
  const int32_t sleeping = atomic_load(&crew->sleeping);
  if (wanted > 0 && sleeping > 0) wake(crew, &crew->start, wanted < sleeping ? wanted : sleeping);
  if (!attends) take_cores(crew);
  const int code = wait_for_workers(crew);
  npumm_callers(-1);
  return code;
}

void npumm_crew_leave(npumm_crew *crew, void (*release)(void *), void *argument) {
  pthread_mutex_lock(&crew->lock);
  const int nobody = crew->lost == 0;
  if (!nobody) {
    crew->release = release;
    crew->left_behind = argument;
  }
  pthread_mutex_unlock(&crew->lock);
  if (nobody) release(argument);
}

/* Only the thread that runs work sets it. */
int npumm_crew_is_abandoned(const npumm_crew *crew) { return crew && atomic_load(&crew->abandoned); }

int32_t npumm_crew_lost(npumm_crew *crew) {
  if (crew->owner != getpid()) return 0;
  pthread_mutex_lock(&crew->lock);
  const int32_t lost = crew->lost;
  pthread_mutex_unlock(&crew->lock);
  return lost;
}

void npumm_crew_destroy(npumm_crew *crew) {
  if (!crew || crew->owner != getpid() || npumm_crew_lost(crew) > 0) return;
  pthread_mutex_lock(&crew->lock);
  atomic_store(&crew->quit, 1);
  pthread_cond_broadcast(&crew->start);
  pthread_mutex_unlock(&crew->lock);
  for (int32_t i = 0; i < crew->started; i++) pthread_join(crew->workers[i].thread, NULL);
  pthread_cond_destroy(&crew->start);
  pthread_cond_destroy(&crew->finished);
  pthread_mutex_destroy(&crew->lock);
  free(crew);
}
