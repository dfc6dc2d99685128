/*
 * Counting. report.c tells callers what was counted. Each function is safe from any thread.
 */
#ifndef SIM_COUNTERS_H
#define SIM_COUNTERS_H

#include <stdint.h>

#include "functions.h"

typedef enum {
  COUNT_SATURATIONS, /* results that did not fit into int16 or int8 (Q20) */
  COUNT_FATAL_ROWS,  /* creates of int4 with more rows than a vendor's runtime is known to survive */
  COUNT_A_READ,      /* bytes */
  COUNT_B_READ,
  COUNT_C_WRITTEN,
  COUNT_B_PACKED,  /* by set_io_mem into hidden copies */
  COUNT_TO_DEVICE, /* by synchronisation, asked for or automatic; 0 unless memory is strict */
  COUNT_FROM_DEVICE,
  COUNT_RESETTABLE, /* those above are sums; those below are current values */
  NOW_MEMORIES = COUNT_RESETTABLE,
  NOW_DESCRIPTORS,
  NOW_BYTES,
  COUNT_ALL
} sim_counter;

void sim_count(sim_counter which, uint64_t amount);
void sim_uncount(sim_counter which, uint64_t amount);
uint64_t sim_counted(sim_counter which);

void sim_count_call(sim_call call);
void sim_count_failure(sim_call call);
uint64_t sim_calls_counted(sim_call call);
uint64_t sim_failures_counted(sim_call call);

/* type is a number of rknn_matmul_type. */
void sim_count_macs(int chip, int type, int core, uint64_t amount);
uint64_t sim_macs_counted(int chip, int type, int core);

/* Sums and calls become 0; current values stay. */
void sim_counters_reset(void);

#endif
