#include "scratch.h"

#include <stdlib.h>

#include "locks.h"

#define ALIGNMENT 64 /* a cache line, and the header's size */

typedef struct block {
  struct block *next;
  size_t bytes; /* after the header */
} block;

static block *idle;

void *sim_scratch_take(size_t bytes) {
  sim_take(LOCK_SCRATCH);
  block *found = idle;
  if (found) idle = found->next;
  sim_give(LOCK_SCRATCH);
  if (!found || found->bytes < bytes) {
    free(found);
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    found = aligned_alloc(ALIGNMENT, ALIGNMENT + rounded);
    if (!found) return NULL;
    found->bytes = rounded;
  }
  return (char *)found + ALIGNMENT;
}

void sim_scratch_give(void *memory) {
  if (!memory) return;
  block *given = (block *)(void *)((char *)memory - ALIGNMENT);
  sim_take(LOCK_SCRATCH);
  given->next = idle;
  idle = given;
  sim_give(LOCK_SCRATCH);
}

void sim_scratch_trim(void) {
  sim_take(LOCK_SCRATCH);
  block *list = idle;
  idle = NULL;
  sim_give(LOCK_SCRATCH);
  while (list) {
    block *next = list->next;
    free(list);
    list = next;
  }
}
