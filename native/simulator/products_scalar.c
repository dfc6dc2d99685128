#include <string.h>

#include "products.h"

float sim_half_to_float(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
  uint32_t exponent = (half >> 10) & 31u;
  uint32_t fraction = half & 0x3ffu;
  uint32_t bits;
  if (exponent == 31) {
    /* A signalling NaN becomes quiet, as the CPU's conversion instructions do it. */
    bits = sign | 0x7f800000u | fraction << 13 | (fraction ? 0x400000u : 0);
  } else if (exponent > 0) {
    bits = sign | (exponent + 127 - 15) << 23 | fraction << 13;
  } else {
    float value = (float)fraction * 0x1p-24f; /* a subnormal half counts units of 2^-24; normal in binary32 */
    memcpy(&bits, &value, sizeof bits);
    bits |= sign;
  }
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

uint16_t sim_float_to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;  /* NaN */
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u; /* 65520 and above */
  if (magnitude < 0x38800000u) {                       /* below 2^-14: subnormal */
    float absolute;
    memcpy(&absolute, &magnitude, sizeof absolute);
    float shifted = absolute + 0.5f; /* whose last bit is worth 2^-24, as a subnormal half's: the sum rounds */
    memcpy(&magnitude, &shifted, sizeof magnitude);
    return (uint16_t)(sign | (magnitude - 0x3f000000u));
  }
  uint32_t odd = magnitude >> 13 & 1;
  return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

static float half_at(const uint8_t *halves, size_t index) {
  uint16_t half;
  memcpy(&half, halves + 2 * index, sizeof half);
  return sim_half_to_float(half);
}

static void f16(sim_rows a, sim_tiles tiles, float *c, size_t c_stride) {
  for (size_t r = 0; r < a.rows; r++) {
    const float *row = (const float *)a.values + r * a.stride;
    for (size_t n = 0; n < tiles.tile_n; n++) {
      float sum = c[r * c_stride + n];
      for (size_t t = 0; t < tiles.k_tiles; t++) {
        for (size_t k = 0; k < tiles.tile_k; k++) {
          sum += row[t * tiles.tile_k + k] * half_at(tiles.b, (t * tiles.tile_n + n) * tiles.tile_k + k);
        }
      }
      c[r * c_stride + n] = sum;
    }
  }
}

static void i8(sim_rows a, sim_tiles tiles, int32_t *c, size_t c_stride) {
  for (size_t r = 0; r < a.rows; r++) {
    const int8_t *row = (const int8_t *)a.values + r * a.stride;
    for (size_t n = 0; n < tiles.tile_n; n++) {
      uint32_t sum = (uint32_t)c[r * c_stride + n]; /* unsigned: wrapping is defined */
      for (size_t t = 0; t < tiles.k_tiles; t++) {
        for (size_t k = 0; k < tiles.tile_k; k++) {
          int8_t b = (int8_t)tiles.b[(t * tiles.tile_n + n) * tiles.tile_k + k];
          sum += (uint32_t)(row[t * tiles.tile_k + k] * b);
        }
      }
      c[r * c_stride + n] = (int32_t)sum;
    }
  }
}

static void ready_ints(const int8_t *in, void *out, size_t count) { memcpy(out, in, count); }

static int32_t sum_ints(const int8_t *in, size_t count) {
  int32_t sum = 0;
  for (size_t i = 0; i < count; i++) sum += in[i];
  return sum;
}

static void halves_to_floats(const uint8_t *halves, float *out, size_t count) {
  for (size_t i = 0; i < count; i++) out[i] = half_at(halves, i);
}

static void ints_to_halves(const int8_t *in, int32_t zero_point, uint8_t *halves, size_t count) {
  for (size_t i = 0; i < count; i++) {
    uint16_t half = sim_float_to_half((float)(in[i] - zero_point));
    memcpy(halves + 2 * i, &half, sizeof half);
  }
}

static void unpack_pairs(const uint8_t *pairs, bool low_first, int8_t *out, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) {
    out[2 * i + !low_first] = (int8_t)(((pairs[i] & 15) ^ 8) - 8); /* sign extension of bit 3 */
    out[2 * i + low_first] = (int8_t)(((pairs[i] >> 4) ^ 8) - 8);
  }
}

const sim_products sim_products_scalar = {
    .name = "scalar",
    .blocks_from = 4,
    .f16 = f16,
    .i8 = i8,
    .int_bytes = sizeof(int8_t),
    .ready_ints = ready_ints,
    .sum_ints = sum_ints,
    .halves_to_floats = halves_to_floats,
    .ints_to_halves = ints_to_halves,
    .unpack_pairs = unpack_pairs,
};
