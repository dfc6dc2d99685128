#define _GNU_SOURCE
#include "trace.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <sys/syscall.h> /* gettid() itself is in glibc from 2.30 on only */
#include <unistd.h>

#include "export.h"
#include "npumatmul_sim.h"
#include "rknn_abi.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int file = -1; /* guarded by lock */
static atomic_bool tracing;
static _Thread_local char note[256];

/*
 * Straight into the file, so that nothing waits in a buffer that a forked child would write once more, or a killed
 * process never. A disk that is full makes the trace incomplete and does no other harm.
 */
__attribute__((format(printf, 2, 3))) static void print(int to, const char *format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  for (int done = 0; length > 0 && length < (int)sizeof text && done < length;) {
    ssize_t written = write(to, text + done, (size_t)(length - done));
    if (written <= 0) return;
    done += (int)written;
  }
}

bool sim_trace_to(const char *path) {
  int opened = -1;
  if (*path) {
    opened = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0666); /* a pipe that nobody reads fails */
    if (opened < 0) return false;
    fcntl(opened, F_SETFL, O_WRONLY);
    print(opened, "[\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,\"args\":{\"name\":\"npumatmul simulator\"}}",
          (int)getpid());
  }
  pthread_mutex_lock(&lock);
  int previous = file;
  file = opened;
  atomic_store(&tracing, opened >= 0);
  pthread_mutex_unlock(&lock);
  if (previous >= 0) {
    print(previous, "\n]\n");
    close(previous);
  }
  return true;
}

__attribute__((destructor)) static void end_at_exit(void) { sim_trace_to(""); }

/* A trace is its process's: a forked child has none, and leaves the file of its parent alone. */
static void before_fork(void) { pthread_mutex_lock(&lock); }

static void after_fork(void) { pthread_mutex_unlock(&lock); }

static void in_child(void) {
  if (file >= 0) close(file);
  file = -1;
  atomic_store(&tracing, false);
  pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(before_fork, after_fork, in_child); }

bool sim_tracing(void) { return atomic_load_explicit(&tracing, memory_order_relaxed); }

static int64_t microseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000 + 1;
}

int64_t sim_trace_begin(void) {
  note[0] = '\0';
  return microseconds();
}

void sim_trace_note(const char *format, ...) {
  if (!sim_tracing()) return;
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(note, sizeof note, format, arguments);
  va_end(arguments);
  if (length < 0 || (size_t)length >= sizeof note) note[0] = '\0'; /* half of it would not be JSON */
}

void sim_trace_end(const char *name, int64_t start_us, int result) {
  int64_t end_us = microseconds();
  pthread_mutex_lock(&lock);
  if (file >= 0) {
    print(file,
          ",\n{\"name\":\"%s\",\"cat\":\"rknn\",\"ph\":\"X\",\"ts\":%lld,\"dur\":%lld,\"pid\":%d,\"tid\":%d,"
          "\"args\":{\"code\":%d%s%s}}",
          name, (long long)start_us, (long long)(end_us - start_us), (int)getpid(), (int)syscall(SYS_gettid), result,
          *note ? "," : "", note);
  }
  pthread_mutex_unlock(&lock);
}

SIM_EXPORT int npumm_sim_trace_start(const char *path) {
  if (!path || !*path) return RKNN_ERR_PARAM_INVALID;
  return sim_trace_to(path) ? RKNN_SUCC : RKNN_ERR_FAIL;
}

SIM_EXPORT void npumm_sim_trace_stop(void) { sim_trace_to(""); }
