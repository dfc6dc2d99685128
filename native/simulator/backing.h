/*
 * NPU memory: ref-counted mappings, budgeted per IOMMU domain. Every function is safe from any thread.
 */
#ifndef SIM_BACKING_H
#define SIM_BACKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct sim_backing {
  uint8_t *base;
  size_t bytes;       /* whole pages */
  uint64_t iova;      /* invented; unique within its domain, below 4 GiB */
  int domain;
  int fd;             /* -1: hidden memory, or closed by sim_backing_close */
  dev_t device;       /* with inode: which memfd it is, however often its descriptor was duplicated */
  ino_t inode;        /* 0: no memfd */
  size_t holders;
  struct sim_backing *next; /* of the same domain, in rising iova */
} sim_backing;

/*
 * Zeroed memory with one holder. shared: as a memfd with a descriptor that callers may pass around; otherwise hidden
 * from them. NULL with errno set: ENOMEM (budget of the domain, or the machine's) or EMFILE.
 */
sim_backing *sim_backing_allocate(int domain, uint64_t size, bool shared);

/* The backing that a descriptor refers to, with one more holder; NULL when it is none of ours. */
sim_backing *sim_backing_of_fd(int fd);

void sim_backing_hold(sim_backing *backing);

/* Unmaps after the last holder. NULL is allowed. */
void sim_backing_release(sim_backing *backing);

/* Closes the descriptor; the memory lives on for its other holders. */
void sim_backing_close(sim_backing *backing);

#endif
