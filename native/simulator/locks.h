/*
 * All locks of the library but those inside of memories. A fork waits until none of them is held, so that a child finds
 * everything whole and may use the library, with contexts and memories of its own.
 */
#ifndef SIM_LOCKS_H
#define SIM_LOCKS_H

#include <pthread.h>

/* In the order in which they may be taken while others are held. */
typedef enum {
  LOCK_SETTINGS, /* while it is held, a setting may change faults or the trace */
  LOCK_FAULTS,
  LOCK_TRACE,
  LOCK_CONTEXTS,
  LOCK_MEMORIES,
  LOCK_BACKINGS,
  LOCK_CORES,
  LOCK_CLOCK,
  LOCK_PACE,
  LOCK_SCRATCH,
  LOCKS
} sim_lock;

void sim_take(sim_lock which);
void sim_give(sim_lock which);

/* Gives a lock that is held, waits, and takes it again. */
void sim_wait(pthread_cond_t *until, sim_lock which);

/* The same, but not beyond a moment of the condition's clock. */
void sim_wait_until(pthread_cond_t *until, sim_lock which, const struct timespec *moment);

#endif
