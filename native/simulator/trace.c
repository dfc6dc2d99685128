#define _GNU_SOURCE
#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <sys/syscall.h> /* gettid() itself is in glibc from 2.30 on only */
#include <unistd.h>

#include "export.h"
#include "file.h"
#include "locks.h"
#include "log.h"
#include "npumatmul_sim.h"
#include "rknn_abi.h"

static int file = -1; /* guarded by lock, like what it is */
static sim_file_id file_id;
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
  if (length > 0 && length < (int)sizeof text) sim_file_write(to, text, (size_t)length, -1);
}

static bool lock_trace(int fd) {
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  return fcntl(fd, F_SETLK, &whole) == 0 || (errno != EAGAIN && errno != EACCES); /* or there are no locks there */
}

/*
 * Programs that one command starts may all be told the same file: the first one has it as long as it lives, others write
 * one beside it, with their number behind the name. The lock is the process's, and no child inherits it.
 */
static int open_trace(const char *path) {
  int opened = sim_file_open(path);
  if (opened >= 0 && !lock_trace(opened)) {
    char own[4096];
    close(opened);
    snprintf(own, sizeof own, "%s.%d", path, (int)getpid());
    sim_log_hint("simulator: another process writes its trace to %s; this one writes to %s", path, own);
    opened = sim_file_open(own);
  }
  if (opened >= 0) sim_file_resize(opened, 0); /* fails for what is no file, and does not matter there */
  return opened;
}

static bool switch_to(const char *path) {
  int opened = -1;
  sim_file_id opened_id = {0};
  if (*path) {
    opened = open_trace(path);
    if (opened < 0) return false;
    sim_file_identify(opened, &opened_id);
    print(opened, "[\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%d,\"args\":{\"name\":\"npumatmul simulator\"}}",
          (int)getpid());
  }
  sim_take(LOCK_TRACE);
  int previous = file;
  sim_file_id previous_id = file_id;
  file = opened;
  file_id = opened_id;
  atomic_store(&tracing, opened >= 0);
  sim_give(LOCK_TRACE);
  if (sim_file_is(previous, previous_id)) {
    bool once_more = sim_file_same(previous_id, opened_id); /* then it is cut off already */
    if (!once_more) print(previous, "\n]\n");
    close(previous);
    if (once_more) lock_trace(opened); /* closing gave the lock back */
  }
  return true;
}

/* Not half of it: a thread that is cancelled in opening or writing would leave files open, and a caller's locks taken. */
bool sim_trace_to(const char *path) {
  int cancelling;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelling);
  bool switched = switch_to(path);
  pthread_setcancelstate(cancelling, NULL);
  return switched;
}

__attribute__((destructor)) static void end_at_exit(void) { sim_trace_to(""); }

/* A trace is its process's: a forked child has none, and leaves the file of its parent alone. */
static void in_child(void) {
  sim_file_close(file, file_id);
  file = -1;
  atomic_store(&tracing, false);
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, in_child); }

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
  sim_take(LOCK_TRACE);
  if (file >= 0 && !sim_file_is(file, file_id)) {
    sim_log_hint("simulator: the program closed the descriptor of the trace, which ends here");
    file = -1;
    atomic_store(&tracing, false);
  }
  if (file >= 0) {
    print(file,
          ",\n{\"name\":\"%s\",\"cat\":\"rknn\",\"ph\":\"X\",\"ts\":%lld,\"dur\":%lld,\"pid\":%d,\"tid\":%d,"
          "\"args\":{\"code\":%d%s%s}}",
          name, (long long)start_us, (long long)(end_us - start_us), (int)getpid(), (int)syscall(SYS_gettid), result,
          *note ? "," : "", note);
  }
  sim_give(LOCK_TRACE);
}

SIM_EXPORT int npumm_sim_trace_start(const char *path) {
  if (!path || !*path) return RKNN_ERR_PARAM_INVALID;
  return sim_trace_to(path) ? RKNN_SUCC : RKNN_ERR_FAIL;
}

SIM_EXPORT void npumm_sim_trace_stop(void) { sim_trace_to(""); }
