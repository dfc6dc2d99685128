/*
 * What npumm_sim_read_counters reports. Each function is safe from any thread.
 */
#ifndef SIM_COUNTERS_H
#define SIM_COUNTERS_H

#include <stdint.h>

typedef enum {
  COUNT_RUN,
  COUNT_SET_IO_MEM,
  COUNT_MEM_SYNC,
  COUNT_MACS,
  COUNT_INT16_OVERFLOWS, /* saturated elements of int4 runs (Q20); not part of npumm_sim_counters */
  COUNT_RESETTABLE,      /* those above are sums; those below are current values */
  NOW_CONTEXTS = COUNT_RESETTABLE,
  NOW_MEMORIES,
  NOW_DESCRIPTORS,
  NOW_BYTES,
  COUNT_ALL
} sim_counter;

void sim_count(sim_counter which, uint64_t amount);
void sim_uncount(sim_counter which, uint64_t amount);
uint64_t sim_counted(sim_counter which);

#endif
