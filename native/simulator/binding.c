/*
 * rknn_matmul_set_io_mem and the packing of B, also as the helper that the vendor exports.
 */
#include <stddef.h>

#include "api.h"
#include "clock.h"
#include "context.h"
#include "counters.h"
#include "functions.h"
#include "log.h"
#include "operands.h"
#include "registry.h"
#include "request.h"
#include "trace.h"

static const char function[] = "rknn_matmul_set_io_mem";

static void bind_in_place(sim_binding *binding, sim_memory *memory, size_t start) {
  sim_memory_hold(memory);
  sim_release_binding(binding);
  *binding = (sim_binding){.memory = memory, .start = start};
}

/* Bytes of the largest B of all shapes: the hidden copy is made once. */
static uint64_t largest_b(const sim_context *context) {
  uint64_t most = 0;
  for (size_t i = 0; i < context->shape_count; i++) {
    if (context->shapes[i].attr.B.size > most) most = context->shapes[i].attr.B.size;
  }
  return most;
}

/*
 * A B in normal layout is packed now, into hidden NPU memory: later changes of the caller's buffer count only after
 * the next set_io_mem, and the buffer may even be destroyed (recorded, facts 14, Q13). TP_NORM, which the recorded
 * runtime does not have, is taken to work alike (Q7). A slice of strict memory is read as the device has it, like
 * everything else through a slice.
 */
static int pack_now(sim_context *context, sim_memory *memory, size_t start) {
  if (!context->packed_b) {
    context->packed_b = sim_backing_allocate(context->chip->index, context->domain, context->settings.domain_bytes,
                                             largest_b(context), BACKING_HIDDEN);
  }
  if (!context->packed_b) {
    sim_log_error("failed to allocate handle, ret: -1, errno: 12, errstr: Cannot allocate memory");
    return RKNN_ERR_MALLOC_FAIL;
  }
  bool transposed = context->b_layout == RKNN_MM_LAYOUT_TP_NORM;
  sim_element element = sim_element_of(context->settings.runtime, context->type->b);
  if (memory->owns_fd) {
    sim_pack_b(&context->now->b_shape, element, transposed, memory->backing->base + start, context->packed_b->base);
  } else {
    sim_binding binding = {.memory = memory, .start = start};
    sim_operand operand;
    int result = sim_operand_open(&binding, context->now->attr.B.size, false, function, &operand);
    if (result != RKNN_SUCC) return result;
    sim_pack_b(&context->now->b_shape, element, transposed, operand.data, context->packed_b->base);
    sim_operand_close(&operand);
  }
  context->packed_b_filled = true;
  sim_count(COUNT_B_PACKED, context->now->attr.B.size);
  sim_clock_bind(context, context->now->attr.B.size);
  return RKNN_SUCC;
}

/* The recorded runtime does not look at these fields and packs wrongly when they are wrong. */
static void warn_of_wrong_attr(const rknn_matmul_tensor_attr *given, const rknn_matmul_tensor_attr *own) {
  bool same = given->size == own->size && given->type == own->type && given->n_dims == own->n_dims;
  for (uint32_t i = 0; same && i < own->n_dims; i++) same = given->dims[i] == own->dims[i];
  if (!same) sim_log_warning("%s, simulator: attr %s is not the one that create gave", function, own->name);
}

/* An address of one chip or domain means nothing in another; a board would fault at run. */
static bool reachable(const sim_context *context, const sim_memory *memory) {
  if (memory->backing->chip != context->chip->index) {
    sim_log_error("%s, simulator: memory of %s for a context on %s", function, sim_chip_at(memory->backing->chip)->soc,
                  context->chip->soc);
    return false;
  }
  if (memory->domain != context->domain) {
    sim_log_error("%s, simulator: memory of iommu domain %d for a context of domain %d", function, memory->domain,
                  context->domain);
    return false;
  }
  return true;
}

