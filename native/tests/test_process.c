/*
 * The library in programs that do as they like with their process: they close the standard descriptors, fork while their
 * threads are at work, cancel those, limit sizes of files, close all descriptors, and start others with the same trace.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "check.h"
#include "rk3588_layouts.h"

/* What a child's main function returns, or 1000 and the signal that ended it. */
static int ended(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void read_file(const char *path, char *text, size_t size) {
  FILE *file = fopen(path, "r");
  text[file ? fread(text, 1, size - 1, file) : 0] = '\0';
  if (file) fclose(file);
}

/* ---- standard descriptors that are closed: log lines must not land in NPU memory --------------------------------- */

static int without_standard_descriptors(void) {
  char path[] = "/tmp/npumm_process_XXXXXX";
  int file = mkstemp(path);
  for (int fd = 0; fd < 3; fd++) close(fd);
  rknn_tensor_mem *memories[4];
  for (int i = 0; i < 3; i++) {
    memories[i] = rknn_create_mem(0, 64);
    if (memories[i]->fd < 3) return 10 + i;
  }
  memories[3] = rknn_create_mem_from_fd(0, file, NULL, 64, 0); /* an empty file: a log line */
  if (memories[3] || ftruncate(file, 4096) || !(memories[3] = rknn_create_mem_from_fd(0, file, NULL, 64, 0))) return 20;
  rknn_matmul_info info = make_info(2, 1, 64, 32, 1, 0);
  rknn_matmul_io_attr io;
  rknn_matmul_ctx ctx;
  if (rknn_matmul_create(&ctx, &info, &io) || npumm_sim_trace_start(path) || rknn_create_mem(0, 0)) return 30;
  for (int fd = 0; fd < 3; fd++) {
    if (fcntl(fd, F_GETFD) >= 0) return 40 + fd; /* the library has taken it */
  }
  for (int i = 0; i < 3; i++) {
    for (int byte = 0; byte < 64; byte++) {
      if (data_of(memories[i])[byte] != 0) return 50;
    }
  }
  unlink(path);
  return 0;
}

/* ---- forks -------------------------------------------------------------------------------------------------------- */

static int use(void) {
  matmul mm;
  if (!open_matmul(&mm, make_info(2, 4, 64, 64, 0, 0))) return 1;
  memset(data_of(mm.a), 1, mm.io.A.size);
  memset(data_of(mm.b), 1, mm.io.B.size);
  if (rknn_matmul_set_io_mem(mm.ctx, mm.a, &mm.io.A) || rknn_matmul_set_io_mem(mm.ctx, mm.b, &mm.io.B) ||
      rknn_matmul_set_io_mem(mm.ctx, mm.c, &mm.io.C) || rknn_matmul_run(mm.ctx)) {
    return 2;
  }
  int32_t first;
  memcpy(&first, data_of(mm.c), sizeof first);
  if (first != 64) return 3;
  return rknn_destroy_mem(mm.ctx, mm.a) || rknn_destroy_mem(mm.ctx, mm.b) || rknn_destroy_mem(mm.ctx, mm.c) ||
         rknn_matmul_destroy(mm.ctx) || npumm_sim_configure("NPUMATMUL_SIM_STRICT", "0");
}

static atomic_bool stop;

static void *use_all_the_time(void *argument) {
  while (!stop) {
    if (use()) abort();
  }
  return argument;
}

/* AddressSanitizer's allocator may be locked itself when another thread forks. */
#ifdef __SANITIZE_ADDRESS__
enum { THREADS = 0 };
#else
enum { THREADS = 3 };
#endif

static void *query(void *argument) {
  rknn_query(0, RKNN_QUERY_SDK_VERSION, NULL, 0);
  return argument;
}

/* Whatever the threads were in the middle of: a child of the process finds no lock held. */
static void test_forks(void) {
  /* Children tell by it how they fared, and end without a look at what the parent's threads left them (valgrind's). */
  volatile int *told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (told == MAP_FAILED) abort();
  pthread_t threads[THREADS + 1];
  for (int i = 0; i < THREADS; i++) {
    if (pthread_create(&threads[i], NULL, use_all_the_time, NULL)) abort();
  }
  for (int i = 0; i < 60; i++) {
    *told = -1;
    pid_t child = fork();
    if (child == 0) {
      alarm(60);
      *told = use();
      kill(getpid(), SIGKILL);
    }
    CHECK_IS(ended(child), 1000 + SIGKILL);
    CHECK_IS(*told, 0);
  }
  stop = true;
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);

  /* One that hangs in the parent does not hang in the child. */
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 1, 32, 32, 1, 0)), "not created");
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_FAULTS", "query:hang:times=1"), 0);
  pthread_t hanging;
  if (pthread_create(&hanging, NULL, query, NULL)) abort();
  usleep(50000);
  pid_t child = fork();
  if (child == 0) {
    alarm(60);
    npumm_sim_configure("NPUMATMUL_SIM_FAULTS", "run:code=-6");
    *told = rknn_matmul_run(mm.ctx);
    kill(getpid(), SIGKILL);
  }
  CHECK_IS(ended(child), 1000 + SIGKILL);
  CHECK_IS(*told, -6);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_FAULTS", NULL), 0);
  pthread_join(hanging, NULL);
  close_matmul(&mm);
}

