#include "registry.h"

#include <pthread.h>

#include "counters.h"
#include "log.h"

/*
 * A handle is tag << 48 | generation << 16 | slot. Real handles are large numbers too (facts 1.8). The generation makes
 * the handle of a destroyed context differ from that of a later one in the same slot.
 */
#define HANDLE_TAG 0x4e50ull
#define SLOTS (SIM_CHIPS * SIM_CONTEXTS_MAX)

static struct {
  sim_context *context; /* NULL: free */
  uint32_t generation;
  bool entered;
} slots[SLOTS];
static unsigned living[SIM_CHIPS];
static pthread_mutex_t context_lock = PTHREAD_MUTEX_INITIALIZER;

static rknn_context handle_of(unsigned slot) {
  return HANDLE_TAG << 48 | (rknn_context)slots[slot].generation << 16 | slot;
}

/* The slot of a handle, or -1. */
static int slot_of(rknn_context handle) {
  unsigned slot = (unsigned)(handle & 0xffffu);
  return slot < SLOTS && slots[slot].context && handle_of(slot) == handle ? (int)slot : -1;
}

rknn_context sim_registry_add_context(sim_context *context) {
  rknn_context handle = 0;
  pthread_mutex_lock(&context_lock);
  if (living[context->chip->index] < context->settings.contexts) {
    for (unsigned slot = 0; slot < SLOTS && !handle; slot++) {
      if (slots[slot].context) continue;
      slots[slot].context = context;
      slots[slot].generation++;
      slots[slot].entered = true;
      living[context->chip->index]++;
      handle = handle_of(slot);
    }
  }
  pthread_mutex_unlock(&context_lock);
  return handle;
}

uint64_t sim_registry_contexts(int chip) {
  pthread_mutex_lock(&context_lock);
  uint64_t count = living[chip];
  pthread_mutex_unlock(&context_lock);
  return count;
}

int sim_registry_enter(rknn_context handle, const char *function, sim_context **context) {
  int result = RKNN_ERR_CTX_INVALID;
  pthread_mutex_lock(&context_lock);
  int slot = slot_of(handle);
  if (slot >= 0) {
    result = slots[slot].entered ? RKNN_ERR_FAIL : RKNN_SUCC;
    slots[slot].entered = true;
    *context = slots[slot].context;
  }
  pthread_mutex_unlock(&context_lock);
  if (result == RKNN_ERR_FAIL) sim_log_error("%s, simulator: another thread is using this context", function);
  return result;
}

void sim_registry_leave(rknn_context handle) {
  pthread_mutex_lock(&context_lock);
  int slot = slot_of(handle);
  if (slot >= 0) slots[slot].entered = false;
  pthread_mutex_unlock(&context_lock);
}

bool sim_registry_remove_context(rknn_context handle) {
  unsigned left = 1;
  pthread_mutex_lock(&context_lock);
  int slot = slot_of(handle);
  if (slot >= 0) {
    living[slots[slot].context->chip->index]--;
    slots[slot].context = NULL;
    left = 0;
    for (int chip = 0; chip < SIM_CHIPS; chip++) left += living[chip];
  }
  pthread_mutex_unlock(&context_lock);
  return left == 0;
}

bool sim_registry_place(rknn_context handle, sim_place *place) {
  if (handle == 0) {
    *place = (sim_place){.chip = sim_current_settings().chip->index, .domain = 0};
    return true;
  }
  pthread_mutex_lock(&context_lock);
  int slot = slot_of(handle);
  if (slot >= 0) {
    const sim_context *context = slots[slot].context;
    *place = (sim_place){.chip = context->chip->index, .domain = context->domain};
  }
  pthread_mutex_unlock(&context_lock);
  return slot >= 0;
}

/* ---- memories: a hash table of chains ---------------------------------------------------------------------------- */

#define BUCKETS 1024

static sim_memory *buckets[BUCKETS];
static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;

/* Fibonacci hashing of the address; its top ten bits choose the bucket. */
static sim_memory **bucket_of(const rknn_tensor_mem *pointer) {
  return &buckets[((uint64_t)(uintptr_t)pointer * 0x9e3779b97f4a7c15ull) >> 54];
}

static sim_memory **link_of(const rknn_tensor_mem *pointer) {
  sim_memory **link = bucket_of(pointer);
  while (*link && &(*link)->shown != pointer) link = &(*link)->next;
  return link;
}

void sim_registry_add_memory(sim_memory *memory) {
  pthread_mutex_lock(&memory_lock);
  sim_memory **bucket = bucket_of(&memory->shown);
  memory->next = *bucket;
  *bucket = memory;
  pthread_mutex_unlock(&memory_lock);
  sim_count(NOW_MEMORIES, 1);
}

sim_memory *sim_registry_hold_memory(const rknn_tensor_mem *pointer) {
  pthread_mutex_lock(&memory_lock);
  sim_memory *memory = *link_of(pointer);
  if (memory) sim_memory_hold(memory);
  pthread_mutex_unlock(&memory_lock);
  return memory;
}

sim_memory *sim_registry_remove_memory(const rknn_tensor_mem *pointer) {
  pthread_mutex_lock(&memory_lock);
  sim_memory **link = link_of(pointer);
  sim_memory *memory = *link;
  if (memory) *link = memory->next;
  pthread_mutex_unlock(&memory_lock);
  if (memory) sim_uncount(NOW_MEMORIES, 1);
  return memory;
}
