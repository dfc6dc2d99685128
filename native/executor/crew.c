/*
 * Worker threads that wait for work. Whoever is free takes the next core, the caller's thread too: it does not wait for
 * a thread that has not been given a CPU yet, and with fewer CPUs than cores no core waits for a thread of its own.
 * See crew.h.
 */
#define _GNU_SOURCE
#include "crew.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

enum { WORKERS_MOST = 15 };

struct npumm_crew {
  pid_t owner;
  pthread_mutex_t lock;
  pthread_cond_t start, finished;
  pthread_t workers[WORKERS_MOST];
  int32_t started; /* workers that there are */
  /* The work at hand, guarded by the lock. */
  int32_t count, next, done; /* cores that there are, the next one that nobody took yet, and those that are done */
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
  pthread_cond_init(&crew->finished, NULL);
  return crew;
}

/* Take cores that nobody took yet, until there are none. The lock is held at the beginning and at the end. */
static void take_cores(npumm_crew *crew) {
  while (crew->next < crew->count) {
    const int32_t core = crew->next++;
    pthread_mutex_unlock(&crew->lock);
    crew->work(crew->argument, core); /* both stay as they are until this core is done */
    pthread_mutex_lock(&crew->lock);
    crew->done++;
  }
}

static void *serve(void *argument) {
  npumm_crew *crew = argument;
  pthread_mutex_lock(&crew->lock);
  while (!crew->quit) {
    if (crew->next == crew->count) {
      pthread_cond_wait(&crew->start, &crew->lock);
      continue;
    }
    take_cores(crew);
    if (crew->done == crew->count) pthread_cond_signal(&crew->finished);
  }
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
    if (pthread_create(&crew->workers[crew->started], NULL, serve, crew) != 0) break;
    crew->started++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void npumm_crew_run(npumm_crew *crew, int32_t count, void (*work)(void *, int32_t), void *argument) {
  const int has_threads = count > 1 && crew && crew->owner == getpid();
  if (has_threads) start_workers(crew, count - 1);
  if (!has_threads || crew->started == 0) {
    for (int32_t core = 0; core < count; core++) work(argument, core);
    return;
  }
  pthread_mutex_lock(&crew->lock);
  crew->work = work;
  crew->argument = argument;
  crew->count = count;
  crew->next = crew->done = 0;
  for (int32_t i = 0; i < count - 1 && i < crew->started; i++) pthread_cond_signal(&crew->start);
  take_cores(crew);
  while (crew->done < count) pthread_cond_wait(&crew->finished, &crew->lock);
  crew->count = crew->next = 0;
  pthread_mutex_unlock(&crew->lock);
}

void npumm_crew_destroy(npumm_crew *crew) {
  if (!crew || crew->owner != getpid()) return;
  pthread_mutex_lock(&crew->lock);
  crew->quit = 1;
  pthread_cond_broadcast(&crew->start);
  pthread_mutex_unlock(&crew->lock);
  for (int32_t i = 0; i < crew->started; i++) pthread_join(crew->workers[i], NULL);
  pthread_cond_destroy(&crew->start);
  pthread_cond_destroy(&crew->finished);
  pthread_mutex_destroy(&crew->lock);
  free(crew);
}
