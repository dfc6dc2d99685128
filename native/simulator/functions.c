#include "functions.h"

#include <string.h>

/* Version numbers of the first and last runtime that has it (facts 1.5); 999: still there. */
static const struct {
  const char *symbol, *fault_name;
  int first, last;
} functions[CALLS] = {
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

const char *sim_call_symbol(sim_call call) { return functions[call].symbol; }

bool sim_call_is_named(sim_call call, const char *name) { return strcmp(functions[call].fault_name, name) == 0; }

bool sim_call_exists(sim_call call, const sim_runtime *runtime) {
  return runtime->number >= functions[call].first && runtime->number <= functions[call].last;
}
