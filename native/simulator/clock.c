#include "clock.h"

#include <math.h>
#include <string.h>

#include "locks.h"
#include "timing.h"

typedef struct {
  uint64_t runs[SIM_CORES_MAX]
               [SIM_CORES_MAX]; /* of each core, if as many cores have runs as the second index, and one */
  uint64_t binding[SIM_CORES_MAX];
  uint64_t join;
  unsigned ran; /* a bit per core */
} batch;

/* Picoseconds. */
typedef struct {
  uint64_t all, cores[SIM_CORES_MAX]; /* of batches that have ended */
  batch now;
} chip_clock;

static chip_clock clocks[SIM_CHIPS]; /* guarded by LOCK_CLOCK */

/* Sums of what takes longer than this mean nothing, but they must stay numbers. */
#define LONGEST_SECONDS 1e6

static uint64_t picoseconds(double seconds) {
  return (uint64_t)llround((seconds < LONGEST_SECONDS ? seconds : LONGEST_SECONDS) * 1e12);
}

/* Adds a batch up; what its cores ran is added to cores, if that is not NULL. */
static uint64_t length_of(const batch *of, uint64_t *cores) {
  int sharing = 0;
  for (int core = 0; core < SIM_CORES_MAX; core++) sharing += of->ran >> core & 1;
  uint64_t longest = 0;
  for (int core = 0; core < SIM_CORES_MAX; core++) {
    const uint64_t runs = sharing ? of->runs[core][sharing - 1] : 0;
    if (cores) cores[core] += runs;
    if (runs + of->binding[core] > longest) longest = runs + of->binding[core];
  }
  return longest + (sharing > 1 ? of->join : 0);
}

static double seconds_of(const sim_context *context, int cores) {
  const sim_shape *shape = context->now;
  return sim_run_seconds(&context->timing, context->type, shape->M, shape->K, shape->N, cores, context->native_ac);
}

int64_t sim_modelled_microseconds(const sim_context *context) {
  const double seconds = seconds_of(context, 1);
  return llround((seconds < LONGEST_SECONDS ? seconds : LONGEST_SECONDS) * 1e6);
}

void sim_clock_run(const sim_context *context, int core) {
  if (context->settings.timing == TIMING_OFF) return;
  uint64_t runs[SIM_CORES_MAX];
  for (int sharing = 1; sharing <= context->chip->cores; sharing++) {
    runs[sharing - 1] = picoseconds(seconds_of(context, sharing));
  }
  const uint64_t join = picoseconds(context->timing.of[JOIN_SECONDS]);
  sim_take(LOCK_CLOCK);
  batch *now = &clocks[context->chip->index].now;
  for (int sharing = 1; sharing <= context->chip->cores; sharing++) now->runs[core][sharing - 1] += runs[sharing - 1];
  if (join > now->join) now->join = join;
  now->ran |= 1u << core;
  sim_give(LOCK_CLOCK);
}

/* The core of a mask that names one, else -1. */
static int core_of(int core_mask) {
  for (int core = 0; core < SIM_CORES_MAX; core++) {
    if (core_mask == 1 << core) return core;
  }
  return -1;
}

void sim_clock_bind(const sim_context *context, size_t packed_bytes) {
  if (context->settings.timing == TIMING_OFF) return;
  const double seconds = sim_bind_seconds(&context->timing, packed_bytes);
  const int core = core_of(context->core_mask);
  sim_take(LOCK_CLOCK);
  clocks[context->chip->index].now.binding[core < 0 ? 0 : core] += picoseconds(seconds);
  sim_give(LOCK_CLOCK);
}

void sim_clock_sync(int chip, int core_mask) {
  const int core = core_of(core_mask);
  sim_take(LOCK_CLOCK);
  chip_clock *own = &clocks[chip];
  if (core < 0 ? own->now.ran != 0 : own->now.ran >> core & 1) {
    own->all += length_of(&own->now, own->cores);
    memset(&own->now, 0, sizeof own->now);
  }
  sim_give(LOCK_CLOCK);
}

bool sim_clock_is_first(int chip, int core) {
  sim_take(LOCK_CLOCK);
  const bool first = !(clocks[chip].now.ran >> core & 1);
  sim_give(LOCK_CLOCK);
  return first;
}

uint64_t sim_clock_all(int chip) {
  sim_take(LOCK_CLOCK);
  const uint64_t all = clocks[chip].all + length_of(&clocks[chip].now, NULL);
  sim_give(LOCK_CLOCK);
  return (all + 500) / 1000;
}

uint64_t sim_clock_core(int chip, int core) {
  sim_take(LOCK_CLOCK);
  uint64_t cores[SIM_CORES_MAX];
  memcpy(cores, clocks[chip].cores, sizeof cores);
  length_of(&clocks[chip].now, cores);
  sim_give(LOCK_CLOCK);
  return (cores[core] + 500) / 1000;
}

void sim_clock_reset(void) {
  sim_take(LOCK_CLOCK);
  memset(clocks, 0, sizeof clocks);
  sim_give(LOCK_CLOCK);
}
