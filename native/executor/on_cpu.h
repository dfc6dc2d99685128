/* Tiles that the CPU multiplies, from the same native B. */
#ifndef NPUMATMUL_ON_CPU_H
#define NPUMATMUL_ON_CPU_H

#include "npumatmul_executor.h"

/* Whether a placed matmul that has `on_cpu` can be computed by the CPU. */
int npumm_on_cpu_is_valid(const npumm_placed_matmul *placed);

/* C = A x B of one tile with so many rows. Returns 0 or one of NPUMM_*. */
int npumm_multiply_tile(const npumm_on_cpu *how, const npumm_shape *shape, int64_t rows, const rknn_tensor_mem *a,
                        const rknn_tensor_mem *b, const rknn_tensor_mem *c);

/* Bytes of an image of A. */
int64_t npumm_a_bytes(const npumm_on_cpu *how, const npumm_shape *shape);

#endif
