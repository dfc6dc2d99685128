/* What was done while a profile is on, in memory that grows. See profile.h. */
#define _GNU_SOURCE
#include "profile.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { FIRST = 1024 };

atomic_int npumm_profile_is_on;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Guarded by the lock, but for the owner: a forked child, in which nobody may hold the lock to give it back, asks for it. */
static npumm_event *kept;
static int64_t count, capacity, limit, not_kept, started;
static _Atomic pid_t owner;

static _Thread_local int64_t own_thread;
static _Thread_local pid_t own_process;

int64_t npumm_profile_now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Room for one more; the lock is held. */
static int has_room(void) {
  if (count < capacity) return 1;
  if (count >= limit) return 0;
  int64_t more = capacity ? 2 * capacity : FIRST;
  if (more > limit) more = limit;
  npumm_event *grown = realloc(kept, (size_t)more * sizeof *kept);
  if (!grown) return 0;
  kept = grown;
  capacity = more;
  return 1;
}

void npumm_profile_add(int64_t begun, int32_t kind, int64_t product, int32_t core, int64_t bytes, int64_t macs) {
  const int64_t nanoseconds = npumm_profile_now() - begun;
  const pid_t process = getpid();
  if (atomic_load(&owner) != process) return;
  if (own_process != process) {
    own_thread = (int64_t)syscall(SYS_gettid);
    own_process = process;
  }
  pthread_mutex_lock(&lock);
  if (atomic_load(&npumm_profile_is_on) && begun >= started) { /* else it began before the profile that is on now */
    if (has_room()) {
      kept[count++] = (npumm_event){kind, core, own_thread, product, begun, nanoseconds, bytes, macs};
    } else {
      not_kept++;
    }
  }
  pthread_mutex_unlock(&lock);
}

int npumm_profile_start(int64_t most) {
  if (most < 1 || (atomic_load(&owner) && atomic_load(&owner) != getpid())) return NPUMM_BAD_ARGUMENT;
  pthread_mutex_lock(&lock);
  const int code = atomic_load(&npumm_profile_is_on) ? NPUMM_BAD_ARGUMENT : NPUMM_OK;
  if (!code) {
    kept = NULL;
    count = capacity = not_kept = 0;
    limit = most;
    started = npumm_profile_now();
    atomic_store(&owner, getpid());
    atomic_store(&npumm_profile_is_on, 1);
  }
  pthread_mutex_unlock(&lock);
  return code;
}

int64_t npumm_profile_stop(npumm_event **events, int64_t *lost) {
  if (!events || !lost) return NPUMM_BAD_ARGUMENT;
  *events = NULL;
  *lost = 0;
  if (atomic_load(&owner) != getpid()) { /* of a parent */
    atomic_store(&npumm_profile_is_on, 0);
    return 0;
  }
  pthread_mutex_lock(&lock);
  atomic_store(&npumm_profile_is_on, 0);
  atomic_store(&owner, 0);
  *events = kept;
  *lost = not_kept;
  const int64_t number = count;
  kept = NULL;
  count = capacity = 0;
  pthread_mutex_unlock(&lock);
  return number;
}

void npumm_profile_free(npumm_event *events) { free(events); }
