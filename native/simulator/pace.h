/*
 * NPUMATMUL_SIM_TIMING=realtime: a run lasts at least as long as it is modelled to, by the wall clock.
 *
 * Here it does matter what happens at the same moment: while runs are on several cores they share the memory, and on one
 * core they share the core. A run ends when the shares of its time that went by add up to 1. Where setting
 * NPUMATMUL_SIM_TIMING anew lets runs go, they end at once.
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
  struct sim_pace *next; /* of all that are going on, guarded by LOCK_PACE */
} sim_pace;

void sim_pace_begin(sim_pace *pace, const sim_context *context, int core);

/* Waits for what is left. */
void sim_pace_end(sim_pace *pace);

/* Ends the waiting of all that are going on. */
void sim_pace_let_go(void);

#endif
