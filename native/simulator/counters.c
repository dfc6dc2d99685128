#include "counters.h"

#include <stdatomic.h>
#include <stddef.h>

#include "export.h"
#include "npumatmul_sim.h"

/* Relaxed order: the numbers are statistics and guard nothing. */
static _Atomic uint64_t values[COUNT_ALL];

void sim_count(sim_counter which, uint64_t amount) {
  atomic_fetch_add_explicit(&values[which], amount, memory_order_relaxed);
}

void sim_uncount(sim_counter which, uint64_t amount) {
  atomic_fetch_sub_explicit(&values[which], amount, memory_order_relaxed);
}

uint64_t sim_counted(sim_counter which) { return atomic_load_explicit(&values[which], memory_order_relaxed); }

SIM_EXPORT void npumm_sim_read_counters(npumm_sim_counters *counters) {
  if (!counters) return;
  *counters = (npumm_sim_counters){
      .run_calls = sim_counted(COUNT_RUN),
      .set_io_mem_calls = sim_counted(COUNT_SET_IO_MEM),
      .mem_sync_calls = sim_counted(COUNT_MEM_SYNC),
      .macs = sim_counted(COUNT_MACS),
      .contexts_now = sim_counted(NOW_CONTEXTS),
      .memories_now = sim_counted(NOW_MEMORIES),
      .descriptors_now = sim_counted(NOW_DESCRIPTORS),
      .bytes_now = sim_counted(NOW_BYTES),
  };
}

SIM_EXPORT void npumm_sim_reset_counters(void) {
  for (int i = 0; i < COUNT_RESETTABLE; i++) atomic_store_explicit(&values[i], 0, memory_order_relaxed);
}
