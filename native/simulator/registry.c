#include "registry.h"

#include "counters.h"
#include "locks.h"
#include "log.h"

/* ---- contexts: a hash table of chains by serial number ----------------------------------------------------------- */

#define CONTEXT_BUCKETS 4096

/* A handle is a tag and the serial number of its creation. Real handles are large numbers too (facts 1.8). */
static const rknn_context handle_tag = 0x4e50ull << 48;

static sim_context *contexts[CONTEXT_BUCKETS];
static rknn_context created;
static unsigned living[SIM_CHIPS];

static sim_context **context_link(rknn_context handle) {
  sim_context **link = &contexts[handle % CONTEXT_BUCKETS];
  while (*link && (*link)->handle != handle) link = &(*link)->next;
  return link;
}

rknn_context sim_registry_add_context(sim_context *context) {
  uint32_t most = context->settings.contexts;
  sim_take(LOCK_CONTEXTS);
  if (most == 0 || living[context->chip->index] < most) {
    living[context->chip->index]++;
    context->handle = handle_tag | ++created;
    context->entered = true;
    sim_context **bucket = &contexts[context->handle % CONTEXT_BUCKETS];
    context->next = *bucket;
    *bucket = context;
  }
  rknn_context handle = context->handle;
  sim_give(LOCK_CONTEXTS);
  return handle;
}

uint64_t sim_registry_contexts(int chip) {
  sim_take(LOCK_CONTEXTS);
  uint64_t count = living[chip];
  sim_give(LOCK_CONTEXTS);
  return count;
}

int sim_registry_enter(rknn_context handle, const char *function, sim_context **context) {
  int result = RKNN_ERR_CTX_INVALID;
  sim_take(LOCK_CONTEXTS);
  sim_context *found = *context_link(handle);
  if (found) {
    result = found->entered ? RKNN_ERR_FAIL : RKNN_SUCC;
    found->entered = true;
    *context = found;
  }
  sim_give(LOCK_CONTEXTS);
  if (result == RKNN_ERR_FAIL) sim_log_error("%s, simulator: another thread is using this context", function);
  return result;
}

void sim_registry_leave(rknn_context handle) {
  sim_take(LOCK_CONTEXTS);
  sim_context *found = *context_link(handle);
  if (found) found->entered = false;
  sim_give(LOCK_CONTEXTS);
}

bool sim_registry_remove_context(rknn_context handle) {
  unsigned left = 1;
  sim_take(LOCK_CONTEXTS);
  sim_context **link = context_link(handle);
  if (*link) {
    living[(*link)->chip->index]--;
    *link = (*link)->next;
    left = 0;
    for (int chip = 0; chip < SIM_CHIPS; chip++) left += living[chip];
  }
  sim_give(LOCK_CONTEXTS);
  return left == 0;
}

bool sim_registry_place(rknn_context handle, sim_place *place) {
  if (handle == 0) {
    *place = (sim_place){.chip = sim_current_settings().chip->index, .domain = 0};
    return true;
  }
  sim_take(LOCK_CONTEXTS);
  const sim_context *found = *context_link(handle);
  if (found) *place = (sim_place){.chip = found->chip->index, .domain = found->domain, .core_mask = found->core_mask};
  sim_give(LOCK_CONTEXTS);
  return found != NULL;
}

/* ---- memories: a hash table of chains ---------------------------------------------------------------------------- */

#define BUCKETS 1024

static sim_memory *buckets[BUCKETS];

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
  sim_take(LOCK_MEMORIES);
  sim_memory **bucket = bucket_of(&memory->shown);
  memory->next = *bucket;
  *bucket = memory;
  sim_give(LOCK_MEMORIES);
  sim_count(NOW_MEMORIES, 1);
}

sim_memory *sim_registry_hold_memory(const rknn_tensor_mem *pointer) {
  sim_take(LOCK_MEMORIES);
  sim_memory *memory = *link_of(pointer);
  if (memory) sim_memory_hold(memory);
  sim_give(LOCK_MEMORIES);
  return memory;
}

sim_memory *sim_registry_remove_memory(const rknn_tensor_mem *pointer) {
  sim_take(LOCK_MEMORIES);
  sim_memory **link = link_of(pointer);
  sim_memory *memory = *link;
  if (memory) *link = memory->next;
  sim_give(LOCK_MEMORIES);
  if (memory) sim_uncount(NOW_MEMORIES, 1);
  return memory;
}
