/* Worker threads that wait for work of their core. See crew.h. */
#define _GNU_SOURCE
#include "crew.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

enum { WORKERS_MOST = 15 };

typedef struct {
  npumm_crew *crew;
  int32_t core;
  pthread_t thread;
} worker;

struct npumm_crew {
  pid_t owner;
  pthread_mutex_t lock;
  pthread_cond_t start, done;
  worker workers[WORKERS_MOST];
  int32_t started; /* workers that there are */
  /* The work at hand, guarded by the lock. */
  uint64_t generation; /* how often there was some */
  int32_t count, pending;
  int quit;
  void (*work)(void *, int32_t);
  void *argument;
};

npumm_crew *npumm_crew_create(void) {
  npumm_crew *crew = calloc(1, sizeof *crew);
  if (!crew) return NULL;
  crew->owner = getpid();
  pthread_mutex_init(&crew->lock, NULL);
  pthread_cond_init(&crew->start, NULL);
  pthread_cond_init(&crew->done, NULL);
  return crew;
}

static void *serve(void *argument) {
  const worker *self = argument;
  npumm_crew *crew = self->crew;
  uint64_t seen = 0;
  pthread_mutex_lock(&crew->lock);
  for (;;) {
    while (!crew->quit && (crew->generation == seen || self->core >= crew->count)) {
      pthread_cond_wait(&crew->start, &crew->lock);
    }
    if (crew->quit) break;
    seen = crew->generation;
    pthread_mutex_unlock(&crew->lock);
    crew->work(crew->argument, self->core); /* both stay as they are until this worker is done */
    pthread_mutex_lock(&crew->lock);
    if (--crew->pending == 0) pthread_cond_signal(&crew->done);
  }
  pthread_mutex_unlock(&crew->lock);
  return NULL;
}

/* Signals are for the threads of the program: the workers block them all. */
static void start_workers(npumm_crew *crew, int32_t wanted) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (crew->started < wanted && crew->started < WORKERS_MOST) {
    worker *next = &crew->workers[crew->started];
    next->crew = crew;
    next->core = crew->started + 1;
    if (pthread_create(&next->thread, NULL, serve, next) != 0) break;
    crew->started++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void npumm_crew_run(npumm_crew *crew, int32_t count, void (*work)(void *, int32_t), void *argument) {
  int32_t served = 1; /* cores that have a thread */
  if (count > 1 && crew && crew->owner == getpid()) {
    start_workers(crew, count - 1);
    served = crew->started + 1 < count ? crew->started + 1 : count;
  }
  if (served > 1) {
    pthread_mutex_lock(&crew->lock);
    crew->work = work;
    crew->argument = argument;
    crew->count = served;
    crew->pending = served - 1;
    crew->generation++;
    pthread_cond_broadcast(&crew->start);
    pthread_mutex_unlock(&crew->lock);
  }
  work(argument, 0);
  for (int32_t core = served; core < count; core++) work(argument, core);
  if (served > 1) {
    pthread_mutex_lock(&crew->lock);
    while (crew->pending > 0) pthread_cond_wait(&crew->done, &crew->lock);
    crew->count = 0;
    pthread_mutex_unlock(&crew->lock);
  }
}

void npumm_crew_destroy(npumm_crew *crew) {
  if (!crew || crew->owner != getpid()) return;
  pthread_mutex_lock(&crew->lock);
  crew->quit = 1;
  pthread_cond_broadcast(&crew->start);
  pthread_mutex_unlock(&crew->lock);
  for (int32_t i = 0; i < crew->started; i++) pthread_join(crew->workers[i].thread, NULL);
  pthread_cond_destroy(&crew->start);
  pthread_cond_destroy(&crew->done);
  pthread_mutex_destroy(&crew->lock);
  free(crew);
}
