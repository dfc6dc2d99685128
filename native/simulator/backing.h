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
#include <sys/types.h>

#include "chips.h"

typedef struct sim_backing {
  uint8_t *base;      /* what the CPU sees */
  uint8_t *device;    /* what the NPU sees; base itself where memory is not strict */
  uint8_t *clean;     /* strict: what the CPU's copy was when it last agreed with the device's; tells dirty lines */
  pthread_mutex_t sync_lock; /* guards device and clean while data is moved */
  size_t bytes;       /* whole pages */
  uint64_t iova;      /* invented; unique within its domain, below 4 GiB */
  int chip, domain;
  int fd;             /* -1: hidden memory, or closed by sim_backing_close */
  dev_t device_number; /* with inode: which memfd it is, however often its descriptor was duplicated */
  ino_t inode;        /* 0: no memfd */
  size_t holders;
  struct sim_backing *next; /* of the same domain, in rising iova */
} sim_backing;

typedef enum {
  BACKING_HIDDEN, /* callers cannot reach it */
  BACKING_SHARED, /* a memfd with a descriptor that callers may pass around */
  BACKING_STRICT  /* that, in two copies */
} sim_backing_kind;

/* Zeroed memory with one holder. NULL with errno set: ENOMEM (budget of the domain, or the machine's) or EMFILE. */
sim_backing *sim_backing_allocate(int chip, int domain, uint64_t budget, uint64_t size, sim_backing_kind kind);

/* The backing that a descriptor refers to, with one more holder; NULL when it is none of ours. */
sim_backing *sim_backing_of_fd(int fd);

void sim_backing_hold(sim_backing *backing);

/* Unmaps after the last holder. NULL is allowed. */
void sim_backing_release(sim_backing *backing);

/* Closes the descriptor; the memory lives on for its other holders. */
void sim_backing_close(sim_backing *backing);

uint64_t sim_backing_used(int chip, int domain);

/*
 * The work of cache maintenance, by cache lines: to the device go the lines that the CPU changed since both copies
 * last agreed; from the device come all lines, and what the CPU had changed in them is lost.
 */
void sim_backing_to_device(sim_backing *backing, size_t start, size_t bytes);
void sim_backing_from_device(sim_backing *backing, size_t start, size_t bytes);

#endif
