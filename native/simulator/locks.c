#include "locks.h"

#define UNLOCKED PTHREAD_MUTEX_INITIALIZER

static pthread_mutex_t locks[LOCKS] = {UNLOCKED, UNLOCKED, UNLOCKED, UNLOCKED, UNLOCKED,
                                       UNLOCKED, UNLOCKED, UNLOCKED, UNLOCKED, UNLOCKED};

void sim_take(sim_lock which) { pthread_mutex_lock(&locks[which]); }

void sim_give(sim_lock which) { pthread_mutex_unlock(&locks[which]); }

void sim_wait(pthread_cond_t *until, sim_lock which) { pthread_cond_wait(until, &locks[which]); }

void sim_wait_until(pthread_cond_t *until, sim_lock which, const struct timespec *moment) {
  pthread_cond_timedwait(until, &locks[which], moment);
}

static void take_all(void) {
  for (int i = 0; i < LOCKS; i++) sim_take((sim_lock)i);
}

static void give_all(void) {
  for (int i = LOCKS; i-- > 0;) sim_give((sim_lock)i);
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(take_all, give_all, give_all); }
