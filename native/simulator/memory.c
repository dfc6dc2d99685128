#include "memory.h"

#include <stdlib.h>

#include "log.h"

void sim_memory_hold(sim_memory *memory) { atomic_fetch_add(&memory->holders, 1); }

void sim_memory_release(sim_memory *memory) {
  if (atomic_fetch_sub(&memory->holders, 1) > 1) return;
  sim_backing_release(memory->backing);
  free(memory);
}

bool sim_memory_locate(const sim_memory *memory, uint64_t need, const char *function, size_t *start) {
  const rknn_tensor_mem *shown = &memory->shown;
  if (shown->size < need) {
    sim_log_error("%s, simulator: memory of %u bytes for a tensor of %llu bytes", function, shown->size,
                  (unsigned long long)need);
    return false;
  }
  /* Modulo 2^64, so that any rubbish gives some number and no undefined behaviour. */
  uint64_t moved = (uint64_t)(uintptr_t)shown->virt_addr - (uint64_t)(uintptr_t)memory->virt_addr;
  uint64_t first = moved + (uint64_t)(int64_t)shown->offset;
  uint64_t bytes = memory->backing->limit;
  if (first > bytes || need > bytes - first) {
    sim_log_error("%s, simulator: virt_addr, offset %d and size %u reach outside of the memory's %llu bytes", function,
                  shown->offset, shown->size, (unsigned long long)bytes);
    return false;
  }
  *start = (size_t)first;
  return true;
}

void sim_memory_to_device(sim_memory *memory, size_t start, size_t bytes) {
  if (memory->owns_fd) sim_backing_to_device(memory->backing, start, bytes);
}

void sim_memory_from_device(sim_memory *memory, size_t start, size_t bytes) {
  if (memory->owns_fd) sim_backing_from_device(memory->backing, start, bytes);
}