/* ---- limits of sizes of files ------------------------------------------------------------------------------------ */

static int with_small_files(void) {
  char path[] = "/tmp/npumm_process_XXXXXX";
  close(mkstemp(path));
  if (npumm_sim_trace_start(path)) return 1;
  int own = memfd_create("own", 0);
  if (ftruncate(own, 1 << 20)) return 2;
  rknn_matmul_info info = make_info(2, 1, 64, 32, 1, 0);
  rknn_matmul_io_attr io;
  rknn_matmul_ctx ctx;
  if (rknn_matmul_create(&ctx, &info, &io)) return 3;
  rknn_tensor_mem *a = rknn_create_mem(ctx, 4096), *far = rknn_create_mem_from_fd(ctx, own, &own, 4096, 1 << 19);
  if (!a || !far || rknn_matmul_set_io_mem(ctx, a, &io.A) || rknn_matmul_set_io_mem(ctx, a, &io.B) ||
      rknn_matmul_set_io_mem(ctx, far, &io.C) || rknn_matmul_run(ctx)) {
    return 4;
  }
  struct rlimit small = {.rlim_cur = 4096, .rlim_max = 4096};
  setrlimit(RLIMIT_FSIZE, &small);
  if (rknn_matmul_run(ctx) != -1) return 5;    /* C lies beyond */
  if (rknn_create_mem(ctx, 1 << 16)) return 6; /* so does this memory's end */
  if (!logged("rknn_create_mem, simulator: memory is a file here, and 65536 bytes are more")) return 9;
  for (int i = 0; i < 100; i++) rknn_mem_sync(ctx, a, RKNN_MEMORY_SYNC_TO_DEVICE); /* and the end of the trace */
  struct stat status;
  if (stat(path, &status) || status.st_size != 4096) return 7;
  sigset_t pending;
  sigpending(&pending);
  unlink(path);
  return sigismember(&pending, SIGXFSZ) ? 8 : 0;
}

/* ---- traces ------------------------------------------------------------------------------------------------------- */

static int trace_into_a_pipe(void) {
  char path[] = "/tmp/npumm_process_XXXXXX";
  close(mkstemp(path));
  unlink(path);
  if (mkfifo(path, 0600)) return 1;
  int reader = open(path, O_RDONLY | O_NONBLOCK);
  if (npumm_sim_trace_start(path)) return 2;
  rknn_create_mem(0, 0);
  close(reader); /* nobody reads any more */
  rknn_create_mem(0, 0);
  npumm_sim_trace_stop();
  return unlink(path);
}

/* A program closes all descriptors, and a file of its own gets the trace's number. */
static int trace_whose_descriptor_is_closed(void) {
  char path[] = "/tmp/npumm_process_XXXXXX", theirs[] = "/tmp/npumm_process_XXXXXX", text[64];
  close(mkstemp(path));
  if (npumm_sim_trace_start(path)) return 1;
  for (int fd = 3; fd < 500; fd++) close(fd);
  int first = mkstemp(theirs);
  if (write(first, "theirs", 6) != 6) return 2;
  for (int fd = 3; fd < 500; fd++) {
    if (fcntl(fd, F_GETFD) < 0 && dup2(first, fd) != fd) return 3;
  }
  rknn_create_mem(0, 0);
  pid_t child = fork(); /* what a child gives up of the trace is not its either */
  if (child == 0) _exit(fcntl(first, F_GETFD) < 0);
  if (ended(child)) return 4;
  npumm_sim_trace_stop();
  for (int fd = 3; fd < 500; fd++) {
    if (fcntl(fd, F_GETFD) < 0) return 5;
  }
  read_file(theirs, text, sizeof text);
  unlink(theirs);
  unlink(path);
  return strcmp(text, "theirs") != 0 ? 6 : 0;
}

