/* Per-row scales of float32 data: for quantization, and the power of two that brings a row into float16's range. */
#include <math.h>
#include <string.h>

#include "npumatmul_kernels.h"
#include "pack.h"
#include "rows.h"
#include "tiling.h"

/* Of a row whose elements are gathered; and rows whose columns are walked through together, for magnitudes and ranges. */
enum { CHUNK = 1024, ROWS_AT_ONCE = 4096, RANGES_AT_ONCE = 512 };

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

/* Whether the columns are contiguous floats, and not the rows. */
static int goes_down(const float *src, int64_t row_stride, int64_t col_stride) {
  const int64_t unit = (int64_t)sizeof *src;
  return row_stride == unit && col_stride != unit && (uintptr_t)src % sizeof *src == 0 && col_stride % unit == 0;
}

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* Largest |x| of each of at most ROWS_AT_ONCE rows, column by column: inf or nan where there is one. */
static void magnitudes_down(const char *src, int64_t rows, int64_t cols, int64_t col_stride, float *largest) {
  uint32_t bits[ROWS_AT_ONCE] = {0};
  for (int64_t c = 0; c < cols; c++) {
    npumm_rows()->absmax_columns((const float *)(const void *)(src + c * col_stride), rows, bits);
  }
  for (int64_t r = 0; r < rows; r++) largest[r] = float_of(bits[r]);
}

/* Largest finite |x| of each row; with a sign (-0, too) where the row holds an inf or a nan. */
static void magnitudes(const float *src, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                       float *largest) {
  const npumm_row_kernels *kernels = npumm_rows();
  const int down = goes_down(src, row_stride, col_stride);
  for (int64_t r0 = 0; down && r0 < rows; r0 += ROWS_AT_ONCE) {
    const int64_t count = rows - r0 < ROWS_AT_ONCE ? rows - r0 : ROWS_AT_ONCE;
    magnitudes_down((const char *)(src + r0), count, cols, col_stride, largest + r0);
  }
  for (int64_t r = 0; r < rows; r++) {
    if (down && isfinite(largest[r])) continue;
    float range[2];
    const int finite = row_range(kernels, 1, (const char *)src + r * row_stride, cols, col_stride, range);
    largest[r] = finite ? range[1] : -range[1];
  }
}

/* Ranges of at most RANGES_AT_ONCE rows as row_range has them, column by column; finite[r] is cleared as there. */
static void ranges_down(const char *src, int64_t rows, int64_t cols, int64_t col_stride, float *least, float *largest,
                        int *finite) {
  float magnitude[RANGES_AT_ONCE];
  magnitudes_down(src, rows, cols, col_stride, magnitude);
  for (int64_t r = 0; r < rows; r++) least[r] = largest[r] = 0.0f, finite[r] = isfinite(magnitude[r]) != 0;
  for (int64_t c = 0; c < cols; c++) {
    const float *column = (const float *)(const void *)(src + c * col_stride);
    for (int64_t r = 0; r < rows; r++) {
      least[r] = column[r] < least[r] ? column[r] : least[r];
      largest[r] = column[r] > largest[r] ? column[r] : largest[r];
    }
  }
}

int npumm_absmax_rows(const float *src, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                      float *absmax) {
  if (!arguments_are_valid(src, rows, cols, absmax)) return NPUMM_BAD_ARGUMENT;
  magnitudes(src, rows, cols, row_stride, col_stride, absmax);
  for (int64_t r = 0; r < rows; r++) {
    if (signbit(absmax[r])) absmax[r] = -1.0f;
  }
  return NPUMM_OK;
}

static int quantization_is_valid(int32_t levels, float clip) { return levels > 0 && clip > 0.0f && clip <= 1.0f; }

float npumm_symmetric_scale(float largest, int32_t levels, float clip) {
  const float scale = largest * clip / (float)levels;
  return scale == 0.0f ? 1.0f : scale;
}

int npumm_symmetric_scales(const float *src, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                           int32_t levels, float clip, float *scale) {
  if (!quantization_is_valid(levels, clip)) return NPUMM_BAD_ARGUMENT;
  const int code = npumm_absmax_rows(src, rows, cols, row_stride, col_stride, scale);
  for (int64_t r = 0; !code && r < rows; r++) {
    if (scale[r] >= 0.0f) scale[r] = npumm_symmetric_scale(scale[r], levels, clip);
  }
  return code;
}

static void asymmetric(float from, float to, int32_t levels, float clip, float *scale, int32_t *zero) {
  const double least = (double)from * (double)clip, largest = (double)to * (double)clip;
  *scale = (float)((largest - least) / (2.0 * levels + 1.0));
  if (*scale == 0.0f) *scale = 1.0f;
  const double point = -levels - 1.0 - rint(least / (double)*scale); /* least becomes -levels - 1 */
  *zero = point > levels ? levels : (int32_t)point;
}

int npumm_asymmetric_scales(const float *src, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                            int32_t levels, float clip, float *scale, int32_t *zero) {
  if (!arguments_are_valid(src, rows, cols, scale) || (!zero && rows > 0) || !quantization_is_valid(levels, clip)) {
    return NPUMM_BAD_ARGUMENT;
  }
  const npumm_row_kernels *kernels = npumm_rows();
  const int down = goes_down(src, row_stride, col_stride);
  float least[RANGES_AT_ONCE], largest[RANGES_AT_ONCE];
  int finite[RANGES_AT_ONCE];
  for (int64_t r = 0; r < rows; r++) {
    const int64_t i = down ? r % RANGES_AT_ONCE : 0;
    if (!down) {
      float range[2];
      finite[0] = row_range(kernels, 0, (const char *)src + r * row_stride, cols, col_stride, range);
      least[0] = range[0], largest[0] = range[1];
    } else if (i == 0) {
      const int64_t count = rows - r < RANGES_AT_ONCE ? rows - r : RANGES_AT_ONCE;
      ranges_down((const char *)(src + r), count, cols, col_stride, least, largest, finite);
    }
    zero[r] = 0;
    scale[r] = -1.0f;
    if (finite[i]) asymmetric(least[i], largest[i], levels, clip, &scale[r], &zero[r]);
  }
  return NPUMM_OK;
}

int npumm_power_of_two_scales(const float *src, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                              int32_t high, float *scale) {
  if (!arguments_are_valid(src, rows, cols, scale)) return NPUMM_BAD_ARGUMENT;
  magnitudes(src, rows, cols, row_stride, col_stride, scale);
  for (int64_t r = 0; r < rows; r++) {
    const float largest = fabsf(scale[r]);
    scale[r] = 1.0f;
    if (largest > 0.0f && (high || largest < 0.25f || largest >= 32768.0f)) {
      int exponent = 0;
      frexpf(largest, &exponent); /* largest = f * 2^exponent with f in [0.5, 1) */
      const int power = (high ? 15 : 1) - exponent;
      scale[r] = ldexpf(1.0f, power > 127 ? 127 : power); /* 2^127 is the largest power that float32 holds */
    }
  }
  return NPUMM_OK;
}
