/*
 * Spins are counted, not timed, and there are threads that must not wait behind them: so nobody spins while as many
 * threads of this library are awake as there are processors, and who spun in vain sleeps at once in its next waits,
 * twice as many after each time. See spin.h.
 */
#define _GNU_SOURCE
#include "spin.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum { FAILED_MOST = 6 };

static atomic_int awake, callers, processors, pretended;
static atomic_int_fast64_t spins;

/* A forked child has no workers. */
static void in_child(void) {
  atomic_store(&awake, 0);
  atomic_store(&callers, 0);
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, in_child); }

static int32_t count_processors(void) {
  cpu_set_t ours;
  return sched_getaffinity(0, sizeof ours, &ours) ? 1 : CPU_COUNT(&ours); /* 1: nobody spins */
}

void npumm_pretend_processors(int32_t count) { atomic_store(&pretended, count); }

void npumm_workers_awake(int change) { atomic_fetch_add(&awake, change); }

void npumm_callers(int change) { atomic_fetch_add(&callers, change); }

int64_t npumm_spins(void) { return atomic_load(&spins); }

/* Whoever calls workers is awake too, or prepares the next call. */
static int is_room(void) {
  const int most = atomic_load_explicit(&pretended, memory_order_relaxed)
                       ? atomic_load_explicit(&pretended, memory_order_relaxed)
                       : atomic_load_explicit(&processors, memory_order_relaxed);
  const int calling = atomic_load_explicit(&callers, memory_order_relaxed);
  return most > 1 && atomic_load_explicit(&awake, memory_order_relaxed) + (calling > 1 ? calling : 1) <= most;
}

/* Let the processor do something else for some cycles. */
static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  /* some 30 ns, as `pause` takes; `yield` does nothing on cores without threads of their own */
  __asm__ volatile("isb\n\tisb" ::: "memory");
#endif
}

int npumm_spin(npumm_spinner *spinner, int (*came)(void *), void *argument) {
  if (came(argument)) return 1;
  if (spinner->resting > 0) {
    spinner->resting--;
    return 0;
  }
  if (!atomic_load(&processors)) atomic_store(&processors, count_processors());
  int32_t spun = 0;
  int has_come = 0;
  while (!has_come && spun < NPUMM_SPINS_MOST && is_room()) {
    relax();
    spun++;
    has_come = came(argument);
  }
  atomic_fetch_add(&spins, spun);
  if (has_come) {
    spinner->failed = 0;
  } else if (spun > 0) {
    if (spinner->failed < FAILED_MOST) spinner->failed++;
    spinner->resting = (1 << spinner->failed) - 1;
  }
  return has_come;
}
