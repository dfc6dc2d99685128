#define _GNU_SOURCE
#include "backing.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chips.h"
#include "counters.h"

#define DOMAINS_MAX 16
#define IOVA_FIRST 0x10000u
#define IOVA_END (1ull << 32) /* an IOMMU domain spans 4 GiB (facts 7.4) */

/* Guards everything below and the fields fd, holders and next of every backing. Never held while multiplying. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sim_backing *domains[DOMAINS_MAX];
static uint64_t used[DOMAINS_MAX];

/* Links it at the lowest free address of its domain. False when budget or address space are exhausted. */
static bool place(sim_backing *backing) {
  if (used[backing->domain] + backing->bytes > sim_current_chip()->domain_bytes) return false;
  uint64_t address = IOVA_FIRST;
  sim_backing **link = &domains[backing->domain];
  while (*link && (*link)->iova - address < backing->bytes) {
    address = (*link)->iova + (*link)->bytes;
    link = &(*link)->next;
  }
  if (address + backing->bytes > IOVA_END) return false;
  backing->iova = address;
  backing->next = *link;
  *link = backing;
  used[backing->domain] += backing->bytes;
  sim_count(NOW_BYTES, backing->bytes);
  return true;
}

static void remove_from_domain(sim_backing *backing) {
  sim_backing **link = &domains[backing->domain];
  while (*link != backing) link = &(*link)->next;
  *link = backing->next;
  used[backing->domain] -= backing->bytes;
  sim_uncount(NOW_BYTES, backing->bytes);
}

/* A caller may have closed the descriptor, and its number may be another file's by now: that one stays open. */
static void close_fd(sim_backing *backing) {
  if (backing->fd < 0) return;
  struct stat status;
  bool known = !fstat(backing->fd, &status) && status.st_dev == backing->device && status.st_ino == backing->inode;
  if (known || backing->inode == 0) close(backing->fd);
  backing->fd = -1;
  sim_uncount(NOW_DESCRIPTORS, 1);
}

/* Makes the pages; on failure nothing is left open and errno tells why. */
static bool map_pages(sim_backing *backing, bool shared) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
  if (shared) {
    flags = MAP_SHARED;
    backing->fd = memfd_create("npumm_sim", MFD_CLOEXEC);
    if (backing->fd < 0) return false;
    sim_count(NOW_DESCRIPTORS, 1);
    struct stat status;
    if (ftruncate(backing->fd, (off_t)backing->bytes) || fstat(backing->fd, &status)) {
      close_fd(backing);
      errno = ENOMEM;
      return false;
    }
    backing->device = status.st_dev;
    backing->inode = status.st_ino;
  }
  void *base = mmap(NULL, backing->bytes, PROT_READ | PROT_WRITE, flags, backing->fd, 0);
  if (base == MAP_FAILED) {
    close_fd(backing);
    errno = ENOMEM;
    return false;
  }
  backing->base = base;
  return true;
}

sim_backing *sim_backing_allocate(int domain, uint64_t size, bool shared) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  sim_backing *backing = size <= UINT32_MAX ? calloc(1, sizeof *backing) : NULL;
  if (!backing) {
    errno = ENOMEM;
    return NULL;
  }
  backing->bytes = (size_t)((size + page - 1) / page * page);
  backing->domain = domain;
  backing->fd = -1;
  backing->holders = 1;

  pthread_mutex_lock(&lock);
  int error = ENOMEM;
  bool placed = place(backing);
  bool mapped = placed && map_pages(backing, shared);
  if (placed && !mapped) {
    error = errno;
    remove_from_domain(backing);
  }
  pthread_mutex_unlock(&lock);
  if (mapped) return backing;
  free(backing);
  errno = error;
  return NULL;
}

sim_backing *sim_backing_of_fd(int fd) {
  struct stat status;
  if (fd < 0 || fstat(fd, &status)) return NULL;
  sim_backing *found = NULL;
  pthread_mutex_lock(&lock);
  for (int domain = 0; domain < DOMAINS_MAX && !found; domain++) {
    for (sim_backing *b = domains[domain]; b && !found; b = b->next) {
      if (b->inode != 0 && b->inode == status.st_ino && b->device == status.st_dev) found = b;
    }
  }
  if (found) found->holders++;
  pthread_mutex_unlock(&lock);
  return found;
}

void sim_backing_hold(sim_backing *backing) {
  pthread_mutex_lock(&lock);
  backing->holders++;
  pthread_mutex_unlock(&lock);
}

void sim_backing_release(sim_backing *backing) {
  if (!backing) return;
  pthread_mutex_lock(&lock);
  bool last = --backing->holders == 0;
  if (last) {
    remove_from_domain(backing);
    close_fd(backing);
  }
  pthread_mutex_unlock(&lock);
  if (!last) return;
  munmap(backing->base, backing->bytes);
  free(backing);
}

void sim_backing_close(sim_backing *backing) {
  pthread_mutex_lock(&lock);
  close_fd(backing);
  pthread_mutex_unlock(&lock);
}
