/*
 * rknn_matmul_set_quant_params and rknn_matmul_get_quant_params.
 *
 * Parameters of types whose C is the plain sum (2 per layer, 10 and 11) and of tensors of floats are taken and have no
 * effect (Q21): the vendor's demo sets them and compares with the plain sum.
 */
#include "quant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "context.h"
#include "log.h"
#include "registry.h"

static const char set_name[] = "rknn_matmul_set_quant_params";

void sim_quant_free(sim_quant *quant) {
  free(quant->b.scales);
  free(quant->b.zero_points);
  quant->b = (sim_b_quant){0};
}

float sim_common_scale(const sim_quant *quant, size_t N) {
  float largest = quant->b.scales ? quant->b.scales[0] : 1;
  for (size_t n = 1; quant->b.scales && n < N; n++) {
    if (quant->b.scales[n] > largest) largest = quant->b.scales[n];
  }
  return largest;
}

/* With several shapes the lengths are those of the largest N and K (facts 5.3). */
static size_t b_length(const sim_context *context) {
  size_t K = 0, N = 0;
  for (size_t i = 0; i < context->shape_count; i++) {
    if (context->shapes[i].K > K) K = context->shapes[i].K;
    if (context->shapes[i].N > N) N = context->shapes[i].N;
  }
  switch (context->b_granularity) {
    case PER_CHANNEL:
      return N;
    case PER_GROUP:
      return N * (K / context->group_size);
    default:
      return 1;
  }
}

/* Scales must be positive and finite; zero points those of the tensor's integers, and 0 where it is symmetric. */
static bool values_fit(const rknn_quant_params *params, size_t zp_count, rknn_tensor_type dtype, bool asymmetric,
                       size_t length) {
  bool integers = dtype == RKNN_TENSOR_INT8 || dtype == RKNN_TENSOR_INT4;
  int32_t most = dtype == RKNN_TENSOR_INT4 ? 7 : 127;
  for (size_t i = 0; i < length; i++) {
    if (!isfinite(params->scale[i]) || params->scale[i] <= 0) {
      sim_log_error("%s, simulator: scale %zu is %g", set_name, i, (double)params->scale[i]);
      return false;
    }
  }
  for (size_t i = 0; i < zp_count; i++) {
    int32_t zp = params->zp[i];
    if (zp != 0 && (!asymmetric || !integers || zp > most || zp < -most - 1)) {
      sim_log_error("%s, simulator: zero point %zu is %d for a %s tensor", set_name, i, zp,
                    !integers    ? "float or wide"
                    : asymmetric ? "narrow"
                                 : "symmetric");
      return false;
    }
  }
  return true;
}

static int set_b(sim_context *context, const rknn_quant_params *params, size_t length, size_t zp_count) {
  float *scales = malloc(length * sizeof *scales);
  int32_t *zero_points = calloc(length, sizeof *zero_points);
  if (!scales || !zero_points) {
    free(scales);
    free(zero_points);
    return RKNN_ERR_MALLOC_FAIL;
  }
  memcpy(scales, params->scale, length * sizeof *scales);
  bool any = false;
  for (size_t i = 0; i < zp_count; i++) {
    zero_points[i] = params->zp[i];
    any = any || params->zp[i] != 0;
  }
  if (!any) { /* spares the corrections */
    free(zero_points);
    zero_points = NULL;
  }
  sim_quant_free(&context->quant);
  context->quant.b = (sim_b_quant){.scales = scales, .zero_points = zero_points};
  return RKNN_SUCC;
}

static int set_quant_params(sim_context *context, const rknn_quant_params *params) {
  if (params->name[0] < 'A' || params->name[0] > 'C' || params->name[1] != '\0') {
    sim_log_error("%s, simulator: params.name is not A, B or C", set_name);
    return RKNN_ERR_PARAM_INVALID;
  }
  char name = params->name[0];
  const sim_type *type = context->type;
  rknn_tensor_type dtype = name == 'A' ? type->a : name == 'B' ? type->b : type->c;
  bool asymmetric = name == 'B' ? context->b_asymmetric : context->ac_asymmetric;
  size_t length = name == 'B' ? b_length(context) : 1;
  size_t zp_count = params->zp && params->zp_len > 0 ? (size_t)params->zp_len : 0;
  bool scales_fit = params->scale && params->scale_len > 0 && (size_t)params->scale_len == length;
  if (!scales_fit || (zp_count != 0 && zp_count != length)) {
    sim_log_error("%s, simulator: %s needs %zu scales and as many zero points or none, not %d and %d", set_name,
                  params->name, length, params->scale ? params->scale_len : 0, params->zp ? params->zp_len : 0);
    return RKNN_ERR_PARAM_INVALID;
  }
  if (!values_fit(params, zp_count, dtype, asymmetric, length)) return RKNN_ERR_PARAM_INVALID;
  if (name == 'B') return set_b(context, params, length, zp_count);
  *(name == 'A' ? &context->quant.a_scale : &context->quant.c_scale) = params->scale[0];
  *(name == 'A' ? &context->quant.a_zero_point : &context->quant.c_zero_point) = zp_count ? params->zp[0] : 0;
  return RKNN_SUCC;
}

int sim_matmul_set_quant_params(rknn_matmul_ctx ctx, const rknn_quant_params *params) {
  sim_context *context;
  int result = sim_registry_enter(ctx, set_name, &context);
  if (result != RKNN_SUCC) return result;
  result = params ? set_quant_params(context, params) : RKNN_ERR_PARAM_INVALID;
  sim_registry_leave(ctx);
  return result;
}

/* Documented for type 2 with a per-channel B and nothing else (facts 5.4). */
int sim_matmul_get_quant_params(rknn_matmul_ctx ctx, const rknn_quant_params *params, float *scale) {
  const char *function = "rknn_matmul_get_quant_params";
  sim_context *context;
  int result = sim_registry_enter(ctx, function, &context);
  if (result != RKNN_SUCC) return result;
  if (!params || !scale || params->name[0] != 'B' || params->name[1] != '\0') {
    result = RKNN_ERR_PARAM_INVALID;
  } else if (context->type->type != RKNN_INT8_MM_INT8_TO_INT32 || context->b_granularity != PER_CHANNEL) {
    sim_log_error("%s, simulator: only for RKNN_INT8_MM_INT8_TO_INT32 with a per-channel B", function);
    result = RKNN_ERR_PARAM_INVALID;
  } else {
    size_t channels = b_length(context);
    *scale = sim_common_scale(&context->quant, channels);
  }
  sim_registry_leave(ctx);
  return result;
}
