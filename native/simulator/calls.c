#include "calls.h"

#include <string.h>

#include "counters.h"
#include "faults.h"
#include "log.h"
#include "rknn_abi.h"
#include "settings.h"
#include "trace.h"

/* Version numbers of the first and last runtime that has it (facts 1.5); 999: still there. */
static const struct {
  const char *symbol, *fault_name;
  int first, last;
} calls[CALLS] = {
    [CALL_CREATE] = {"rknn_matmul_create", "create", 152, 999},
    [CALL_CREATE_DYN_SHAPE] = {"rknn_matmul_create_dyn_shape", "create_dynamic_shape", 200, 200},
    [CALL_CREATE_DYNAMIC_SHAPE] = {"rknn_matmul_create_dynamic_shape", "create_dynamic_shape", 210, 999},
    [CALL_SET_DYNAMIC_SHAPE] = {"rknn_matmul_set_dynamic_shape", "set_dynamic_shape", 200, 999},
    [CALL_SET_IO_MEM] = {"rknn_matmul_set_io_mem", "set_io_mem", 152, 999},
    [CALL_SET_CORE_MASK] = {"rknn_matmul_set_core_mask", "set_core_mask", 152, 999},
    [CALL_SET_QUANT_PARAMS] = {"rknn_matmul_set_quant_params", "set_quant_params", 200, 999},
    [CALL_GET_QUANT_PARAMS] = {"rknn_matmul_get_quant_params", "get_quant_params", 200, 999},
    [CALL_RUN] = {"rknn_matmul_run", "run", 152, 999},
    [CALL_DESTROY] = {"rknn_matmul_destroy", "destroy", 152, 999},
    [CALL_PACK_B_7] = {"rknn_B_normal_layout_to_native_layout", "pack_b", 200, 200},
    [CALL_PACK_B_5] = {"rknn_B_normal_layout_to_native_layout", "pack_b", 210, 999},
    [CALL_CREATE_MEM] = {"rknn_create_mem", "create_mem", 152, 999},
    [CALL_CREATE_MEM2] = {"rknn_create_mem2", "create_mem", 200, 999},
    [CALL_CREATE_MEM_FROM_FD] = {"rknn_create_mem_from_fd", "create_mem_from_fd", 152, 999},
    [CALL_CREATE_MEM_FROM_PHYS] = {"rknn_create_mem_from_phys", "create_mem_from_phys", 152, 999},
    [CALL_DESTROY_MEM] = {"rknn_destroy_mem", "destroy_mem", 152, 999},
    [CALL_MEM_SYNC] = {"rknn_mem_sync", "mem_sync", 160, 999},
    [CALL_QUERY] = {"rknn_query", "query", 152, 999},
};

const char *sim_call_symbol(sim_call call) { return calls[call].symbol; }

bool sim_call_is_named(sim_call call, const char *name) { return strcmp(calls[call].fault_name, name) == 0; }

sim_entry sim_enter_call(sim_call call) {
  sim_entry entry = {.call = call};
  sim_count_call(call);
  if (sim_tracing()) entry.start_us = sim_trace_begin();
  const sim_runtime *runtime = sim_current_runtime();
  if (runtime->number < calls[call].first || runtime->number > calls[call].last) {
    /* Only libnpumm_sim.so can come here; the libraries that carry a version in their name export what it has. */
    sim_log_error("%s, simulator: runtime %s has no such function, or another form of it", calls[call].symbol,
                  runtime->name);
    entry.refused = true;
    entry.result = RKNN_ERR_FAIL;
    return entry;
  }
  entry.result = sim_faults_inject(call);
  entry.refused = entry.result != RKNN_SUCC;
  return entry;
}

int sim_leave_call(const sim_entry *entry) {
  if (entry->result != RKNN_SUCC) sim_count_failure(entry->call);
  if (entry->start_us != 0) sim_trace_end(calls[entry->call].symbol, entry->start_us, entry->result);
  return entry->result;
}
