#include "context.h"

#include <stdlib.h>

#include "export.h"
#include "log.h"
#include "registry.h"
#include "scratch.h"

sim_element sim_element_of(rknn_tensor_type dtype) {
  return (sim_element){
      .bits = sim_dtype_bits(dtype),
      .int4_low_first = sim_current_runtime()->int4_low_first,
  };
}

/* The checks of create in the recorded order: type, K limit, K alignment, N alignment; then what was not recorded. */
static int check_info(const sim_chip *chip, const rknn_matmul_info *info) {
  const sim_type *type = sim_find_type(chip, info->type);
  if (!type) {
    sim_log_error("rknn_matmul_create, meet unsupported matmul dtype : %s", sim_type_name(info->type));
    unsigned number = (unsigned)info->type;
    if (number < 32 && chip->not_yet >> number & 1) {
      sim_log_error("rknn_matmul_create, simulator: %s has this type, the simulator does not do it yet", chip->soc);
    }
    return RKNN_ERR_PARAM_INVALID;
  }
  if (info->M <= 0 || info->K <= 0 || info->N <= 0) {
    sim_log_error("rknn_matmul_create, simulator: M, K and N must be positive, not %d, %d, %d", info->M, info->K,
                  info->N);
    return RKNN_ERR_PARAM_INVALID;
  }
  if ((uint32_t)info->K > chip->k_max) {
    sim_log_error("rknn_matmul_create, k > limit: %d", info->K);
    return RKNN_ERR_PARAM_INVALID;
  }
  if ((uint32_t)info->K % type->k_align != 0) {
    sim_log_error("rknn_matmul_create, matmul K must be align with %u!", type->k_align);
    return RKNN_ERR_PARAM_INVALID;
  }
  if ((uint32_t)info->N % type->n_align != 0) {
    sim_log_error("rknn_matmul_create, matmul N must be align with %u!", type->n_align);
    return RKNN_ERR_PARAM_INVALID;
  }
  bool ac_known = info->AC_layout == RKNN_MM_LAYOUT_NORM || info->AC_layout == RKNN_MM_LAYOUT_NATIVE;
  if (info->B_layout < RKNN_MM_LAYOUT_NORM || info->B_layout > RKNN_MM_LAYOUT_TP_NORM || !ac_known) {
    sim_log_error("rknn_matmul_create, simulator: no such layout: B_layout %d, AC_layout %d", info->B_layout,
                  info->AC_layout);
    return RKNN_ERR_PARAM_INVALID;
  }
  if (info->B_quant_type != 0 || info->AC_quant_type != 0) {
    sim_log_error("rknn_matmul_create, simulator: does not do B_quant_type %d, AC_quant_type %d yet, only 0",
                  info->B_quant_type, info->AC_quant_type);
    return RKNN_ERR_PARAM_INVALID;
  }
  if (info->iommu_domain_id < 0 || info->iommu_domain_id >= chip->domains) {
    sim_log_error("rknn_matmul_create, simulator: iommu_domain_id %d is not in 0..%d", info->iommu_domain_id,
                  chip->domains - 1);
    return RKNN_ERR_PARAM_INVALID;
  }
  uint64_t mk = (uint64_t)info->M * (uint64_t)info->K;
  if (info->AC_layout == RKNN_MM_LAYOUT_NATIVE && type->native_ac_max_mk != 0 && mk > type->native_ac_max_mk) {
    /* A recorded trap: runtime 1.6.0 died here. Refusing is what a program can be tested with. */
    sim_log_error("rknn_matmul_create, simulator: %s with native A and C and M * K = %llu, above %llu, can kill the "
                  "runtime",
                  sim_type_name(type->type), (unsigned long long)mk, (unsigned long long)type->native_ac_max_mk);
    return RKNN_ERR_FAIL;
  }
  return RKNN_SUCC;
}

/* False when the tensor has more bytes than its size field holds. Sizes have no padding (facts 14). */
static bool describe_tensor(rknn_matmul_tensor_attr *attr, char name, rknn_tensor_type dtype, uint64_t elements) {
  uint64_t bytes = elements * sim_dtype_bits(dtype) / 8;
  attr->name[0] = name;
  attr->name[1] = '\0';
  attr->size = (uint32_t)bytes;
  attr->type = dtype;
  return bytes <= UINT32_MAX;
}

static void set_dims(rknn_matmul_tensor_attr *attr, uint32_t n_dims, size_t d0, size_t d1, size_t d2, size_t d3) {
  const size_t dims[4] = {d0, d1, d2, d3};
  attr->n_dims = n_dims;
  for (uint32_t i = 0; i < n_dims; i++) attr->dims[i] = (uint32_t)dims[i];
}

