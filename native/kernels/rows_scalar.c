/* Scalar reference of the row kernels: what every other version is compared with. */
#include <math.h>
#include <string.h>

#include "rows.h"
#include "transpose.h"

/* IEEE binary32 -> binary16, round to nearest even, subnormals kept, nan stays a (quiet) nan with its sign. */
static uint16_t half_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) { /* nan: keep the top of the payload, as the hardware conversions do */
    return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
  }
  if (magnitude >= 0x477ff000u) { /* 65520 and above round to infinity */
    return (uint16_t)(sign | 0x7c00u);
  }
  if (magnitude < 0x38800000u) { /* below 2^-14: a multiple of 2^-24, rounded by the float adder itself */
    float absolute;
    memcpy(&absolute, &magnitude, sizeof absolute);
    const float shifted = absolute + 0.5f; /* float32 has steps of 2^-24 from 0.5 to 1 */
    uint32_t result;
    memcpy(&result, &shifted, sizeof result);
    return (uint16_t)(sign | (result - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

static void f32_to_f16(const float *src, uint16_t *dst, int64_t n, float scale) {
  for (int64_t i = 0; i < n; i++) dst[i] = half_from_float(src[i] * scale);
}

static void f32_to_f16_high(const float *src, uint16_t *dst, int64_t n, float scale) {
  for (int64_t i = 0; i < n; i++) {
    const uint16_t half = half_from_float(src[i] * scale);
    dst[i] = (half & 0x7fffu) < 0x7c00u ? half : (uint16_t)((half & 0x8000u) | 0x3c00u);
  }
}

static float float_from_half(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  float value;
  if (magnitude < 0x400u) { /* a multiple of 2^-24 */
    value = (float)magnitude * 5.9604644775390625e-8f;
  } else {
    const uint32_t bits = magnitude < 0x7c00u ? (magnitude << 13) + 0x38000000u : (magnitude << 13) | 0x7f800000u;
    memcpy(&value, &bits, sizeof value);
  }
  return sign ? -value : value;
}

static void f32_to_f16_low(const float *src, uint16_t *dst, int64_t n, float scale) {
  for (int64_t i = 0; i < n; i++) {
    const float x = src[i] * scale;
    const uint16_t high = half_from_float(x);
    dst[i] =
        (high & 0x7fffu) < 0x7c00u ? half_from_float(x - float_from_half(high)) : high; /* the difference is exact */
  }
}

static int8_t quantized(float x, float scale, float low, float high, int32_t zero, int *finite) {
  const int is_finite = fabsf(x) <= 3.402823466e+38f;
  float q = is_finite ? x / scale : NAN;
  *finite &= is_finite;
  q = q >= low ? q : low; /* a nan too */
  q = q <= high ? q : high;
  return (int8_t)((int32_t)rintf(q) + zero);
}

static int quantize(const float *src, int8_t *dst, int64_t n, const npumm_quantizer *how) {
  int finite = 1;
  for (int64_t i = 0; i < n; i++) dst[i] = quantized(src[i], how->scale, how->low, how->high, how->zero, &finite);
  return finite;
}

static int quantize_columns(const float *src, int8_t *dst, int64_t n, const npumm_quantizers *how) {
  int finite = 1;
  for (int64_t i = 0; i < n; i++) {
    dst[i] = quantized(src[i], how->scale[i], how->low[i], how->high[i], how->zero[i], &finite);
  }
  return finite;
}

static void absmax_columns(const float *src, int64_t n, uint32_t *largest) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &src[i], sizeof bits);
    bits &= 0x7fffffffu;
    largest[i] = bits > largest[i] ? bits : largest[i];
  }
}

static void pairs(const int8_t *src, uint8_t *dst, int64_t n, int high, int high_first) {
  const int bias = high ? 8 : 0, shift = high ? 4 : 0;
  const int even_shift = high_first ? 4 : 0, odd_shift = high_first ? 0 : 4;
  for (int64_t i = 0; i < n; i += 2) {
    const unsigned even = (uint8_t)(src[i] + bias) >> shift & 0x0fu;
    const unsigned odd = i + 1 < n ? (uint8_t)(src[i + 1] + bias) >> shift & 0x0fu : 0;
    dst[i / 2] = (uint8_t)(even << even_shift | odd << odd_shift);
  }
}

void npumm_copy_columns_base(const npumm_columns *of, const char *src, char *dst, int64_t pitch) {
  for (int64_t c = 0; c < of->cols; c++, src += of->stride, dst += pitch) {
    npumm_ask_ahead(of, src, c);
    memcpy(dst, src, (size_t)of->bytes);
  }
}

static void pair_columns(const int8_t *even, const int8_t *odd, uint8_t *dst, int64_t n, int high, int high_first) {
  const int8_t *lower = high_first ? odd : even, *upper = high_first ? even : odd;
  if (high) {
    for (int64_t i = 0; i < n; i++) dst[i] = (uint8_t)((uint8_t)(lower[i] + 8) >> 4 | ((upper[i] + 8) & 0xf0));
  } else {
    for (int64_t i = 0; i < n; i++) dst[i] = (uint8_t)((lower[i] & 0x0f) | (uint8_t)upper[i] << 4);
  }
}

static int32_t sum(const int8_t *src, int64_t n) {
  uint32_t total = 0;
  for (int64_t i = 0; i < n; i++) total += (uint32_t)(int32_t)src[i];
  return (int32_t)total;
}

static float absmax(const float *src, int64_t n, int *finite) {
  float largest = 0.0f;
  for (int64_t i = 0; i < n; i++) {
    const float magnitude = fabsf(src[i]);
    if (!(magnitude <= 3.402823466e+38f)) {
      *finite = 0;
    } else if (magnitude > largest) {
      largest = magnitude;
    }
  }
  return largest;
}

static void minmax(const float *src, int64_t n, float range[2], int *finite) {
  for (int64_t i = 0; i < n; i++) {
    if (!(fabsf(src[i]) <= 3.402823466e+38f)) {
      *finite = 0;
    } else {
      range[0] = src[i] < range[0] ? src[i] : range[0];
      range[1] = src[i] > range[1] ? src[i] : range[1];
    }
  }
}

const npumm_row_kernels npumm_rows_scalar = {"scalar",
                                             f32_to_f16,
                                             f32_to_f16_high,
                                             f32_to_f16_low,
                                             quantize,
                                             quantize_columns,
                                             pairs,
                                             pair_columns,
                                             sum,
                                             absmax,
                                             minmax,
                                             absmax_columns,
                                             npumm_copy_columns_base,
                                             npumm_transpose_scalar,
                                             npumm_pieces_base};
