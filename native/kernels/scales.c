/* Per-row scales of float32 data: the largest magnitude, and the power of two that brings a row into float16's range. */
#include <math.h>
#include <string.h>

#include "npumatmul_kernels.h"
#include "rows.h"
#include "tiling.h"

enum { CHUNK = 1024 };

static float row_absmax(const npumm_row_kernels *kernels, const char *row, int64_t cols, int64_t col_stride,
                        int *finite) {
  if (col_stride == (int64_t)sizeof(float) && (uintptr_t)row % sizeof(float) == 0) {
    return kernels->absmax((const float *)(const void *)row, cols, finite);
  }
  float largest = 0.0f, chunk[CHUNK];
  for (int64_t c0 = 0; c0 < cols; c0 += CHUNK) {
    const int64_t n = cols - c0 < CHUNK ? cols - c0 : CHUNK;
    for (int64_t i = 0; i < n; i++) memcpy(&chunk[i], row + (c0 + i) * col_stride, sizeof(float));
    const float part = kernels->absmax(chunk, n, finite);
    largest = part > largest ? part : largest;
  }
  return largest;
}

static int arguments_are_valid(const float *src, int64_t rows, int64_t cols, const float *result) {
  if (rows < 0 || cols < 0 || rows > NPUMM_MAX_EXTENT || cols > NPUMM_MAX_EXTENT) return 0;
  return (src || rows == 0 || cols == 0) && (result || rows == 0);
}

int npumm_absmax_rows(const float *src, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                      float *absmax) {
  if (!arguments_are_valid(src, rows, cols, absmax)) return NPUMM_BAD_ARGUMENT;
  const npumm_row_kernels *kernels = npumm_rows();
  for (int64_t r = 0; r < rows; r++) {
    int finite = 1;
    const float largest = cols ? row_absmax(kernels, (const char *)src + r * row_stride, cols, col_stride, &finite) : 0;
    absmax[r] = finite ? largest : -1.0f;
  }
  return NPUMM_OK;
}

int npumm_power_of_two_scales(const float *src, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                              float *scale) {
  if (!arguments_are_valid(src, rows, cols, scale)) return NPUMM_BAD_ARGUMENT;
  const npumm_row_kernels *kernels = npumm_rows();
  for (int64_t r = 0; r < rows; r++) {
    int finite = 1, exponent = 0;
    const float largest = cols ? row_absmax(kernels, (const char *)src + r * row_stride, cols, col_stride, &finite) : 0;
    scale[r] = 1.0f;
    if (largest > 0.0f && (largest < 0.25f || largest >= 32768.0f)) {
      frexpf(largest, &exponent); /* largest = f * 2^exponent with f in [0.5, 1) */
      const int power = 1 - exponent;
      scale[r] = ldexpf(1.0f, power > 127 ? 127 : power); /* 2^127 is the largest power that float32 holds */
    }
  }
  return NPUMM_OK;
}
