/*
 * Contexts from create to destroy.
 */
#include "context.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "counters.h"
#include "functions.h"
#include "log.h"
#include "registry.h"
#include "request.h"
#include "scratch.h"
#include "timing.h"
#include "trace.h"

sim_element sim_element_of(const sim_runtime *runtime, rknn_tensor_type dtype) {
  return (sim_element){.bits = sim_dtype_bits(dtype), .int4_low_first = runtime->int4_low_first};
}

/* ---- attributes -------------------------------------------------------------------------------------------------- */

/* False when the tensor has more bytes than its size field holds. Sizes have no padding (facts 14). */
static bool describe_tensor(rknn_matmul_tensor_attr *attr, char name, rknn_tensor_type dtype, uint64_t elements) {
  uint64_t bytes = elements * sim_dtype_bits(dtype) / 8;
  attr->name[0] = name;
  attr->name[1] = '\0';
  attr->size = (uint32_t)bytes;
  attr->type = dtype;
  return bytes <= UINT32_MAX;
}

static void set_dims(rknn_matmul_tensor_attr *attr, uint32_t count, size_t d0, size_t d1, size_t d2, size_t d3) {
  attr->n_dims = count;
  attr->dims[0] = (uint32_t)d0;
  attr->dims[1] = (uint32_t)d1;
  attr->dims[2] = (uint32_t)d2;
  attr->dims[3] = (uint32_t)d3;
}

static bool describe_io(const sim_context *context, sim_shape *shape) {
  const sim_type *type = context->type;
  size_t M = shape->M, K = shape->K, N = shape->N;
  rknn_matmul_io_attr *io = &shape->attr;
  if (context->native_ac) {
    set_dims(&io->A, 3, K / type->a_group, M, type->a_group, 0);
    set_dims(&io->C, 3, N / type->c_group, M, type->c_group, 0);
  } else {
    set_dims(&io->A, 2, M, K, 0, 0);
    set_dims(&io->C, 2, M, N, 0, 0);
  }
  if (context->b_layout == RKNN_MM_LAYOUT_NATIVE) {
    /* One block over all of K also when B has segments: what a runtime reports then is not documented (Q5). */
    set_dims(&io->B, 4, N / type->b_tile_n, K / type->b_tile_k, type->b_tile_n, type->b_tile_k);
  } else if (context->b_layout == RKNN_MM_LAYOUT_TP_NORM) {
    set_dims(&io->B, 2, N, K, 0, 0);
  } else {
    set_dims(&io->B, 2, K, N, 0, 0);
  }
  bool fits = describe_tensor(&io->A, 'A', type->a, (uint64_t)M * K);
  fits &= describe_tensor(&io->B, 'B', type->b, (uint64_t)K * N);
  fits &= describe_tensor(&io->C, 'C', type->c, (uint64_t)M * N);
  return fits;
}

/* Only the fields that a runtime writes; the rest of the caller's struct stays as it is. */
static void copy_attr(rknn_matmul_tensor_attr *to, const rknn_matmul_tensor_attr *from) {
  to->name[0] = from->name[0];
  to->name[1] = from->name[1];
  to->n_dims = from->n_dims;
  for (uint32_t i = 0; i < from->n_dims; i++) to->dims[i] = from->dims[i];
  to->size = from->size;
  to->type = from->type;
}

/* ---- create ------------------------------------------------------------------------------------------------------ */

/*
 * With B in normal or native layout it is one B for all shapes; with TP_NORM, K and N may differ too (facts 6: what the
 * vendor's demo does; the documents disagree, D16, Q26).
 */
static bool shapes_agree(const char *function, const sim_request *request, size_t count,
                         const rknn_matmul_shape *shapes) {
  for (size_t i = 1; i < count && request->b_layout != RKNN_MM_LAYOUT_TP_NORM; i++) {
    if (shapes[i].K == shapes[0].K && shapes[i].N == shapes[0].N) continue;
    sim_log_error("%s, simulator: shapes 0 and %zu differ in K or N, which needs B_layout TP_NORM", function, i);
    return false;
  }
  return true;
}

