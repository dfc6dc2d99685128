#include "counters.h"

#include <stdatomic.h>
#include <stddef.h>

#include "chips.h"

/* Relaxed order: the numbers are statistics and guard nothing. */
static _Atomic uint64_t values[COUNT_ALL];
static _Atomic uint64_t calls[CALLS], failures[CALLS];
static _Atomic uint64_t macs[SIM_CHIPS][SIM_TYPES_MAX][SIM_CORES_MAX];

static void add(_Atomic uint64_t *to, uint64_t amount) { atomic_fetch_add_explicit(to, amount, memory_order_relaxed); }

static uint64_t get(_Atomic uint64_t *of) { return atomic_load_explicit(of, memory_order_relaxed); }

void sim_count(sim_counter which, uint64_t amount) { add(&values[which], amount); }

void sim_uncount(sim_counter which, uint64_t amount) { add(&values[which], -amount); }

uint64_t sim_counted(sim_counter which) { return get(&values[which]); }

void sim_count_call(sim_call call) { add(&calls[call], 1); }

void sim_count_failure(sim_call call) { add(&failures[call], 1); }

void sim_count_macs(int chip, int type, int core, uint64_t amount) { add(&macs[chip][type][core], amount); }

uint64_t sim_calls_counted(sim_call call) { return get(&calls[call]); }

uint64_t sim_failures_counted(sim_call call) { return get(&failures[call]); }

uint64_t sim_macs_counted(int chip, int type, int core) { return get(&macs[chip][type][core]); }

static void clear(_Atomic uint64_t *first, size_t count) {
  for (size_t i = 0; i < count; i++) atomic_store_explicit(&first[i], 0, memory_order_relaxed);
}

void sim_counters_reset(void) {
  clear(values, COUNT_RESETTABLE);
  clear(calls, CALLS);
  clear(failures, CALLS);
  clear(&macs[0][0][0], sizeof macs / sizeof macs[0][0][0]);
}
