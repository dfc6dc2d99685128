/*
 * What can be found out about memory that a program made itself and wraps with rknn_create_mem_from_fd: a dma-buf on a
 * board, a memfd or a file elsewhere.
 */
#ifndef SIM_FOREIGN_H
#define SIM_FOREIGN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
  uint64_t size;   /* bytes */
  bool writable;   /* not for what is open for reading or appending only, or is sealed */
  bool may_shrink; /* a file: its pages must not be touched, only read and written by system calls */
} sim_foreign;

/* False with errno set: EBADF (no such descriptor, or not readable), EINVAL (cannot be mapped, or has no size),
 * ENOMEM. */
bool sim_foreign_examine(int fd, sim_foreign *foreign);

/* Of what may shrink. False with errno set: ENODATA when the part is not there. */
bool sim_foreign_read(int fd, size_t start, size_t bytes, void *to);
bool sim_foreign_write(int fd, size_t start, size_t bytes, const void *from);

#endif
