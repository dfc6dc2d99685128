#define _GNU_SOURCE
#include "trace.h"

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
static FILE *file; /* guarded by lock */
static atomic_bool tracing;
static _Thread_local char note[256];

bool sim_trace_to(const char *path) {
  FILE *opened = NULL;
  if (*path) {
    opened = fopen(path, "we");
    if (!opened) return false;
    fprintf(opened,
            "[\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,\"args\":{\"name\":\"npumatmul simulator\"}}",
            (int)getpid());
  }
  pthread_mutex_lock(&lock);
  FILE *previous = file;
  file = opened;
  atomic_store(&tracing, opened != NULL);
  pthread_mutex_unlock(&lock);
  if (previous) {
    fprintf(previous, "\n]\n");
    fclose(previous);
  }
  return true;
}

__attribute__((destructor)) static void end_at_exit(void) { sim_trace_to(""); }

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
  if (file) {
    fprintf(file,
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
