/*
 * The inner loops of the host kernels: one contiguous row at a time. Each has a scalar reference and a version per
 * instruction set; npumm_rows() gives the table that suits the machine. All versions give the same bits.
 */
#ifndef NPUMATMUL_ROWS_H
#define NPUMATMUL_ROWS_H

#include <stdint.h>

typedef struct {
  const char *name;
  /* dst[i] = float16(src[i] * scale) */
  void (*f32_to_f16)(const float *src, uint16_t *dst, int64_t n, float scale);
  /* dst[i] = clamp(rint(src[i] / scale), -127, 127); src finite */
  void (*f32_to_i8)(const float *src, int8_t *dst, int64_t n, float scale);
  /* largest finite |src[i]|; *finite is cleared where an inf or nan was met */
  float (*absmax)(const float *src, int64_t n, int *finite);
} npumm_row_kernels;

extern const npumm_row_kernels npumm_rows_scalar;
#if defined(__x86_64__)
extern const npumm_row_kernels npumm_rows_avx2;
#elif defined(__aarch64__)
extern const npumm_row_kernels npumm_rows_neon;
#endif

const npumm_row_kernels *npumm_rows(void);

#endif
