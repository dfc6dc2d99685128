#include "scratch.h"

#include <stdbool.h>
#include <stdlib.h>

#include "locks.h"

#define ALIGNMENT 64 /* a cache line, and the header's size */

typedef struct block {
  struct block *next;
  size_t bytes; /* after the header */
} block;

static block *idle;

/* Takes the smallest block with room out of the list, or else the largest one, which will be replaced. */
static block *take_idle(size_t bytes) {
  block **best = &idle;
  for (block **link = &idle; *link; link = &(*link)->next) {
    bool fits = (*link)->bytes >= bytes, best_fits = (*best)->bytes >= bytes;
    if (fits != best_fits ? fits : fits == ((*link)->bytes < (*best)->bytes)) best = link;
  }
  block *found = *best;
  if (found) *best = found->next;
  return found;
}

void *sim_scratch_take(size_t bytes) {
  sim_take(LOCK_SCRATCH);
  block *found = take_idle(bytes);
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
