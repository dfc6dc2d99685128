/*
 * What leaves the library under the vendor's names: exactly the functions of one version, with that version's
 * prototypes (facts 1.5). With version.c it is compiled once per version; SIM_VERSION is the version's number,
 * SIM_VERSION_NAME its name. Without them it is libnpumm_sim.so, which has the functions of 2.3.2 and behaves like the
 * version that NPUMATMUL_SIM_RUNTIME names.
 */
#include <stddef.h>

#include "api.h"
#include "calls.h"
#include "export.h"
#include "log.h"

#ifndef SIM_VERSION
#define SIM_VERSION 232
#endif

/* The body of a function that returns a code. */
#define RETURN_CODE_OF(call, expression)         \
  sim_entry entry = sim_enter_call(call);        \
  if (!entry.refused) entry.result = expression; \
  return sim_leave_call(&entry)

/* The same for one that returns a memory: NULL and no code means that the function itself failed. */
#define RETURN_MEMORY_OF(call, expression)                            \
  sim_entry entry = sim_enter_call(call);                             \
  rknn_tensor_mem *memory = entry.refused ? NULL : expression;        \
  if (!memory && !entry.refused) entry.result = RKNN_ERR_MALLOC_FAIL; \
  sim_leave_call(&entry);                                             \
  return memory

/* ---- every version ----------------------------------------------------------------------------------------------- */

SIM_EXPORT int rknn_matmul_create(rknn_matmul_ctx *ctx, rknn_matmul_info *info, rknn_matmul_io_attr *io_attr) {
  RETURN_CODE_OF(CALL_CREATE, sim_matmul_create(ctx, info, io_attr));
}

SIM_EXPORT int rknn_matmul_set_io_mem(rknn_matmul_ctx ctx, rknn_tensor_mem *mem, rknn_matmul_tensor_attr *attr) {
  RETURN_CODE_OF(CALL_SET_IO_MEM, sim_matmul_set_io_mem(ctx, mem, attr));
}

SIM_EXPORT int rknn_matmul_set_core_mask(rknn_matmul_ctx ctx, rknn_core_mask core_mask) {
  RETURN_CODE_OF(CALL_SET_CORE_MASK, sim_matmul_set_core_mask(ctx, core_mask));
}

SIM_EXPORT int rknn_matmul_run(rknn_matmul_ctx ctx) { RETURN_CODE_OF(CALL_RUN, sim_matmul_run(ctx)); }

SIM_EXPORT int rknn_matmul_destroy(rknn_matmul_ctx ctx) { RETURN_CODE_OF(CALL_DESTROY, sim_matmul_destroy(ctx)); }

SIM_EXPORT rknn_tensor_mem *rknn_create_mem(rknn_context ctx, uint32_t size) {
  RETURN_MEMORY_OF(CALL_CREATE_MEM, sim_create_mem(ctx, size));
}

SIM_EXPORT rknn_tensor_mem *rknn_create_mem_from_fd(rknn_context ctx, int32_t fd, void *virt_addr, uint32_t size,
                                                    int32_t offset) {
  RETURN_MEMORY_OF(CALL_CREATE_MEM_FROM_FD, sim_create_mem_from_fd(ctx, fd, virt_addr, size, offset));
}

SIM_EXPORT rknn_tensor_mem *rknn_create_mem_from_phys(rknn_context ctx, uint64_t phys_addr, void *virt_addr,
                                                      uint32_t size) {
  RETURN_MEMORY_OF(CALL_CREATE_MEM_FROM_PHYS, sim_create_mem_from_phys(ctx, phys_addr, virt_addr, size));
}

SIM_EXPORT int rknn_destroy_mem(rknn_context ctx, rknn_tensor_mem *mem) {
  RETURN_CODE_OF(CALL_DESTROY_MEM, sim_destroy_mem(ctx, mem));
}

SIM_EXPORT int rknn_query(rknn_context ctx, rknn_query_cmd cmd, void *info, uint32_t size) {
  RETURN_CODE_OF(CALL_QUERY, sim_query(ctx, cmd, info, size));
}

/* ---- for models: only matmul is simulated. The arguments are not looked at ---------------------------------------- */