static bool add_shapes(sim_context *context, const char *function, size_t count, const rknn_matmul_shape *shapes) {
  const sim_type *type = context->type;
  bool segments = context->settings.runtime->segments;
  for (size_t i = 0; i < count; i++) {
    sim_shape *shape = &context->shapes[i];
    *shape = (sim_shape){.M = (size_t)shapes[i].M, .K = (size_t)shapes[i].K, .N = (size_t)shapes[i].N};
    shape->b_shape = (sim_b_shape){
        .K = shape->K,
        .N = shape->N,
        .tile_n = type->b_tile_n,
        .tile_k = type->b_tile_k,
        .segment = segments ? context->chip->k_segment : 0,
    };
    if (describe_io(context, shape)) continue;
    sim_log_error("%s, simulator: M %d, K %d, N %d make a tensor of 4 GiB or more", function, shapes[i].M, shapes[i].K,
                  shapes[i].N);
    return false;
  }
  return true;
}

/* Descriptors are what contexts run out of, long before memory. False, with log lines, when there are none left. */
static bool take_descriptors(sim_context *context, const char *function) {
  while (context->descriptor_count < SIM_CONTEXT_DESCRIPTORS) {
    bool first = context->descriptor_count == 0;
    int fd = first ? sim_file_memory("npumm_sim_context") : sim_file_duplicate(context->descriptors[0]);
    if (fd < 0) {
      sim_log_error("failed to convert handle(1) to fd, ret: -1, errno: %d, errstr: %s", errno, strerror(errno));
      sim_log_error(
          "%s, simulator: a context holds %d file descriptors, and there are no more: destroy contexts and "
          "memories that are not needed, or raise the limit (ulimit -n)",
          function, SIM_CONTEXT_DESCRIPTORS);
      return false;
    }
    if (first) sim_file_identify(fd, &context->file);
    context->descriptors[context->descriptor_count++] = fd;
    sim_count(NOW_DESCRIPTORS, 1);
  }
  return true;
}

static void give_descriptors(sim_context *context) {
  while (context->descriptor_count > 0) {
    sim_file_close(context->descriptors[--context->descriptor_count], context->file);
    sim_uncount(NOW_DESCRIPTORS, 1);
  }
}

/* A context with those shapes in *made, or a code. */
static int make_context(const sim_settings *settings, const char *function, sim_request *request, size_t count,
                        const rknn_matmul_shape *shapes, sim_context **made) {
  const sim_type *type;
  int result = sim_check_type(settings, function, request, &type);
  for (size_t i = 0; i < count && result == RKNN_SUCC; i++) {
    result = sim_check_shape(settings, function, type, shapes[i]);
  }
  if (result == RKNN_SUCC) result = sim_check_options(settings, function, type, request);
  for (size_t i = 0; i < count && result == RKNN_SUCC; i++) {
    result = sim_check_shape_options(settings, function, type, request, shapes[i]);
  }
  if (result != RKNN_SUCC) return result;
  if (!shapes_agree(function, request, count, shapes)) return RKNN_ERR_PARAM_INVALID;

  sim_context *context = calloc(1, sizeof *context);
  if (!context) return RKNN_ERR_MALLOC_FAIL;
  *context = (sim_context){
      .settings = *settings,
      .chip = settings->chip,
      .type = type,
      .b_layout = (rknn_matmul_layout)request->b_layout,
      .native_ac = request->ac_layout == RKNN_MM_LAYOUT_NATIVE,
      .domain = request->domain,
      .b_granularity = request->b_granularity,
      .group_size = request->b_granularity == PER_GROUP ? (size_t)request->group_size : 0,
      .b_asymmetric = request->b_asymmetric,
      .ac_asymmetric = request->ac_asymmetric,
      .quant = SIM_QUANT_DEFAULT,
      .timing = sim_timing_of(settings->chip, &settings->constants),
      .shapes = calloc(count, sizeof(sim_shape)),
      .shape_count = count,
  };
  result = !context->shapes                                ? RKNN_ERR_MALLOC_FAIL
           : !add_shapes(context, function, count, shapes) ? RKNN_ERR_PARAM_INVALID
           : !take_descriptors(context, function)          ? RKNN_ERR_FAIL
                                                           : RKNN_SUCC;
  if (result == RKNN_SUCC) *made = context;
  else sim_context_free(context);
  return result;
}

