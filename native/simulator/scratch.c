#include "scratch.h"

#include <pthread.h>
#include <stdlib.h>

#define ALIGNMENT 64 /* a cache line, and the header's size */

typedef struct block {
  struct block *next;
  size_t bytes; /* after the header */
} block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block *idle;

void *sim_scratch_take(size_t bytes) {
  pthread_mutex_lock(&lock);
  block *found = idle;
  if (found) idle = found->next;
  pthread_mutex_unlock(&lock);
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
  pthread_mutex_lock(&lock);
  given->next = idle;
  idle = given;
  pthread_mutex_unlock(&lock);
}

void sim_scratch_trim(void) {
  pthread_mutex_lock(&lock);
  block *list = idle;
  idle = NULL;
  pthread_mutex_unlock(&lock);
  while (list) {
    block *next = list->next;
    free(list);
    list = next;
  }
}
