/*
 * NPU memory: ref-counted mappings, budgeted per chip and IOMMU domain. Every function is safe from any thread.
 *
 * Strict memory has two copies, the CPU's and the device's, and only the sim_backing_to/from_device calls move data
 * between them; other memory is one copy that both see.
 */
#ifndef SIM_BACKING_H
#define SIM_BACKING_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chips.h"
#include "file.h"

typedef struct sim_backing {
  uint8_t *base;   /* what the CPU sees; NULL for a foreign file that may shrink: sim_backing_read and _write */
  uint8_t *device; /* what the NPU sees; base itself where memory is not strict */
  uint8_t *clean;  /* strict: what the CPU's copy was when it last agreed with the device's; tells dirty lines */
  pthread_mutex_t sync_lock; /* guards device and clean while data is moved */
  size_t bytes;              /* whole pages */
  size_t large;              /* of them in large pages, where the system has such */
  size_t limit;              /* bytes that may be used: bytes, or the size of a foreign file */
  uint64_t iova;             /* invented; unique within its domain, below 4 GiB */
  int chip, domain;
  int fd;           /* -1: hidden or foreign memory that is mapped, or closed by sim_backing_close */
  sim_file_id file; /* what fd is */
  bool foreign;     /* made by the program; fd is then a duplicate of its descriptor */
  bool writable;
  size_t holders;
  struct sim_backing *next; /* of the same domain, in rising iova */
} sim_backing;

typedef enum {
  BACKING_HIDDEN, /* callers cannot reach it */
  BACKING_SHARED, /* a memfd with a descriptor that callers may pass around */
  BACKING_STRICT  /* that, in two copies */
} sim_backing_kind;

/* Zeroed memory with one holder. NULL with errno set: ENOMEM (budget of the domain, or the machine's), EMFILE, or EFBIG
 * (memory is a file here, and the process may not have such large ones). */
sim_backing *sim_backing_allocate(int chip, int domain, uint64_t budget, uint64_t size, sim_backing_kind kind);

/* The backing of own memory that a descriptor refers to, with one more holder; NULL when it is none. */
sim_backing *sim_backing_of_fd(int fd);

/*
 * Foreign memory: whatever else a descriptor refers to and can be mapped. With one more holder; what was wrapped before
 * may be on another chip or in another domain. NULL with errno set: EBADF (no such descriptor, or not readable), EINVAL
 * (nothing that can be mapped, or without a size), ENOMEM, EMFILE.
 */
sim_backing *sim_backing_wrap(int chip, int domain, uint64_t budget, int fd);

/*
 * Copies a part of a foreign file, or onto it, without touching pages of it: they may be gone at any time, and whoever
 * touches them then gets SIGBUS. False with errno set: ENODATA when the part is not there any more, EBADF when the program
 * closed our descriptor.
 */
bool sim_backing_read(const sim_backing *backing, size_t start, size_t bytes, void *to);
bool sim_backing_write(const sim_backing *backing, size_t start, size_t bytes, const void *from);

void sim_backing_hold(sim_backing *backing);

/* Unmaps after the last holder. NULL is allowed. */
void sim_backing_release(sim_backing *backing);

/* Closes the descriptor of own memory, which lives on for its other holders. */
void sim_backing_close(sim_backing *backing);

uint64_t sim_backing_used(int chip, int domain);

/*
 * The work of cache maintenance, by cache lines: to the device go the lines that the CPU changed since both copies
 * last agreed; from the device come all lines, and what the CPU had changed in them is lost.
 */
void sim_backing_to_device(sim_backing *backing, size_t start, size_t bytes);
void sim_backing_from_device(sim_backing *backing, size_t start, size_t bytes);

#endif
