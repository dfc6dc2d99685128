#define _GNU_SOURCE
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

bool sim_file_identify(int fd, sim_file_id *id) {
  struct stat status;
  if (fstat(fd, &status)) return false;
  *id = (sim_file_id){.device = status.st_dev, .inode = status.st_ino};
  return true;
}

bool sim_file_same(sim_file_id first, sim_file_id second) {
  return first.inode != 0 && first.inode == second.inode && first.device == second.device;
}

int sim_file_duplicate(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1); }

static int above_the_standard_three(int fd) {
  if (fd < 0 || fd > STDERR_FILENO) return fd;
  int moved = sim_file_duplicate(fd), error = errno;
  close(fd);
  errno = error;
  return moved;
}

int sim_file_memory(const char *name) {
  return above_the_standard_three(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
}

int sim_file_open(const char *path) {
  int fd = above_the_standard_three(open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666));
  if (fd >= 0) fcntl(fd, F_SETFL, O_WRONLY);
  return fd;
}

bool sim_file_is(int fd, sim_file_id id) {
  sim_file_id now;
  if (sim_file_identify(fd, &now) && sim_file_same(now, id)) return true;
  errno = EBADF;
  return false;
}

void sim_file_close(int fd, sim_file_id id) {
  if (sim_file_is(fd, id)) close(fd);
}

/* ---- without signals: SIGXFSZ beyond the limit of sizes, SIGPIPE where nobody reads any more --------------------- */

static void hold_signals(sigset_t *before) {
  sigset_t held;
  sigemptyset(&held);
  sigaddset(&held, SIGXFSZ);
  sigaddset(&held, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &held, before);
}

/* Takes back the signal of a call that failed with errno, and keeps errno. */
static void release_signals(const sigset_t *before, bool failed) {
  int error = errno, number = error == EFBIG ? SIGXFSZ : SIGPIPE;
  if (failed && (error == EFBIG || error == EPIPE) && !sigismember(before, number)) {
    sigset_t sent;
    sigemptyset(&sent);
    sigaddset(&sent, number);
    sigtimedwait(&sent, NULL, &(struct timespec){0});
  }
  pthread_sigmask(SIG_SETMASK, before, NULL);
  errno = error;
}

bool sim_file_resize(int fd, size_t bytes) {
  sigset_t before;
  hold_signals(&before);
  bool done = ftruncate(fd, (off_t)bytes) == 0;
  release_signals(&before, !done);
  return done;
}

bool sim_file_write(int fd, const void *from, size_t bytes, off_t at) {
  const char *next = from;
  sigset_t before;
  hold_signals(&before);
  ssize_t done = 0;
  while (bytes > 0) {
    done = at < 0 ? write(fd, next, bytes) : pwrite(fd, next, bytes, at);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) break;
    next += done;
    bytes -= (size_t)done;
    if (at >= 0) at += done;
  }
  release_signals(&before, done < 0);
  return bytes == 0;
}