static int count(const char *text, const char *word) {
  int found = 0;
  for (const char *at = text; (at = strstr(at, word)) != NULL; at++) found++;
  return found;
}

/* Two processes that are told the same file, as `sim env --trace FILE -- make test` does. */
static void test_two_processes_with_one_trace(void) {
  char path[] = "/tmp/npumm_process_XXXXXX", beside[64], text[8192];
  close(mkstemp(path));
  CHECK_IS(npumm_sim_trace_start(path), 0);
  rknn_create_mem(0, 0);
  pid_t child = fork();
  if (child == 0) {
    npumm_sim_trace_start(path);
    rknn_mem_sync(0, NULL, RKNN_MEMORY_SYNC_TO_DEVICE);
    npumm_sim_trace_stop();
    _exit(0);
  }
  snprintf(beside, sizeof beside, "%s.%d", path, (int)child);
  CHECK_IS(ended(child), 0);
  CHECK(logged("simulator: another process writes its trace to "), "log");
  rknn_create_mem(0, 0);
  npumm_sim_trace_stop();
  read_file(path, text, sizeof text);
  CHECK_IS(count(text, "rknn_create_mem"), 2);
  CHECK_IS(count(text, "rknn_mem_sync"), 0);
  read_file(beside, text, sizeof text);
  CHECK_IS(count(text, "rknn_mem_sync"), 1);
  CHECK_IS(unlink(beside), 0);

  /* Begun once more in the same file: only what comes afterwards. */
  CHECK_IS(npumm_sim_trace_start(path), 0);
  for (int i = 0; i < 9; i++) rknn_create_mem(0, 0);
  CHECK_IS(npumm_sim_trace_start(path), 0);
  rknn_create_mem(0, 0);
  npumm_sim_trace_stop();
  read_file(path, text, sizeof text);
  CHECK_IS(count(text, "rknn_create_mem"), 1);
  CHECK(strcmp(text + strlen(text) - 4, "}\n]\n") == 0, "not a list: %s", text);
  unlink(path);
}

/* ---- threads that are cancelled ------------------------------------------------------------------------------------ */

static matmul shared;

static void *run_and_be_cancelled(void *argument) {
  rknn_matmul_run(shared.ctx);
  pause();
  return argument;
}

static void *use_and_be_cancelled(void *argument) {
  while (true) {
    rknn_create_mem(0, 0); /* prints, which is where a thread can be cancelled */
    rknn_matmul_run(shared.ctx);
    npumm_sim_configure("NPUMATMUL_SIM_TRACE", "/dev/null");
    pthread_testcancel();
  }
  return argument;
}

static bool cancel(void *(*what)(void *), useconds_t after) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, what, NULL)) return false;
  usleep(after);
  pthread_cancel(thread);
  npumm_sim_configure("NPUMATMUL_SIM_FAULTS", NULL); /* whoever hangs goes on */
  return pthread_join(thread, NULL) == 0;
}

/* A thread is cancelled between calls, never in one: no lock stays taken, and no context in use. */
static int cancelled_threads(void) {
  if (!open_matmul(&shared, make_info(2, 4, 64, 32, 1, 0))) return 1;
  bind_all(&shared);
  alarm(60); /* rather than wait for ever */
  npumm_sim_configure("NPUMATMUL_SIM_FAULTS", "run:hang");
  if (!cancel(run_and_be_cancelled, 10000) || rknn_matmul_run(shared.ctx)) return 2;
  for (int i = 0; i < 50; i++) {
    if (!cancel(use_and_be_cancelled, 200) || rknn_matmul_run(shared.ctx)) return 3;
  }
  npumm_sim_trace_stop();
  close_matmul(&shared);
  return failed;
}

static void in_a_child(const char *name, int (*what)(void)) {
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) _exit(what());
  int code = ended(child);
  CHECK(code == 0, "%s: %d", name, code);
}

int main(void) {
  start_log();
  in_a_child("without standard descriptors", without_standard_descriptors);
  in_a_child("with small files", with_small_files);
  in_a_child("trace into a pipe", trace_into_a_pipe);
  in_a_child("trace whose descriptor is closed", trace_whose_descriptor_is_closed);
  in_a_child("cancelled threads", cancelled_threads);
  test_two_processes_with_one_trace();
  test_forks();
  return report("test_process");
}
