/*
 * The inner loops of layers, over one row at a time. There is one source, layers_loops.h, compiled for the base instruction set
 * (NEON on aarch64), for AVX2 and for AVX-512: all give the same bits.
 */
#ifndef NPUMATMUL_LAYER_LOOPS_H
#define NPUMATMUL_LAYER_LOOPS_H

#include <stdint.h>

typedef struct {
  const char *name;
  float (*sum)(const float *x, int64_t n);
  float (*sum_of_squares)(const float *x, int64_t n);
  float (*subtract)(const float *x, float mean, float *out, int64_t n); /* returns the sum of squares of out */
  void (*divide)(const float *x, float divisor, const float *factor, float *out, int64_t n); /* factor may be NULL */
  void (*turn)(const float *x, const float *cos, const float *sin, float *out, int64_t half);
  void (*turn_pairs)(const float *x, const float *cos, const float *sin, float *out, int64_t half);
  void (*add)(const float *x, const float *y, float *out, int64_t n);
  void (*add_scaled)(const float *x, const float *y, float scale, float *out, int64_t n);
  void (*scale)(const float *x, float scale, float *out, int64_t n);
} npumm_layer_loops;

extern const npumm_layer_loops npumm_layer_loops_base;
#if defined(__x86_64__)
extern const npumm_layer_loops npumm_layer_loops_avx2;
extern const npumm_layer_loops npumm_layer_loops_avx512;
#endif

const npumm_layer_loops *npumm_layers(void);

#endif
