/*
 * NPUMATMUL_SIM_TIMING=realtime: a run lasts at least as long as it is modelled to, by the wall clock.
 *
 * Here it does matter what happens at the same moment: while runs are on several cores they share the memory, and on one
 * core they share the core. A run ends when the shares of its time that went by add up to 1. Setting NPUMATMUL_SIM_TIMING
 * anew lets all runs go that have begun, and with another value than realtime none waits any more.
 */
#ifndef SIM_PACE_H
#define SIM_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "context.h"

typedef struct sim_pace {
  int chip, core;
  bool waits;                    /* else nothing of this counts */
  double seconds[SIM_CORES_MAX]; /* that it takes, by how many cores are at work, less one */
  double done;                   /* what of it went by before `since` */
  int64_t since;
  uint64_t began;        /* how often all had been let go */
  struct sim_pace *next; /* of all that are going on, guarded by LOCK_PACE */
} sim_pace;

void sim_pace_begin(sim_pace *pace, const sim_context *context, int core);

/* Waits for what is left. */
void sim_pace_end(sim_pace *pace);

/* Ends the waiting of all that have begun; whether others may wait from now on. */
void sim_pace_set(bool may_wait);

#endif
