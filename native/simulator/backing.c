#define _GNU_SOURCE
#include "backing.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "counters.h"

#define LINE 64 /* bytes of a cache line */
#define IOVA_FIRST 0x10000u
#define IOVA_END (1ull << 32) /* an IOMMU domain spans 4 GiB (facts 7.4) */

/* Guards everything below and the fields fd, holders and next of every backing. Never held while multiplying. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sim_backing *domains[SIM_CHIPS][SIM_DOMAINS_MAX];
static uint64_t used[SIM_CHIPS][SIM_DOMAINS_MAX];

/* Links it at the lowest free address of its domain. False when budget or address space are exhausted. */
static bool place(sim_backing *backing, uint64_t budget) {
  if (used[backing->chip][backing->domain] + backing->bytes > budget) return false;
  uint64_t address = IOVA_FIRST;
  sim_backing **link = &domains[backing->chip][backing->domain];
  while (*link && (*link)->iova - address < backing->bytes) {
    address = (*link)->iova + (*link)->bytes;
    link = &(*link)->next;
  }
  if (address + backing->bytes > IOVA_END) return false;
  backing->iova = address;
  backing->next = *link;
  *link = backing;
  used[backing->chip][backing->domain] += backing->bytes;
  sim_count(NOW_BYTES, backing->bytes);
  return true;
}

static void remove_from_domain(sim_backing *backing) {
  sim_backing **link = &domains[backing->chip][backing->domain];
  while (*link != backing) link = &(*link)->next;
  *link = backing->next;
  used[backing->chip][backing->domain] -= backing->bytes;
  sim_uncount(NOW_BYTES, backing->bytes);
}

/* A caller may have closed the descriptor, and its number may be another file's by now: that one stays open. */
static void close_fd(sim_backing *backing) {
  if (backing->fd < 0) return;
  struct stat status;
  bool known = !fstat(backing->fd, &status) && status.st_dev == backing->device_number &&
               status.st_ino == backing->inode;
  if (known || backing->inode == 0) close(backing->fd);
  backing->fd = -1;
  sim_uncount(NOW_DESCRIPTORS, 1);
}

static uint8_t *map(size_t bytes, int flags, int fd) {
  void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  return pages == MAP_FAILED ? NULL : pages;
}

static void unmap_pages(sim_backing *backing) {
  if (backing->clean) munmap(backing->clean, backing->bytes);
  if (backing->device && backing->device != backing->base) munmap(backing->device, backing->bytes);
  if (backing->base) munmap(backing->base, backing->bytes);
}

/* Makes the pages; on failure nothing is left open or mapped and errno tells why. */
static bool map_pages(sim_backing *backing, sim_backing_kind kind) {
  const int private = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  if (kind != BACKING_HIDDEN) {
    backing->fd = memfd_create("npumm_sim", MFD_CLOEXEC);
    if (backing->fd < 0) return false;
    sim_count(NOW_DESCRIPTORS, 1);
    struct stat status;
    if (ftruncate(backing->fd, (off_t)backing->bytes) || fstat(backing->fd, &status)) {
      close_fd(backing);
      errno = ENOMEM;
      return false;
    }
    backing->device_number = status.st_dev;
    backing->inode = status.st_ino;
  }
  backing->base = map(backing->bytes, kind == BACKING_HIDDEN ? private : MAP_SHARED, backing->fd);
  backing->device = kind == BACKING_STRICT ? map(backing->bytes, private, -1) : backing->base;
  if (kind == BACKING_STRICT) backing->clean = map(backing->bytes, private, -1);
  if (backing->base && backing->device && (backing->clean || kind != BACKING_STRICT)) return true;
  unmap_pages(backing);
  close_fd(backing);
  errno = ENOMEM;
  return false;
}

sim_backing *sim_backing_allocate(int chip, int domain, uint64_t budget, uint64_t size, sim_backing_kind kind) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  sim_backing *backing = size <= UINT32_MAX ? calloc(1, sizeof *backing) : NULL;
  if (!backing) {
    errno = ENOMEM;
    return NULL;
  }
  backing->bytes = (size_t)((size + page - 1) / page * page);
  backing->chip = chip;
  backing->domain = domain;
  backing->fd = -1;
  backing->holders = 1;
  pthread_mutex_init(&backing->sync_lock, NULL);

  pthread_mutex_lock(&lock);
  int error = ENOMEM;
  bool placed = place(backing, budget);
  bool mapped = placed && map_pages(backing, kind);
  if (placed && !mapped) {
    error = errno;
    remove_from_domain(backing);
  }
  pthread_mutex_unlock(&lock);
  if (mapped) return backing;
  pthread_mutex_destroy(&backing->sync_lock);
  free(backing);
  errno = error;
  return NULL;
}

sim_backing *sim_backing_of_fd(int fd) {
  struct stat status;
  if (fd < 0 || fstat(fd, &status)) return NULL;
  sim_backing *found = NULL;
  pthread_mutex_lock(&lock);
  for (size_t i = 0; i < SIM_CHIPS * SIM_DOMAINS_MAX && !found; i++) {
    for (sim_backing *b = domains[i / SIM_DOMAINS_MAX][i % SIM_DOMAINS_MAX]; b && !found; b = b->next) {
      if (b->inode != 0 && b->inode == status.st_ino && b->device_number == status.st_dev) found = b;
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
  unmap_pages(backing);
  pthread_mutex_destroy(&backing->sync_lock);
  free(backing);
}

void sim_backing_close(sim_backing *backing) {
  pthread_mutex_lock(&lock);
  close_fd(backing);
  pthread_mutex_unlock(&lock);
}

uint64_t sim_backing_used(int chip, int domain) {
  pthread_mutex_lock(&lock);
  uint64_t bytes = used[chip][domain];
  pthread_mutex_unlock(&lock);
  return bytes;
}

/* ---- strict memory ----------------------------------------------------------------------------------------------- */

/* Widens a range to whole lines. bytes is a multiple of LINE at the end, because backings are whole pages. */
static void widen(size_t *start, size_t *end) {
  *start = *start / LINE * LINE;
  *end = (*end + LINE - 1) / LINE * LINE;
}

void sim_backing_to_device(sim_backing *backing, size_t start, size_t bytes) {
  if (!backing->clean) return;
  size_t end = start + bytes, moved = 0;
  widen(&start, &end);
  pthread_mutex_lock(&backing->sync_lock);
  for (size_t line = start; line < end; line += LINE) {
    if (memcmp(backing->base + line, backing->clean + line, LINE) == 0) continue;
    memcpy(backing->device + line, backing->base + line, LINE);
    memcpy(backing->clean + line, backing->base + line, LINE);
    moved += LINE;
  }
  pthread_mutex_unlock(&backing->sync_lock);
  sim_count(COUNT_TO_DEVICE, moved);
}

void sim_backing_from_device(sim_backing *backing, size_t start, size_t bytes) {
  if (!backing->clean) return;
  size_t end = start + bytes;
  widen(&start, &end);
  pthread_mutex_lock(&backing->sync_lock);
  memcpy(backing->base + start, backing->device + start, end - start);
  memcpy(backing->clean + start, backing->device + start, end - start);
  pthread_mutex_unlock(&backing->sync_lock);
  sim_count(COUNT_FROM_DEVICE, end - start);
}
