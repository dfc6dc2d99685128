/*
 * rknn_matmul_set_dynamic_shape (facts 6).
 */
#include "api.h"
#include "context.h"
#include "log.h"
#include "registry.h"
#include "trace.h"

static const sim_shape *find_shape(const sim_context *context, const rknn_matmul_shape *wanted) {
  for (size_t i = 0; i < context->shape_count; i++) {
    const sim_shape *shape = &context->shapes[i];
    if (wanted->M > 0 && wanted->K > 0 && wanted->N > 0 && shape->M == (size_t)wanted->M &&
        shape->K == (size_t)wanted->K && shape->N == (size_t)wanted->N) {
      return shape;
    }
  }
  return NULL;
}

/*
 * A and C of the former shape are forgotten: the documented order sets them after every change of shape. B stays when
 * it is the same B.
 */
static void use_shape(sim_context *context, const sim_shape *shape) {
  const sim_shape *before = context->now;
  if (before == shape) return;
  sim_release_binding(&context->a);
  sim_release_binding(&context->c);
  if (!before || before->K != shape->K || before->N != shape->N) {
    sim_release_binding(&context->b);
    context->packed_b_filled = false;
  }
  context->now = shape;
}

int sim_matmul_set_dynamic_shape(rknn_matmul_ctx ctx, const rknn_matmul_shape *shape) {
  const char *function = "rknn_matmul_set_dynamic_shape";
  sim_context *context;
  int result = sim_registry_enter(ctx, function, &context);
  if (result != RKNN_SUCC) return result;
  const sim_shape *found = shape ? find_shape(context, shape) : NULL;
  if (shape) sim_trace_note("\"M\":%d,\"K\":%d,\"N\":%d", shape->M, shape->K, shape->N);
  if (!shape) {
    result = RKNN_ERR_PARAM_INVALID;
  } else if (!context->dynamic) {
    sim_log_error("%s, simulator: the context has one fixed shape", function);
    result = RKNN_ERR_PARAM_INVALID;
  } else if (!found) {
    sim_log_error("%s, simulator: M %d, K %d, N %d is none of the shapes given at creation", function, shape->M,
                  shape->K, shape->N);
    result = RKNN_ERR_PARAM_INVALID;
  } else {
    use_shape(context, found);
  }
  sim_registry_leave(ctx);
  return result;
}
