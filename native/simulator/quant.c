/*
 * Quantization parameters. The simulated types have none that matter: their C is the plain sum (Q21), so the default
 * (one scale 1, zero point 0) is accepted and everything else refused.
 */
#include "context.h"
#include "export.h"
#include "log.h"
#include "registry.h"

static bool is_default(const rknn_quant_params *params) {
  bool scale_default = !params->scale || params->scale_len == 0 || (params->scale_len == 1 && params->scale[0] == 1.0f);
  bool zp_default = !params->zp || params->zp_len == 0 || (params->zp_len == 1 && params->zp[0] == 0);
  return scale_default && zp_default;
}

SIM_EXPORT int rknn_matmul_set_quant_params(rknn_matmul_ctx ctx, rknn_quant_params *params) {
  sim_context *context;
  int result = sim_registry_enter(ctx, "rknn_matmul_set_quant_params", &context);
  if (result != RKNN_SUCC) return result;
  if (!params || !is_default(params)) {
    if (params) sim_log_error("rknn_matmul_set_quant_params, simulator: does only scale 1 and zero point 0 yet");
    result = RKNN_ERR_PARAM_INVALID;
  }
  sim_registry_leave(ctx);
  return result;
}

/* Documented only for type 2 with a per-channel B (facts 5.4), which create refuses. */
SIM_EXPORT int rknn_matmul_get_quant_params(rknn_matmul_ctx ctx, rknn_quant_params *params, float *scale) {
  sim_context *context;
  int result = sim_registry_enter(ctx, "rknn_matmul_get_quant_params", &context);
  if (result != RKNN_SUCC) return result;
  sim_registry_leave(ctx);
  if (!params || !scale) return RKNN_ERR_PARAM_INVALID;
  sim_log_error("rknn_matmul_get_quant_params, simulator: does not do quantized types yet");
  return RKNN_ERR_FAIL;
}
