/*
 * Handles of living contexts, and pointers to living rknn_tensor_mem structs. Every handle and pointer that a caller
 * passes is looked up here before it is used, so a stale or made-up one is refused and never followed.
 */
#ifndef SIM_REGISTRY_H
#define SIM_REGISTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "context.h"
#include "memory.h"
#include "rknn_abi.h"

/* Makes a handle, entered; 0 when as many contexts live on its chip as its settings allow. No handle is given twice. */
rknn_context sim_registry_add_context(sim_context *context);

/*
 * Gives the caller the context for itself until sim_registry_leave. RKNN_ERR_CTX_INVALID for a handle that is none;
 * RKNN_ERR_FAIL with a log line naming function when another thread is in it: nothing says that a runtime would
 * survive that (Q18).
 */
int sim_registry_enter(rknn_context handle, const char *function, sim_context **context);
void sim_registry_leave(rknn_context handle);

/* Forgets an entered context. True when it was the last one. */
bool sim_registry_remove_context(rknn_context handle);

uint64_t sim_registry_contexts(int chip);

/* Where to allocate: chip and IOMMU domain of the context, or for handle 0 domain 0 of the thread's chip. */
typedef struct {
  int chip, domain;
  int core_mask; /* of the context; RKNN_NPU_CORE_AUTO without one */
} sim_place;

/* False for a handle that is none. */
bool sim_registry_place(rknn_context handle, sim_place *place);

void sim_registry_add_memory(sim_memory *memory);

/* The memory with one more holder (sim_memory_release it); NULL for a pointer that is none. */
sim_memory *sim_registry_hold_memory(const rknn_tensor_mem *pointer);

/* Takes it out; the caller gets the registry's hold. NULL for a pointer that is none. */
sim_memory *sim_registry_remove_memory(const rknn_tensor_mem *pointer);

#endif