/*
 * With M > 1 and M % 4 != 0, native A and C follow these attributes (stride M), as one reads them. Runtime 1.6.0 gave
 * the hardware strides of M rounded up to 4 there (facts 14): a program that wants to be right on every runtime uses
 * M = 1 or a multiple of 4.
 */
static bool describe_io(sim_context *context) {
  const sim_type *type = context->type;
  size_t M = context->M, K = context->K, N = context->N;
  rknn_matmul_io_attr *io = &context->attr;
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

static void release_binding(sim_binding *binding) {
  if (binding->memory) sim_memory_release(binding->memory);
  *binding = (sim_binding){0};
}

void sim_context_free(sim_context *context) {
  release_binding(&context->a);
  release_binding(&context->b);
  release_binding(&context->c);
  sim_backing_release(context->packed_b);
  free(context);
}

SIM_EXPORT int rknn_matmul_create(rknn_matmul_ctx *ctx, rknn_matmul_info *info, rknn_matmul_io_attr *io_attr) {
  if (!ctx) return RKNN_ERR_CTX_INVALID;
  if (!info || !io_attr) return RKNN_ERR_PARAM_INVALID;
  const sim_chip *chip = sim_current_chip();
  int result = check_info(chip, info);
  if (result != RKNN_SUCC) return result;

  sim_context *context = calloc(1, sizeof *context);
  if (!context) return RKNN_ERR_MALLOC_FAIL;
  const sim_type *type = sim_find_type(chip, info->type);
  context->chip = chip;
  context->type = type;
  context->M = (size_t)info->M;
  context->K = (size_t)info->K;
  context->N = (size_t)info->N;
  context->b_layout = (rknn_matmul_layout)info->B_layout;
  context->native_ac = info->AC_layout == RKNN_MM_LAYOUT_NATIVE;
  context->domain = info->iommu_domain_id;
  context->b_shape = (sim_b_shape){
      .K = context->K,
      .N = context->N,
      .tile_n = type->b_tile_n,
      .tile_k = type->b_tile_k,
      .segment = chip->k_segment,
  };
  if (!describe_io(context)) {
    sim_log_error("rknn_matmul_create, simulator: M %d, K %d, N %d make a tensor of 4 GiB or more", info->M, info->K,
                  info->N);
    sim_context_free(context);
    return RKNN_ERR_PARAM_INVALID;
  }
  rknn_matmul_ctx handle = sim_registry_add_context(context);
  if (!handle) {
    sim_log_error("rknn_matmul_create, simulator: %u contexts live already, a board's limit", chip->contexts_max);
    sim_context_free(context);
    return RKNN_ERR_FAIL;
  }
  copy_attr(&io_attr->A, &context->attr.A);
  copy_attr(&io_attr->B, &context->attr.B);
  copy_attr(&io_attr->C, &context->attr.C);
  *ctx = handle;
  return RKNN_SUCC;
}

SIM_EXPORT int rknn_matmul_destroy(rknn_matmul_ctx ctx) {
  sim_context *context;
  int result = sim_registry_enter(ctx, "rknn_matmul_destroy", &context);
  if (result != RKNN_SUCC) return result;
  bool last = sim_registry_remove_context(ctx);
  sim_context_free(context);
  if (last) sim_scratch_trim();
  return RKNN_SUCC;
}

/* One core at a time: runtimes refuse combined masks for matmul (D12, Q19). All simulated cores are alike. */
SIM_EXPORT int rknn_matmul_set_core_mask(rknn_matmul_ctx ctx, rknn_core_mask core_mask) {
  sim_context *context;
  int result = sim_registry_enter(ctx, "rknn_matmul_set_core_mask", &context);
  if (result != RKNN_SUCC) return result;
  int cores = context->chip->cores;
  bool known = core_mask == RKNN_NPU_CORE_AUTO;
  for (int core = 0; core < cores; core++) known = known || (int)core_mask == 1 << core;
  if (cores == 1) known = false; /* a single-core chip refuses every value */
  sim_registry_leave(ctx);
  if (known) return RKNN_SUCC;
  if (cores > 1) sim_log_error("Not support core mask: %d, fallback to single core auto mode", (int)core_mask);
  sim_log_error("rknn_set_core_mask: failed to set core mask: %d", (int)core_mask);
  return RKNN_ERR_FAIL;
}
