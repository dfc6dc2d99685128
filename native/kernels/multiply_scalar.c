/* The reference of the inner loops of products, in plain C. */
#include <string.h>

#include "multiply.h"

typedef enum { HALVES, BYTES, NIBBLES } kind;

static float half_to_float(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 0x3ff;
  uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | fraction << 13 | (fraction ? 0x400000u : 0);
  } else if (exponent > 0) {
    bits = sign | (exponent + 112) << 23 | fraction << 13;
  } else { /* a subnormal is so many steps of 2^-24 */
    const float steps = (float)fraction * 0x1p-24f;
    memcpy(&bits, &steps, sizeof bits);
    bits |= sign;
  }
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static void halves_to_floats(const uint16_t *halves, float *out, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] = half_to_float(halves[i]);
}

static int nibble(uint8_t pair, int high) { return (((high ? pair >> 4 : pair) & 15) ^ 8) - 8; }

/* Place k of a column of one tile, as an integer. */
static int integer_at(kind of, const uint8_t *column, int64_t k) {
  if (of == BYTES) return (int)(int8_t)column[k];
  return nibble(column[k / 32 * 16 + k % 16], k % 32 >= 16);
}

static float float_at(kind of, const uint8_t *column, int64_t k) {
  if (of != HALVES) return (float)integer_at(of, column, k);
  uint16_t half;
  memcpy(&half, column + 2 * k, sizeof half);
  return half_to_float(half);
}

static int64_t bytes_of(kind of, int64_t elements) {
  return of == HALVES ? 2 * elements : of == BYTES ? elements : elements / 2;
}

static void integers(kind of, const int8_t *a, int64_t a_stride, int64_t rows, npumm_tile_column tiles, int32_t *c,
                     int64_t c_stride) {
  const int64_t column_bytes = bytes_of(of, tiles.tile_k);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t n = 0; n < tiles.tile_n; n++) {
      uint32_t sum = 0;
      const int8_t *x = a + r * a_stride;
      for (int64_t t = 0; t < tiles.k_tiles; t++, x += tiles.tile_k) {
        const uint8_t *column = tiles.b + (t * tiles.tile_n + n) * column_bytes;
        for (int64_t k = 0; k < tiles.tile_k; k++) sum += (uint32_t)((int)x[k] * integer_at(of, column, k));
      }
      c[r * c_stride + n] = (int32_t)sum;
    }
  }
}

static float sum_of_lanes(float lanes[16]) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

static void floats(kind of, const float *a, int64_t a_stride, int64_t rows, npumm_tile_column tiles, float *c,
                   int64_t c_stride) {
  const int64_t column_bytes = bytes_of(of, tiles.tile_k);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t n = 0; n < tiles.tile_n; n++) {
      float lanes[16] = {0};
      const float *x = a + r * a_stride;
      for (int64_t t = 0; t < tiles.k_tiles; t++, x += tiles.tile_k) {
        const uint8_t *column = tiles.b + (t * tiles.tile_n + n) * column_bytes;
        for (int64_t k = 0; k < tiles.tile_k; k++) lanes[k % 16] += x[k] * float_at(of, column, k);
      }
      c[r * c_stride + n] = sum_of_lanes(lanes);
    }
  }
}

static void i8(const int8_t *a, int64_t a_stride, const int32_t *row_sums, int64_t rows, npumm_tile_column tiles,
               int32_t *c, int64_t c_stride) {
  (void)row_sums;
  integers(BYTES, a, a_stride, rows, tiles, c, c_stride);
}

static void i4(const int8_t *a, int64_t a_stride, const int32_t *row_sums, int64_t rows, npumm_tile_column tiles,
               int32_t *c, int64_t c_stride) {
  (void)row_sums;
  integers(NIBBLES, a, a_stride, rows, tiles, c, c_stride);
}

static void f16(const float *a, int64_t a_stride, int64_t rows, npumm_tile_column tiles, float *c, int64_t c_stride) {
  floats(HALVES, a, a_stride, rows, tiles, c, c_stride);
}

static void f16_i8(const float *a, int64_t a_stride, int64_t rows, npumm_tile_column tiles, float *c,
                   int64_t c_stride) {
  floats(BYTES, a, a_stride, rows, tiles, c, c_stride);
}

static void f16_i4(const float *a, int64_t a_stride, int64_t rows, npumm_tile_column tiles, float *c,
                   int64_t c_stride) {
  floats(NIBBLES, a, a_stride, rows, tiles, c, c_stride);
}

const npumm_multipliers npumm_multipliers_scalar = {
    .name = "scalar",
    .i8 = i8,
    .i4 = i4,
    .f16 = f16,
    .f16_i8 = f16_i8,
    .f16_i4 = f16_i4,
    .halves_to_floats = halves_to_floats,
};
