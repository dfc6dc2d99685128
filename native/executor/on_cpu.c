/* Tiles that the CPU multiplies. See on_cpu.h. */
#include "on_cpu.h"

#include <stddef.h>

static int a_bits(npumm_operands operands) { return operands >= NPUMM_F16_F16 ? 16 : operands == NPUMM_I4_I4 ? 4 : 8; }

static int64_t b_bits(npumm_operands operands) {
  if (operands == NPUMM_F16_F16) return 16;
  return operands == NPUMM_I8_I8 || operands == NPUMM_F16_I8 ? 8 : 4;
}

int npumm_on_cpu_is_valid(const npumm_placed_matmul *p) {
  const npumm_on_cpu *how = p->on_cpu;
  const int is_float = how->operands >= NPUMM_F16_F16, fits = is_float == (p->c_type == NPUMM_C_FLOAT32);
  const int is_int8 = p->c_type == NPUMM_C_INT8;
  if (!fits || (!is_float && !is_int8 && p->c_type != NPUMM_C_INT32) || is_int8 != (how->requantize != 0)) return 0;
  if (p->range_cores || !p->tile_cores || !p->a_memories || !p->c_memories) return 0;
  return 1;
}

/* int8 of sums, cut off towards zero, as the vendor's demo makes them of its own (facts 5.5). */
static void requantize(const int32_t *sums, int8_t *out, int64_t count, double scale) {
  for (int64_t i = 0; i < count; i++) { /* an element is narrower than a sum, so ascending order is safe in place */
    const double value = (double)sums[i] * scale;
    out[i] = (int8_t)(value > INT8_MAX ? INT8_MAX : value < INT8_MIN ? INT8_MIN : (int)value);
  }
}

int64_t npumm_a_bytes(const npumm_on_cpu *how, const npumm_shape *shape) {
  return (int64_t)shape->padded_m * shape->padded_k * a_bits(how->operands) / 8;
}

static void *data_of(const rknn_tensor_mem *memory) { return (char *)memory->virt_addr + memory->offset; }

int npumm_multiply_tile(const npumm_on_cpu *how, const npumm_shape *shape, int64_t rows, const rknn_tensor_mem *a,
                        const rknn_tensor_mem *b, const rknn_tensor_mem *c) {
  const npumm_native_b of = {how->operands,   how->high_first, shape->padded_k,
                             shape->padded_n, how->tile_n,     how->tile_k};
  const int64_t k = shape->padded_k, n = shape->padded_n;
  const int64_t a_stride = k * a_bits(how->operands) / 8;
  if ((int64_t)a->size < rows * a_stride || (int64_t)c->size < rows * n * 4 ||
      (int64_t)b->size < k * n * b_bits(how->operands) / 8) {
    return NPUMM_BUFFER_TOO_SMALL;
  }
  const int code = npumm_multiply(&of, rows, data_of(a), a_stride, data_of(b), data_of(c), n * 4);
  if (!code && how->requantize != 0) requantize(data_of(c), data_of(c), rows * n, how->requantize);
  return code;
}