#define REFUSED(function)        \
  SIM_EXPORT int function(void); \
  int function(void) { return sim_refuse_model_call(#function); }

REFUSED(rknn_init)
REFUSED(rknn_dup_context)
REFUSED(rknn_destroy)
REFUSED(rknn_inputs_set)
REFUSED(rknn_set_batch_core_num)
REFUSED(rknn_set_core_mask)
REFUSED(rknn_run)
REFUSED(rknn_wait)
REFUSED(rknn_outputs_get)
REFUSED(rknn_outputs_release)
REFUSED(rknn_set_weight_mem)
REFUSED(rknn_set_internal_mem)
REFUSED(rknn_set_io_mem)
REFUSED(rknn_set_input_shape)
REFUSED(rknn_set_input_shapes)
#if SIM_VERSION >= 160 /* custom operators */
REFUSED(rknn_register_custom_ops)
REFUSED(rknn_custom_op_get_op_attr)
#endif

/* ---- from 1.6.0 -------------------------------------------------------------------------------------------------- */

#if SIM_VERSION >= 160
SIM_EXPORT int rknn_mem_sync(rknn_context ctx, rknn_tensor_mem *mem, rknn_mem_sync_mode mode) {
  RETURN_CODE_OF(CALL_MEM_SYNC, sim_mem_sync(ctx, mem, mode));
}
#endif

/* ---- from 2.0.0b0 ------------------------------------------------------------------------------------------------ */

#if SIM_VERSION >= 200
SIM_EXPORT int rknn_matmul_set_dynamic_shape(rknn_matmul_ctx ctx, rknn_matmul_shape *shape) {
  RETURN_CODE_OF(CALL_SET_DYNAMIC_SHAPE, sim_matmul_set_dynamic_shape(ctx, shape));
}

SIM_EXPORT int rknn_matmul_set_quant_params(rknn_matmul_ctx ctx, rknn_quant_params *params) {
  RETURN_CODE_OF(CALL_SET_QUANT_PARAMS, sim_matmul_set_quant_params(ctx, params));
}

SIM_EXPORT int rknn_matmul_get_quant_params(rknn_matmul_ctx ctx, rknn_quant_params *params, float *scale) {
  RETURN_CODE_OF(CALL_GET_QUANT_PARAMS, sim_matmul_get_quant_params(ctx, params, scale));
}

SIM_EXPORT rknn_tensor_mem *rknn_create_mem2(rknn_context ctx, uint64_t size, uint64_t alloc_flags) {
  RETURN_MEMORY_OF(CALL_CREATE_MEM2, sim_create_mem2(ctx, size, alloc_flags));
}
#endif

/* ---- 2.0.0b0 only: two names with another meaning later (D3) ----------------------------------------------------- */

#if SIM_VERSION == 200
SIM_EXPORT int rknn_matmul_create_dyn_shape(rknn_matmul_ctx *ctx, rknn_matmul_info *info, int shape_num,
                                            rknn_matmul_shape dynamic_shapes[], rknn_matmul_io_attr io_attrs[]);
int rknn_matmul_create_dyn_shape(rknn_matmul_ctx *ctx, rknn_matmul_info *info, int shape_num,
                                 rknn_matmul_shape dynamic_shapes[], rknn_matmul_io_attr io_attrs[]) {
  RETURN_CODE_OF(CALL_CREATE_DYN_SHAPE, sim_matmul_create_dynamic(ctx, info, shape_num, dynamic_shapes, io_attrs));
}

/* The symbol by hand: the header has it with later versions' arguments. */
SIM_EXPORT int pack_b_of_2_0_0(void *in, void *out, int K, int N, int subN, int subK,
                               rknn_matmul_type type) __asm__("rknn_B_normal_layout_to_native_layout");
int pack_b_of_2_0_0(void *in, void *out, int K, int N, int subN, int subK, rknn_matmul_type type) {
  RETURN_CODE_OF(CALL_PACK_B_7, sim_pack_b_for(type, in, out, K, N, subN, subK));
}
#endif

/* ---- from 2.1.0 -------------------------------------------------------------------------------------------------- */

#if SIM_VERSION >= 210
SIM_EXPORT int rknn_matmul_create_dynamic_shape(rknn_matmul_ctx *ctx, rknn_matmul_info *info, int shape_num,
                                                rknn_matmul_shape dynamic_shapes[], rknn_matmul_io_attr io_attrs[]) {
  RETURN_CODE_OF(CALL_CREATE_DYNAMIC_SHAPE, sim_matmul_create_dynamic(ctx, info, shape_num, dynamic_shapes, io_attrs));
}

SIM_EXPORT int rknn_B_normal_layout_to_native_layout(void *B_input, void *B_output, int K, int N,
                                                     rknn_matmul_info *info) {
  RETURN_CODE_OF(CALL_PACK_B_5, sim_pack_b_by_info(info, B_input, B_output, K, N));
}
#endif
