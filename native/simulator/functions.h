/*
 * The vendor's functions as a table: what they are called and which versions of the runtime have them.
 */
#ifndef SIM_FUNCTIONS_H
#define SIM_FUNCTIONS_H

#include <stdbool.h>

#include "runtimes.h"

typedef enum {
  CALL_CREATE,
  CALL_CREATE_DYN_SHAPE,
  CALL_CREATE_DYNAMIC_SHAPE,
  CALL_SET_DYNAMIC_SHAPE,
  CALL_SET_IO_MEM,
  CALL_SET_CORE_MASK,
  CALL_SET_QUANT_PARAMS,
  CALL_GET_QUANT_PARAMS,
  CALL_RUN,
  CALL_DESTROY,
  CALL_PACK_B_7,
  CALL_PACK_B_5,
  CALL_CREATE_MEM,
  CALL_CREATE_MEM2,
  CALL_CREATE_MEM_FROM_FD,
  CALL_CREATE_MEM_FROM_PHYS,
  CALL_DESTROY_MEM,
  CALL_MEM_SYNC,
  CALL_QUERY,
  CALLS
} sim_call;

/* Name of the vendor's function. */
const char *sim_call_symbol(sim_call call);

/* Whether name, as rules of faults write it, means this call. */
bool sim_call_is_named(sim_call call, const char *name);

/* Whether a version has the function in this form. */
bool sim_call_exists(sim_call call, const sim_runtime *runtime);

#endif
