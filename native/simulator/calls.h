/*
 * What happens around every call of a vendor function, in one place: is it in this version, count it, inject faults,
 * trace it. exports.c is made of these pairs.
 */
#ifndef SIM_CALLS_H
#define SIM_CALLS_H

#include <stdbool.h>
#include <stdint.h>

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

typedef struct {
  sim_call call;
  bool refused; /* by version or by a fault: the function must not be carried out */
  int result;
  int64_t start_us; /* when traced */
} sim_entry;

sim_entry sim_enter_call(sim_call call);
int sim_leave_call(const sim_entry *entry);

/* Name of the vendor's function. */
const char *sim_call_symbol(sim_call call);

/* Whether name, as rules of faults write it, means this call. */
bool sim_call_is_named(sim_call call, const char *name);

#endif