static int set_io_mem(sim_context *context, sim_memory *memory, const rknn_matmul_tensor_attr *attr) {
  if ((attr->name[0] < 'A' || attr->name[0] > 'C') || attr->name[1] != '\0') {
    sim_log_warning("%s, simulator: attr.name is not A, B or C, nothing is bound", function);
    return RKNN_SUCC; /* recorded */
  }
  if (!memory->shown.virt_addr) return RKNN_ERR_MALLOC_FAIL;
  if (!reachable(context, memory)) return RKNN_ERR_PARAM_INVALID;
  if (!context->now) {
    sim_log_error("%s, simulator: set_dynamic_shape must be called before", function);
    return RKNN_ERR_PARAM_INVALID;
  }
  const rknn_matmul_io_attr *io = &context->now->attr;
  const rknn_matmul_tensor_attr *own = attr->name[0] == 'A' ? &io->A : attr->name[0] == 'B' ? &io->B : &io->C;
  warn_of_wrong_attr(attr, own);
  sim_trace_note("\"tensor\":\"%c\",\"bytes\":%u", attr->name[0], own->size);
  /* Too small a buffer is not refused by the recorded runtime. It must be here, as the run would leave the memory. */
  size_t start;
  if (!sim_memory_locate(memory, own->size, function, &start)) return RKNN_ERR_PARAM_INVALID;
  switch (attr->name[0]) {
    case 'A':
      bind_in_place(&context->a, memory, start);
      /* What tells of new operands where nothing is synchronised. */
      if (!sim_call_exists(CALL_MEM_SYNC, context->settings.runtime)) {
        sim_clock_sync(context->chip->index, context->core_mask);
      }
      sim_clock_bind(context, 0);
      return RKNN_SUCC;
    case 'C':
      if (!memory->backing->writable) {
        sim_log_error("%s, simulator: C cannot be written to fd %d, which is read-only, sealed or for appending",
                      function, memory->shown.fd);
        return RKNN_ERR_PARAM_INVALID;
      }
      bind_in_place(&context->c, memory, start);
      sim_clock_bind(context, 0);
      return RKNN_SUCC;
    default:
      if (context->b_layout != RKNN_MM_LAYOUT_NATIVE) return pack_now(context, memory, start);
      sim_memory_to_device(memory, start, own->size); /* recorded (facts 14); not for slices (Q15) */
      bind_in_place(&context->b, memory, start);
      sim_clock_bind(context, 0);
      return RKNN_SUCC;
  }
}

int sim_matmul_set_io_mem(rknn_matmul_ctx ctx, rknn_tensor_mem *mem, const rknn_matmul_tensor_attr *attr) {
  sim_context *context;
  int result = sim_registry_enter(ctx, function, &context);
  if (result != RKNN_SUCC) return result;
  sim_memory *memory = mem && attr ? sim_registry_hold_memory(mem) : NULL;
  if (memory) {
    result = set_io_mem(context, memory, attr);
    sim_memory_release(memory);
  } else {
    if (mem && attr) sim_log_error("%s, simulator: mem was not made by this library, or is destroyed", function);
    result = RKNN_ERR_PARAM_INVALID;
  }
  sim_registry_leave(ctx);
  return result;
}

/* ---- the helper -------------------------------------------------------------------------------------------------- */

static const char helper[] = "rknn_B_normal_layout_to_native_layout";

/* What a small number is not: a pointer; and what a large one is not: the extent of a tile. */
enum { TILE_MOST = 4096 };

/* int4 is read as packed pairs, as the vendor's demo passes it (Q3). */
int sim_pack_b_for(rknn_matmul_type number, const void *in, void *out, int K, int N, int tile_n, int tile_k) {
  if (!in || !out) return RKNN_ERR_PARAM_INVALID;
  if ((unsigned)tile_n > TILE_MOST || (unsigned)tile_k > TILE_MOST) {
    sim_log_error(
        "%s, simulator: subN %d and subK %d are no extents of a tile: is the program built with a header from "
        "2.1.0 on, whose call has five arguments?",
        helper, tile_n, tile_k);
    return RKNN_ERR_PARAM_INVALID;
  }
  sim_settings settings = sim_current_settings();
  sim_request request = {.shape = {.M = 1, .K = K, .N = N}, .type = number};
  const sim_type *type;
  int result = sim_check_type(&settings, helper, &request, &type);
  if (result == RKNN_SUCC) result = sim_check_shape(&settings, helper, type, request.shape);
  if (result != RKNN_SUCC) return result;
  if ((tile_n != 0 && (uint32_t)tile_n != type->b_tile_n) || (tile_k != 0 && (uint32_t)tile_k != type->b_tile_k)) {
    sim_log_error("%s, simulator: subN %d and subK %d, but the tile is %u and %u", helper, tile_n, tile_k,
                  type->b_tile_n, type->b_tile_k);
    return RKNN_ERR_PARAM_INVALID;
  }
  sim_b_shape shape = {
      .K = (size_t)K,
      .N = (size_t)N,
      .tile_n = type->b_tile_n,
      .tile_k = type->b_tile_k,
      .segment = settings.runtime->segments ? settings.chip->k_segment : 0,
  };
  sim_pack_b(&shape, sim_element_of(settings.runtime, type->b), false, in, out);
  return RKNN_SUCC;
}

int sim_pack_b_by_info(const rknn_matmul_info *info, const void *in, void *out, int K, int N) {
  if (!info) return RKNN_ERR_PARAM_INVALID;
  if ((uintptr_t)info <= TILE_MOST) {
    sim_log_error(
        "%s, simulator: info is %zu, no pointer: is the program built with the header of 2.0.0b0, whose call has "
        "seven arguments?",
        helper, (size_t)(uintptr_t)info);
    return RKNN_ERR_PARAM_INVALID;
  }
  return sim_pack_b_for(info->type, in, out, K, N, 0, 0);
}
