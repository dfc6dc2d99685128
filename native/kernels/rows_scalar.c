/* Scalar reference of the row kernels: what every other version is compared with. */
#include <math.h>
#include <string.h>

#include "rows.h"

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

static void f32_to_i8(const float *src, int8_t *dst, int64_t n, float scale) {
  for (int64_t i = 0; i < n; i++) {
    float q = rintf(src[i] / scale);
    q = q > 127.0f ? 127.0f : q;
    q = q < -127.0f ? -127.0f : q;
    dst[i] = (int8_t)q;
  }
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

const npumm_row_kernels npumm_rows_scalar = {"scalar", f32_to_f16, f32_to_i8, absmax};
