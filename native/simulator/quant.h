/*
 * The quantization parameters of a context (facts 5).
 */
#ifndef SIM_QUANT_H
#define SIM_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* B's parameters: one for all, one per channel n, or one per group and channel at g * N + n (Q1). */
typedef struct {
  float *scales;        /* NULL: all 1 */
  int32_t *zero_points; /* NULL: all 0 */
} sim_b_quant;

typedef struct {
  float a_scale, c_scale;
  int32_t a_zero_point, c_zero_point;
  sim_b_quant b;
} sim_quant;

#define SIM_QUANT_DEFAULT \
  { .a_scale = 1, .c_scale = 1 }

void sim_quant_free(sim_quant *quant);

/*
 * The common scale that the per-channel scales of a type 2 B are normalised to: the largest. Column n of C is the exact
 * sum times scale[n] / common, so that nothing grows. How a runtime does it is not documented (Q22).
 */
float sim_common_scale(const sim_quant *quant, size_t N);

#endif
