/*
 * Dynamic shapes are exported, as the runtime does it, and refused.
 */
#include "context.h"
#include "export.h"
#include "log.h"
#include "registry.h"

SIM_EXPORT int rknn_matmul_create_dynamic_shape(rknn_matmul_ctx *ctx, rknn_matmul_info *info, int shape_num,
                                                rknn_matmul_shape dynamic_shapes[], rknn_matmul_io_attr io_attrs[]) {
  if (!ctx) return RKNN_ERR_CTX_INVALID;
  if (!info || shape_num <= 0 || !dynamic_shapes || !io_attrs) return RKNN_ERR_PARAM_INVALID;
  sim_log_error("rknn_matmul_create_dynamic_shape, simulator: does not do dynamic shapes yet");
  return RKNN_ERR_FAIL;
}

SIM_EXPORT int rknn_matmul_set_dynamic_shape(rknn_matmul_ctx ctx, rknn_matmul_shape *shape) {
  sim_context *context;
  int result = sim_registry_enter(ctx, "rknn_matmul_set_dynamic_shape", &context);
  if (result != RKNN_SUCC) return result;
  sim_registry_leave(ctx);
  if (!shape) return RKNN_ERR_PARAM_INVALID;
  sim_log_error("rknn_matmul_set_dynamic_shape, simulator: the context has one fixed shape");
  return RKNN_ERR_FAIL;
}
