#define _GNU_SOURCE
#include "foreign.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file.h"

/* A dma-buf tells its size to lseek only. */
static int64_t size_by_seeking(int fd) {
  off_t now = lseek(fd, 0, SEEK_CUR), end = lseek(fd, 0, SEEK_END);
  lseek(fd, now > 0 ? now : 0, SEEK_SET);
  return (int64_t)end;
}

/* False with errno set: ENOMEM where the process has no room for a mapping, which says nothing of fd. */
static bool can_be_mapped(int fd, int protection) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  void *pages = mmap(NULL, page, protection, MAP_SHARED, fd, 0);
  if (pages == MAP_FAILED) return false;
  munmap(pages, page);
  return true;
}

bool sim_foreign_examine(int fd, sim_foreign *foreign) {
  struct stat status;
  int access = fcntl(fd, F_GETFL);
  if (access < 0 || fstat(fd, &status)) return false;
  if (access & O_PATH || (access & O_ACCMODE) == O_WRONLY) {
    errno = EBADF;
    return false;
  }
  bool is_file = S_ISREG(status.st_mode);
  int64_t size = is_file ? (int64_t)status.st_size : size_by_seeking(fd);
  if (size <= 0 || S_ISDIR(status.st_mode)) {
    errno = EINVAL;
    return false;
  }
  if (!can_be_mapped(fd, PROT_READ)) {
    if (errno != ENOMEM) errno = EINVAL;
    return false;
  }
  int seals = is_file ? fcntl(fd, F_GET_SEALS) : 0;
  if (seals < 0) seals = 0; /* no memfd */
  foreign->size = (uint64_t)size;
  foreign->may_shrink = is_file && !(seals & F_SEAL_SHRINK);
  foreign->writable = can_be_mapped(fd, PROT_READ | PROT_WRITE);
  if (!foreign->writable && errno == ENOMEM) return false;
  /* pwrite appends to what is open for appending, and a file of huge pages cannot be written at all. */
  if (foreign->may_shrink && (access & O_APPEND || pwrite(fd, "", 0, 0) != 0)) foreign->writable = false;
  return true;
}

bool sim_foreign_read(int fd, size_t start, size_t bytes, void *to) {
  char *at = to;
  while (bytes > 0) {
    ssize_t done = pread(fd, at, bytes, (off_t)start);
    if (done < 0 && errno == EINTR) continue;
    if (done == 0) errno = ENODATA;
    if (done <= 0) return false;
    at += done;
    start += (size_t)done;
    bytes -= (size_t)done;
  }
  return true;
}

/* The size is looked at first: pwrite would make a file that has shrunk longer again. */
bool sim_foreign_write(int fd, size_t start, size_t bytes, const void *from) {
  struct stat status;
  if (fstat(fd, &status)) return false;
  if ((uint64_t)status.st_size < start + bytes) {
    errno = ENODATA;
    return false;
  }
  return sim_file_write(fd, from, bytes, (off_t)start);
}