/* Gives a new context to the caller, or frees it when the setting allows no more. */
static int publish(sim_context *context, const char *function, rknn_matmul_ctx *ctx, rknn_matmul_io_attr *io_attrs) {
  uint32_t most = context->settings.contexts;
  rknn_matmul_ctx handle = sim_registry_add_context(context);
  if (!handle) {
    sim_log_error("%s, simulator: %u contexts live already, as many as NPUMATMUL_SIM_CONTEXTS allows", function, most);
    sim_context_free(context);
    return RKNN_ERR_FAIL;
  }
  for (size_t i = 0; i < context->shape_count; i++) {
    copy_attr(&io_attrs[i].A, &context->shapes[i].attr.A);
    copy_attr(&io_attrs[i].B, &context->shapes[i].attr.B);
    copy_attr(&io_attrs[i].C, &context->shapes[i].attr.C);
  }
  *ctx = handle;
  sim_registry_leave(handle);
  return RKNN_SUCC;
}

int sim_matmul_create(rknn_matmul_ctx *ctx, const void *info, rknn_matmul_io_attr *io_attr) {
  const char *function = "rknn_matmul_create";
  if (!ctx) return RKNN_ERR_CTX_INVALID;
  if (!info || !io_attr) return RKNN_ERR_PARAM_INVALID;
  if (!sim_settings_usable()) return RKNN_ERR_FAIL;
  sim_settings settings = sim_current_settings();
  int result = sim_check_struct(&settings, function, info);
  if (result != RKNN_SUCC) return result;
  sim_request request = sim_read_request(settings.runtime, info);
  sim_trace_note("\"soc\":\"%s\",\"type\":%d,\"M\":%d,\"K\":%d,\"N\":%d", settings.chip->soc, (int)request.type,
                 request.shape.M, request.shape.K, request.shape.N);
  sim_context *context;
  result = make_context(&settings, function, &request, 1, &request.shape, &context);
  if (result != RKNN_SUCC) return result;
  context->now = &context->shapes[0];
  return publish(context, function, ctx, io_attr);
}

int sim_matmul_create_dynamic(rknn_matmul_ctx *ctx, const void *info, int shape_num, const rknn_matmul_shape *shapes,
                              rknn_matmul_io_attr *io_attrs) {
  bool dyn_shape = sim_current_runtime()->number < 210;
  const char *function = sim_call_symbol(dyn_shape ? CALL_CREATE_DYN_SHAPE : CALL_CREATE_DYNAMIC_SHAPE);
  if (!ctx) return RKNN_ERR_CTX_INVALID;
  if (!info || !shapes || !io_attrs) return RKNN_ERR_PARAM_INVALID;
  /* A model's limit; none is stated for matmul (facts 1.1, Q26). */
  if (shape_num <= 0 || shape_num > RKNN_MAX_DYNAMIC_SHAPE_NUM) {
    sim_log_error("%s, simulator: shape_num %d is not in 1..%d", function, shape_num, RKNN_MAX_DYNAMIC_SHAPE_NUM);
    return RKNN_ERR_PARAM_INVALID;
  }
  if (!sim_settings_usable()) return RKNN_ERR_FAIL;
  sim_settings settings = sim_current_settings();
  int result = sim_check_struct(&settings, function, info);
  if (result != RKNN_SUCC) return result;
  sim_request request = sim_read_request(settings.runtime, info);
  sim_trace_note("\"soc\":\"%s\",\"type\":%d,\"shapes\":%d", settings.chip->soc, (int)request.type, shape_num);
  sim_context *context;
  result = make_context(&settings, function, &request, (size_t)shape_num, shapes, &context);
  if (result != RKNN_SUCC) return result;
  context->dynamic = true;
  return publish(context, function, ctx, io_attrs);
}

/* ---- destroy ----------------------------------------------------------------------------------------------------- */

void sim_release_binding(sim_binding *binding) {
  if (binding->memory) sim_memory_release(binding->memory);
  *binding = (sim_binding){0};
}

void sim_context_free(sim_context *context) {
  sim_release_binding(&context->a);
  sim_release_binding(&context->b);
  sim_release_binding(&context->c);
  sim_backing_release(context->packed_b);
  sim_quant_free(&context->quant);
  give_descriptors(context);
  free(context->shapes);
  free(context);
}

int sim_matmul_destroy(rknn_matmul_ctx ctx) {
  sim_context *context;
  int result = sim_registry_enter(ctx, "rknn_matmul_destroy", &context);
  if (result != RKNN_SUCC) return result;
  bool last = sim_registry_remove_context(ctx);
  sim_context_free(context);
  if (last) sim_scratch_trim();
  return RKNN_SUCC;
}
