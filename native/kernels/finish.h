/*
 * The inner loops on finished sums: scales, functions and casts, over one row of values at a time. There is one source,
 * finish_loops.h, compiled for the base instruction set (NEON on aarch64), AVX2 and
 * AVX-512: all give the same bits.
 */
#ifndef NPUMATMUL_FINISH_H
#define NPUMATMUL_FINISH_H

#include <stdint.h>

typedef struct {
  const char *name;
  /* dst[i] = float32(float64(src[i]) * row * columns[i]); columns may be NULL */
  void (*scale_int32)(const int32_t *src, int64_t n, double row, const float *columns, float *dst);
  void (*scale_float32)(const float *src, int64_t n, double row, const float *columns, float *dst);
  void (*relu)(float *values, int64_t n);
  void (*gelu)(float *values, int64_t n);
  void (*gelu_tanh)(float *values, int64_t n);
  void (*silu)(float *values, int64_t n);
  void (*relu2)(float *values, int64_t n);
  void (*sigmoid)(float *values, int64_t n);
  void (*clip)(float *values, int64_t n, float low, float high);
  void (*add)(float *values, const float *other, int64_t n);
  void (*multiply)(float *values, const float *other, int64_t n);
  void (*from_f16)(const uint16_t *src, int64_t n, float *dst);
  void (*from_bf16)(const uint16_t *src, int64_t n, float *dst);
  void (*to_bf16)(const float *src, int64_t n, uint16_t *dst); /* to nearest even */
} npumm_finish_kernels;

extern const npumm_finish_kernels npumm_finish_base;
#if defined(__x86_64__)
extern const npumm_finish_kernels npumm_finish_avx2;
extern const npumm_finish_kernels npumm_finish_avx512;
#endif

const npumm_finish_kernels *npumm_finish(void);

#endif
