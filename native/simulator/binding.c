/*
 * rknn_matmul_set_io_mem and the packing of B, also as the helper that the vendor exports.
 */
#include <stddef.h>

#include "context.h"
#include "counters.h"
#include "export.h"
#include "log.h"
#include "registry.h"

static void bind_in_place(sim_binding *binding, sim_memory *memory, uint8_t *data) {
  sim_memory_hold(memory);
  if (binding->memory) sim_memory_release(binding->memory);
  *binding = (sim_binding){.memory = memory, .data = data};
}

/*
 * A B in normal layout is packed now, into hidden NPU memory: later changes of the caller's buffer count only after
 * the next set_io_mem, and the buffer may even be destroyed (recorded, facts 14, Q13). TP_NORM, which the recorded
 * runtime does not have, is taken to work alike (Q7).
 */
static int pack_now(sim_context *context, const uint8_t *data) {
  if (!context->packed_b) context->packed_b = sim_backing_allocate(context->domain, context->attr.B.size, false);
  if (!context->packed_b) {
    sim_log_error("failed to allocate handle, ret: -1, errno: 12, errstr: Cannot allocate memory");
    return RKNN_ERR_MALLOC_FAIL;
  }
  bool transposed = context->b_layout == RKNN_MM_LAYOUT_TP_NORM;
  sim_pack_b(&context->b_shape, sim_element_of(context->type->b), transposed, data, context->packed_b->base);
  context->packed_b_filled = true;
  return RKNN_SUCC;
}

/* The recorded runtime does not look at these fields and packs wrongly when they are wrong. */
static void warn_of_wrong_attr(const rknn_matmul_tensor_attr *given, const rknn_matmul_tensor_attr *own) {
  bool same = given->size == own->size && given->type == own->type && given->n_dims == own->n_dims;
  for (uint32_t i = 0; same && i < own->n_dims; i++) same = given->dims[i] == own->dims[i];
  if (!same) sim_log_warning("rknn_matmul_set_io_mem, simulator: attr %s is not the one that create gave", own->name);
}

static int set_io_mem(sim_context *context, sim_memory *memory, const rknn_matmul_tensor_attr *attr) {
  const char *function = "rknn_matmul_set_io_mem";
  if ((attr->name[0] < 'A' || attr->name[0] > 'C') || attr->name[1] != '\0') {
    sim_log_warning("%s, simulator: attr.name is not A, B or C, nothing is bound", function);
    return RKNN_SUCC; /* recorded */
  }
  if (!memory->shown.virt_addr) return RKNN_ERR_MALLOC_FAIL;
  if (memory->domain != context->domain) {
    /* An address of one domain means nothing in another; a board would fault at run. */
    sim_log_error("%s, simulator: memory of iommu domain %d for a context of domain %d", function, memory->domain,
                  context->domain);
    return RKNN_ERR_PARAM_INVALID;
  }
  rknn_matmul_io_attr *io = &context->attr;
  const rknn_matmul_tensor_attr *own = attr->name[0] == 'A' ? &io->A : attr->name[0] == 'B' ? &io->B : &io->C;
  warn_of_wrong_attr(attr, own);
  /* Too small a buffer is not refused by the recorded runtime. It must be here, as the run would leave the memory. */
  uint8_t *data = sim_memory_data(memory, own->size, function);
  if (!data) return RKNN_ERR_PARAM_INVALID;
  switch (attr->name[0]) {
    case 'A':
      bind_in_place(&context->a, memory, data);
      return RKNN_SUCC;
    case 'C':
      bind_in_place(&context->c, memory, data);
      return RKNN_SUCC;
    default:
      if (context->b_layout != RKNN_MM_LAYOUT_NATIVE) return pack_now(context, data);
      bind_in_place(&context->b, memory, data);
      return RKNN_SUCC;
  }
}

SIM_EXPORT int rknn_matmul_set_io_mem(rknn_matmul_ctx ctx, rknn_tensor_mem *mem, rknn_matmul_tensor_attr *attr) {
  sim_count(COUNT_SET_IO_MEM, 1);
  sim_context *context;
  int result = sim_registry_enter(ctx, "rknn_matmul_set_io_mem", &context);
  if (result != RKNN_SUCC) return result;
  sim_memory *memory = mem && attr ? sim_registry_hold_memory(mem) : NULL;
  if (memory) {
    result = set_io_mem(context, memory, attr);
    sim_memory_release(memory);
  } else {
    if (mem && attr) {
      sim_log_error("rknn_matmul_set_io_mem, simulator: mem was not made by this library, or is destroyed");
    }
    result = RKNN_ERR_PARAM_INVALID;
  }
  sim_registry_leave(ctx);
  return result;
}

/* int4 is read as packed pairs, as the vendor's demo passes it (Q3; D3 for the argument list, this is the header's). */
SIM_EXPORT int rknn_B_normal_layout_to_native_layout(void *B_input, void *B_output, int K, int N,
                                                     rknn_matmul_info *info) {
  const char *function = "rknn_B_normal_layout_to_native_layout";
  if (!B_input || !B_output || !info) return RKNN_ERR_PARAM_INVALID;
  const sim_chip *chip = sim_current_chip();
  const sim_type *type = sim_find_type(chip, info->type);
  if (!type) {
    sim_log_error("%s, meet unsupported matmul dtype : %s", function, sim_type_name(info->type));
    return RKNN_ERR_PARAM_INVALID;
  }
  bool k_fits = K > 0 && (uint32_t)K % type->k_align == 0 && (uint32_t)K <= chip->k_max;
  if (!k_fits || N <= 0 || (uint32_t)N % type->n_align != 0) {
    sim_log_error("%s, simulator: invalid K %d or N %d", function, K, N);
    return RKNN_ERR_PARAM_INVALID;
  }
  sim_b_shape shape = {
      .K = (size_t)K,
      .N = (size_t)N,
      .tile_n = type->b_tile_n,
      .tile_k = type->b_tile_k,
      .segment = chip->k_segment,
  };
  sim_pack_b(&shape, sim_element_of(type->b), false, B_input, B_output);
  return RKNN_SUCC;
}
