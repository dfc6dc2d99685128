#define _GNU_SOURCE
#include "backing.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "counters.h"
#include "foreign.h"
#include "locks.h"

#define LINE 64 /* bytes of a cache line */
#define LARGE_PAGE ((size_t)2 << 20)
#define LARGE_MOST ((size_t)256 << 20) /* bytes that are made of them at once */
#define MEMORY_SHARE 4                 /* and all together are that part of the machine's memory at most */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif
#define IOVA_FIRST 0x10000u
#define IOVA_END (1ull << 32) /* an IOMMU domain spans 4 GiB (facts 7.4) */

/* Guards everything below and the fields fd, holders and next of every backing. Never held while multiplying. */
static sim_backing *domains[SIM_CHIPS][SIM_DOMAINS_MAX];
static uint64_t used[SIM_CHIPS][SIM_DOMAINS_MAX];
/* In large pages; of all domains. */
static atomic_size_t large_bytes;

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

static void close_fd(sim_backing *backing) {
  if (backing->fd < 0) return;
  sim_file_close(backing->fd, backing->file);
  backing->fd = -1;
  sim_uncount(NOW_DESCRIPTORS, 1);
}

static uint8_t *map(size_t bytes, int protection, int flags, int fd) {
  void *pages = mmap(NULL, bytes, protection, flags, fd, 0);
  return pages == MAP_FAILED ? NULL : pages;
}

/* As map, of a descriptor, from where a large page can begin. */
static uint8_t *map_aligned(size_t bytes, int fd) {
  const int both = PROT_READ | PROT_WRITE;
  if (bytes < LARGE_PAGE) return map(bytes, both, MAP_SHARED, fd);
  uint8_t *room = map(bytes + LARGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
  if (!room) return map(bytes, both, MAP_SHARED, fd);
  const size_t before = -(uintptr_t)room % LARGE_PAGE;
  void *pages = mmap(room + before, bytes, both, MAP_SHARED | MAP_FIXED, fd, 0);
  if (pages == MAP_FAILED) {
    munmap(room, bytes + LARGE_PAGE);
    return NULL;
  }
  if (before) munmap(room, before);
  munmap(room + before + bytes, LARGE_PAGE - before);
  return pages;
}

/*
 * Reading B is most of what a product of one row takes, and through large pages it is nearly twice as fast. Linux makes
 * shared memory of small ones by itself, but of the first of them a large one where it is asked to, which also saves a
 * fault for each. Where it does not, memory is as it was.
 */
static void enlarge_pages(sim_backing *backing) {
  static atomic_bool refused;
  const size_t most = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) / MEMORY_SHARE;
  const size_t bytes = backing->bytes / LARGE_PAGE * LARGE_PAGE;
  if (bytes == 0 || bytes > LARGE_MOST || (uintptr_t)backing->base % LARGE_PAGE != 0) return;
  if (atomic_fetch_add(&large_bytes, bytes) + bytes > most) {
    atomic_fetch_sub(&large_bytes, bytes);
    return;
  }
  backing->large = bytes;
  for (size_t i = 0; i < bytes && !atomic_load(&refused); i += LARGE_PAGE) {
    *(volatile uint8_t *)(backing->base + i) = 0;
    if (madvise(backing->base + i, LARGE_PAGE, MADV_COLLAPSE) == 0) continue;
    if (errno == EINVAL) atomic_store(&refused, true);
    return;
  }
}

static void unmap_pages(sim_backing *backing) {
  atomic_fetch_sub(&large_bytes, backing->large);
  if (backing->clean) munmap(backing->clean, backing->bytes);
  if (backing->device && backing->device != backing->base) munmap(backing->device, backing->bytes);
  if (backing->base) munmap(backing->base, backing->bytes);
}

/*
 * Makes the pages; on failure nothing is left open or mapped and errno tells why. The program has the descriptor: seals
 * keep it from taking pages away under the runtime's hands, which it could not do with a board's memory either.
 */
static bool map_pages(sim_backing *backing, sim_backing_kind kind) {
  const int both = PROT_READ | PROT_WRITE, private = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  if (kind != BACKING_HIDDEN) {
    backing->fd = sim_file_memory("npumm_sim");
    if (backing->fd < 0) return false;
    sim_count(NOW_DESCRIPTORS, 1);
    sim_file_identify(backing->fd, &backing->file);
    if (!sim_file_resize(backing->fd, backing->bytes) ||
        fcntl(backing->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
      int error = errno;
      close_fd(backing);
      errno = error == EFBIG ? EFBIG : ENOMEM;
      return false;
    }
  }
  if (kind == BACKING_HIDDEN) backing->base = map(backing->bytes, both, private, -1);
  else backing->base = map_aligned(backing->bytes, backing->fd);
  backing->device = kind == BACKING_STRICT ? map(backing->bytes, both, private, -1) : backing->base;
  if (kind == BACKING_STRICT) backing->clean = map(backing->bytes, both, private, -1);
  if (backing->base && backing->device && (backing->clean || kind != BACKING_STRICT)) return true;
  unmap_pages(backing);
  close_fd(backing);
  errno = ENOMEM;
  return false;
}

/* Memory of size bytes with one holder, in no domain yet. NULL with errno set. */
static sim_backing *make(int chip, int domain, uint64_t size) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  sim_backing *backing = size <= UINT32_MAX ? calloc(1, sizeof *backing) : NULL;
  if (!backing) {
    errno = ENOMEM;
    return NULL;
  }
  backing->bytes = backing->limit = (size_t)((size + page - 1) / page * page);
  backing->chip = chip;
  backing->domain = domain;
  backing->fd = -1;
  backing->writable = true;
  backing->holders = 1;
  pthread_mutex_init(&backing->sync_lock, NULL);
  return backing;
}

