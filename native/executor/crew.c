/*
 * Worker threads that wait for work. Whoever is free takes the next core, the caller's thread too: it does not wait for
 * a thread that has not been given a CPU yet, and with fewer CPUs than cores no core waits for a thread of its own. Only a
 * caller who attends to something else meanwhile leaves all cores to the workers. See crew.h.
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

enum { WORKERS_MOST = 16, ATTEND_MS = 100, GIVING_UP_MS = 5 };

/* Where a worker is. */
enum { AT_WORK, IN_RUNTIME, GIVEN_UP };

typedef struct {
  npumm_crew *crew;
  pthread_t thread;
  int busy; /* whether it has a core; guarded by the lock */
  atomic_int place;
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
  /* The work at hand, guarded by the lock. */
  int32_t count, next, done; /* cores that there are, the next one that nobody took yet, and those that are done */
  int quit;
  void (*work)(void *, int32_t);
  void *argument;
  /* After work was given up, guarded by the lock. */
  int abandoned;
  int32_t lost; /* workers that are in the runtime still */
  void (*release)(void *);
  void *left;
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

/* Take cores that nobody took yet, until there are none. The lock is held at the beginning and at the end. */
static void take_cores(npumm_crew *crew) {
  while (crew->next < crew->count) {
    const int32_t core = crew->next++;
    if (self) self->busy = 1;
    pthread_mutex_unlock(&crew->lock);
    crew->work(crew->argument, core); /* both stay as they are until this core is done */
    pthread_mutex_lock(&crew->lock);
    if (self) self->busy = 0;
    if (crew->abandoned) return;
    if (self) atomic_store(&self->place, AT_WORK);
    crew->done++;
  }
}

/* A run that was given up has ended after all. The lock is held. */
static void come_back(npumm_crew *crew) {
  if (crew->lost == 1 && crew->release) {
    crew->release(crew->left);
    crew->release = NULL;
  }
  crew->lost--;
}

static void *serve(void *argument) {
  self = argument;
  npumm_crew *crew = self->crew;
  pthread_mutex_lock(&crew->lock);
  while (!crew->quit && !crew->abandoned) {
    if (crew->next == crew->count) {
      pthread_cond_wait(&crew->start, &crew->lock);
      continue;
    }
    take_cores(crew);
    if (crew->done == crew->count) pthread_cond_signal(&crew->finished);
  }
  if (atomic_load(&self->place) == GIVEN_UP) come_back(crew);
  pthread_mutex_unlock(&crew->lock);
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
  int32_t lost = 0;
  crew->next = crew->count; /* what nobody took is given up too */
  for (int32_t i = 0; i < crew->started; i++) {
    int expected = IN_RUNTIME;
    atomic_int *place = &crew->workers[i].place;
    if (crew->workers[i].busy && !atomic_compare_exchange_strong(place, &expected, GIVEN_UP) && expected != GIVEN_UP) {
      return 0;
    }
    lost += crew->workers[i].busy;
  }
  crew->abandoned = 1;
  crew->lost = lost;
  pthread_cond_broadcast(&crew->start); /* the other workers end */
  return 1;
}

/* Wait until all cores are done, or given up. The lock is held at the beginning and at the end. */
static int wait_attending(npumm_crew *crew) {
  int giving_up = 0;
  while (crew->done < crew->count) {
    if (giving_up && abandon(crew)) return NPUMM_GIVEN_UP;
    const struct timespec until = giving_up ? later(now(), GIVING_UP_MS) : later(crew->attended, ATTEND_MS);
    if (pthread_cond_timedwait(&crew->finished, &crew->lock, &until) != ETIMEDOUT || giving_up) continue;
    pthread_mutex_unlock(&crew->lock);
    giving_up = asks_to_give_up(crew);
    pthread_mutex_lock(&crew->lock);
  }
  return 0;
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
  pthread_mutex_lock(&crew->lock);
  crew->work = work;
  crew->argument = argument;
  crew->count = count;
  crew->next = crew->done = 0;
  const int32_t wanted = attends ? count : count - 1;
  for (int32_t i = 0; i < wanted && i < crew->started; i++) pthread_cond_signal(&crew->start);
  int code = 0;
  if (attends) {
    code = wait_attending(crew);
  } else {
    take_cores(crew);
    while (crew->done < count) pthread_cond_wait(&crew->finished, &crew->lock);
  }
  if (!code) crew->count = crew->next = 0;
  pthread_mutex_unlock(&crew->lock);
  return code;
}

void npumm_crew_leave(npumm_crew *crew, void (*release)(void *), void *argument) {
  pthread_mutex_lock(&crew->lock);
  const int nobody = crew->lost == 0;
  if (!nobody) {
    crew->release = release;
    crew->left = argument;
  }
  pthread_mutex_unlock(&crew->lock);
  if (nobody) release(argument);
}

/* Only the thread that runs work sets it. */
int npumm_crew_is_abandoned(const npumm_crew *crew) { return crew && crew->abandoned; }

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
  crew->quit = 1;
  pthread_cond_broadcast(&crew->start);
  pthread_mutex_unlock(&crew->lock);
  for (int32_t i = 0; i < crew->started; i++) pthread_join(crew->workers[i].thread, NULL);
  pthread_cond_destroy(&crew->start);
  pthread_cond_destroy(&crew->finished);
  pthread_mutex_destroy(&crew->lock);
  free(crew);
}
