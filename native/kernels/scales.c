/* Per-row scales of float32 data: for quantization, and the power of two that brings a row into float16's range. */
#include <math.h>
#include <string.h>

#include "npumatmul_kernels.h"
#include "rows.h"
#include "tiling.h"

enum { CHUNK = 1024 };

int32_t npumm_levels(npumm_conversion conversion) {
  switch (conversion) {
    case NPUMM_F32_TO_I8:
      return 127;
    case NPUMM_F32_TO_I4:
    case NPUMM_F32_TO_I4_HIGH_FIRST:
      return 7;
    case NPUMM_F32_TO_I4_SPLIT:
    case NPUMM_F32_TO_I4_SPLIT_HIGH_FIRST:
      return 119;
    default:
      return 0;
  }
}

/*
 * range[0] and range[1] become the least and the largest finite value of a row, and of 0; returns whether all values
 * are finite. With `magnitude`, range[1] is the largest magnitude and range[0] stays 0.
 */
static int row_range(const npumm_row_kernels *kernels, int magnitude, const char *row, int64_t cols, int64_t col_stride,
                     float range[2]) {
  int finite = 1;
  float chunk[CHUNK];
  const int direct = col_stride == (int64_t)sizeof(float) && (uintptr_t)row % sizeof(float) == 0;
  const int64_t step = direct ? cols : CHUNK;
  range[0] = range[1] = 0.0f;
  for (int64_t c0 = 0; c0 < cols; c0 += step) {
    const int64_t n = cols - c0 < step ? cols - c0 : step;
    const float *values = chunk;
    if (direct) values = (const float *)(const void *)row;
    else
      for (int64_t i = 0; i < n; i++) memcpy(&chunk[i], row + (c0 + i) * col_stride, sizeof(float));
    if (magnitude) {
      const float largest = kernels->absmax(values, n, &finite);
      range[1] = largest > range[1] ? largest : range[1];
    } else {
      kernels->minmax(values, n, range, &finite);
    }
  }
  return finite;
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
    float range[2];
    const int finite = row_range(kernels, 1, (const char *)src + r * row_stride, cols, col_stride, range);
    absmax[r] = finite ? range[1] : -1.0f;
  }
  return NPUMM_OK;
}

static int quantization_is_valid(int32_t levels, float clip) { return levels > 0 && clip > 0.0f && clip <= 1.0f; }

int npumm_symmetric_scales(const float *src, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                           int32_t levels, float clip, float *scale) {
  if (!quantization_is_valid(levels, clip)) return NPUMM_BAD_ARGUMENT;
  const int code = npumm_absmax_rows(src, rows, cols, row_stride, col_stride, scale);
  for (int64_t r = 0; !code && r < rows; r++) {
    if (scale[r] >= 0.0f) scale[r] = scale[r] * clip / (float)levels;
    if (scale[r] == 0.0f) scale[r] = 1.0f;
  }
  return code;
}

int npumm_asymmetric_scales(const float *src, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                            int32_t levels, float clip, float *scale, int32_t *zero) {
  if (!arguments_are_valid(src, rows, cols, scale) || (!zero && rows > 0) || !quantization_is_valid(levels, clip)) {
    return NPUMM_BAD_ARGUMENT;
  }
  const npumm_row_kernels *kernels = npumm_rows();
  for (int64_t r = 0; r < rows; r++) {
    float range[2];
    zero[r] = 0;
    if (!row_range(kernels, 0, (const char *)src + r * row_stride, cols, col_stride, range)) {
      scale[r] = -1.0f;
      continue;
    }
    const double least = (double)range[0] * (double)clip, largest = (double)range[1] * (double)clip;
    scale[r] = (float)((largest - least) / (2.0 * levels + 1.0));
    if (scale[r] == 0.0f) scale[r] = 1.0f;
    const double point = -levels - 1.0 - rint(least / (double)scale[r]); /* least becomes -levels - 1 */
    zero[r] = point > levels ? levels : (int32_t)point;
  }
  return NPUMM_OK;
}

int npumm_power_of_two_scales(const float *src, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                              int32_t high, float *scale) {
  if (!arguments_are_valid(src, rows, cols, scale)) return NPUMM_BAD_ARGUMENT;
  const npumm_row_kernels *kernels = npumm_rows();
  for (int64_t r = 0; r < rows; r++) {
    int exponent = 0;
    float range[2];
    row_range(kernels, 1, (const char *)src + r * row_stride, cols, col_stride, range);
    scale[r] = 1.0f;
    if (range[1] > 0.0f && (high || range[1] < 0.25f || range[1] >= 32768.0f)) {
      frexpf(range[1], &exponent); /* largest = f * 2^exponent with f in [0.5, 1) */
      const int power = (high ? 15 : 1) - exponent;
      scale[r] = ldexpf(1.0f, power > 127 ? 127 : power); /* 2^127 is the largest power that float32 holds */
    }
  }
  return NPUMM_OK;
}
