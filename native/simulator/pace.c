#define _GNU_SOURCE
#include "pace.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "locks.h"
#include "timing.h"

/* Waits are looked at again after this long, so that no sum of times is too large for a timespec. */
#define LONGEST_WAIT 3600.0

static pthread_cond_t changed;
static sim_pace *going_on;
static uint64_t let_go; /* how often */
static bool may_wait;

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static struct timespec moment(int64_t ns) {
  return (struct timespec){.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
}

/* The wall-clock seconds that all of a run takes as long as what goes on stays as it is. */
static double present_seconds(const sim_pace *of) {
  int sharing = 0, on_core = 0;
  unsigned cores = 0;
  for (const sim_pace *other = going_on; other; other = other->next) {
    if (other->chip != of->chip) continue;
    cores |= 1u << other->core;
    on_core += other->core == of->core;
  }
  for (int core = 0; core < SIM_CORES_MAX; core++) sharing += cores >> core & 1;
  return of->seconds[sharing - 1] * on_core;
}

/* Before what goes on changes: counts what went by until now. */
static void settle(int64_t now) {
  for (sim_pace *each = going_on; each; each = each->next) {
    each->done += (double)(now - each->since) * 1e-9 / present_seconds(each);
    each->since = now;
  }
}

void sim_pace_begin(sim_pace *pace, const sim_context *context, int core) {
  *pace = (sim_pace){.waits = context->settings.timing == TIMING_REALTIME, .chip = context->chip->index, .core = core};
  if (!pace->waits) return;
  const sim_shape *shape = context->now;
  const bool first = sim_clock_is_first(pace->chip, core); /* runs on several cores are joined once in a batch */
  for (int sharing = 1; sharing <= context->chip->cores; sharing++) {
    pace->seconds[sharing - 1] =
        sim_run_seconds(&context->timing, context->type, shape->M, shape->K, shape->N, sharing, context->native_ac) +
        (first && sharing > 1 ? context->timing.of[JOIN_SECONDS] : 0);
  }
  sim_take(LOCK_PACE);
  pace->since = nanoseconds();
  settle(pace->since);
  pace->began = let_go;
  pace->next = going_on;
  going_on = pace;
  pthread_cond_broadcast(&changed);
  sim_give(LOCK_PACE);
}

void sim_pace_end(sim_pace *pace) {
  if (!pace->waits) return;
  sim_take(LOCK_PACE);
  while (may_wait && pace->began == let_go) {
    const double left = present_seconds(pace) * (1 - pace->done); /* from since on */
    const int64_t end = pace->since + (int64_t)((left < LONGEST_WAIT ? left : LONGEST_WAIT) * 1e9), now = nanoseconds();
    if (now >= end && left < LONGEST_WAIT) break;
    if (now >= end) settle(now);
    const struct timespec until = moment(end);
    sim_wait_until(&changed, LOCK_PACE, &until);
  }
  settle(nanoseconds());
  sim_pace **link = &going_on;
  while (*link && *link != pace) link = &(*link)->next;
  if (*link) *link = pace->next;
  pthread_cond_broadcast(&changed);
  sim_give(LOCK_PACE);
}

void sim_pace_set(bool may) {
  sim_take(LOCK_PACE);
  may_wait = may;
  let_go++;
  pthread_cond_broadcast(&changed);
  sim_give(LOCK_PACE);
}

/* Waits are told by a clock that nobody sets. What went on in the parent goes on there. */
static void make_condition(void) {
  pthread_condattr_t attributes;
  memset(&changed, 0, sizeof changed);
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&changed, &attributes);
  pthread_condattr_destroy(&attributes);
}

static void in_child(void) {
  make_condition();
  going_on = NULL;
}

/* Early: reading the settings already lets go. */
__attribute__((constructor(101))) static void watch_forks(void) {
  make_condition();
  pthread_atfork(NULL, NULL, in_child);
}