/* Keeps errno. */
static void unmake(sim_backing *backing) {
  int error = errno;
  unmap_pages(backing);
  close_fd(backing);
  pthread_mutex_destroy(&backing->sync_lock);
  free(backing);
  errno = error;
}

sim_backing *sim_backing_allocate(int chip, int domain, uint64_t budget, uint64_t size, sim_backing_kind kind) {
  sim_backing *backing = make(chip, domain, size);
  if (!backing) return NULL;
  sim_take(LOCK_BACKINGS);
  errno = ENOMEM;
  bool placed = place(backing, budget);
  bool mapped = placed && map_pages(backing, kind);
  if (placed && !mapped) remove_from_domain(backing);
  sim_give(LOCK_BACKINGS);
  if (!mapped) {
    unmake(backing);
    return NULL;
  }
  if (kind == BACKING_SHARED) enlarge_pages(backing);
  return backing;
}

/* ---- memory by its descriptor ------------------------------------------------------------------------------------ */

/*
 * Of what is in some domain; a file that has changed meanwhile is another one. With one more holder. LOCK_BACKINGS is
 * held.
 */
static sim_backing *find(sim_file_id id, const sim_foreign *foreign) {
  sim_backing *found = NULL;
  for (size_t i = 0; i < SIM_CHIPS * SIM_DOMAINS_MAX && !found; i++) {
    for (sim_backing *b = domains[i / SIM_DOMAINS_MAX][i % SIM_DOMAINS_MAX]; b && !found; b = b->next) {
      if (b->foreign != (foreign != NULL) || !sim_file_same(b->file, id)) continue;
      if (!foreign || (b->limit == foreign->size && b->writable == foreign->writable)) found = b;
    }
  }
  if (found) found->holders++;
  return found;
}

sim_backing *sim_backing_of_fd(int fd) {
  sim_file_id id;
  if (!sim_file_identify(fd, &id)) return NULL;
  sim_take(LOCK_BACKINGS);
  sim_backing *found = find(id, NULL);
  sim_give(LOCK_BACKINGS);
  return found;
}

/* Makes what is foreign reachable: by a mapping, or by a descriptor of our own where pages may be taken away. */
static bool reach(sim_backing *backing, const sim_foreign *foreign, int fd) {
  if (foreign->may_shrink) {
    backing->fd = sim_file_duplicate(fd);
    if (backing->fd >= 0) sim_count(NOW_DESCRIPTORS, 1);
    return backing->fd >= 0;
  }
  backing->base = map(backing->bytes, PROT_READ | (foreign->writable ? PROT_WRITE : 0), MAP_SHARED, fd);
  backing->device = backing->base;
  return backing->base != NULL;
}

sim_backing *sim_backing_wrap(int chip, int domain, uint64_t budget, int fd) {
  sim_file_id id;
  sim_foreign foreign;
  if (!sim_file_identify(fd, &id) || !sim_foreign_examine(fd, &foreign)) return NULL;
  sim_take(LOCK_BACKINGS);
  sim_backing *found = find(id, &foreign);
  sim_give(LOCK_BACKINGS);
  if (found) return found;
  sim_backing *backing = make(chip, domain, foreign.size);
  if (!backing) return NULL;
  backing->limit = (size_t)foreign.size;
  backing->foreign = true;
  backing->writable = foreign.writable;
  backing->file = id;
  bool reached = reach(backing, &foreign, fd);
  sim_take(LOCK_BACKINGS);
  if (reached) found = find(id, &foreign); /* another thread may have been faster */
  bool placed = reached && !found && place(backing, budget);
  sim_give(LOCK_BACKINGS);
  if (placed) return backing;
  if (reached) errno = ENOMEM;
  unmake(backing);
  return found;
}

bool sim_backing_read(const sim_backing *backing, size_t start, size_t bytes, void *to) {
  return sim_file_is(backing->fd, backing->file) && sim_foreign_read(backing->fd, start, bytes, to);
}

bool sim_backing_write(const sim_backing *backing, size_t start, size_t bytes, const void *from) {
  return sim_file_is(backing->fd, backing->file) && sim_foreign_write(backing->fd, start, bytes, from);
}

/* ---- holders ----------------------------------------------------------------------------------------------------- */

void sim_backing_hold(sim_backing *backing) {
  sim_take(LOCK_BACKINGS);
  backing->holders++;
  sim_give(LOCK_BACKINGS);
}

void sim_backing_release(sim_backing *backing) {
  if (!backing) return;
  sim_take(LOCK_BACKINGS);
  bool last = --backing->holders == 0;
  if (last) remove_from_domain(backing);
  sim_give(LOCK_BACKINGS);
  if (last) unmake(backing);
}

void sim_backing_close(sim_backing *backing) {
  sim_take(LOCK_BACKINGS);
  close_fd(backing);
  sim_give(LOCK_BACKINGS);
}

uint64_t sim_backing_used(int chip, int domain) {
  sim_take(LOCK_BACKINGS);
  uint64_t bytes = used[chip][domain];
  sim_give(LOCK_BACKINGS);
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
