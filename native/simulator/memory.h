/*
 * What stands behind a rknn_tensor_mem that a caller holds.
 */
#ifndef SIM_MEMORY_H
#define SIM_MEMORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "backing.h"
#include "rknn_abi.h"

typedef struct sim_memory {
  rknn_tensor_mem shown; /* first: its address is what the caller has. The caller may write to it: trust no field */
  sim_backing *backing;
  const void *virt_addr; /* as created; for a wrapped descriptor the caller's own mapping, which is never followed */
  int domain;            /* IOMMU domain of the context it was created with */
  bool owns_fd;          /* made by create_mem or create_mem2, not a wrap */
  atomic_size_t holders; /* the registry until destroy_mem, and every binding */
  atomic_bool destroyed;
  struct sim_memory *next; /* in the registry */
} sim_memory;

void sim_memory_hold(sim_memory *memory);
void sim_memory_release(sim_memory *memory);

/*
 * Where in the backing the need bytes of a tensor begin, from the fields as the caller left them; false with a log line
 * in the name of function when they would not lie inside the memory (a board's behaviour would be undefined).
 */
bool sim_memory_locate(const sim_memory *memory, uint64_t need, const char *function, size_t *start);

/*
 * Cache maintenance of a part, as a runtime does it. A wrapped descriptor is reported to be left out of it, whoever
 * asks (Q15): what owns the descriptor must be synchronised instead.
 */
void sim_memory_to_device(sim_memory *memory, size_t start, size_t bytes);
void sim_memory_from_device(sim_memory *memory, size_t start, size_t bytes);

#endif
