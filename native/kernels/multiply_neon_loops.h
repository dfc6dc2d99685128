/* The inner loops of products for NEON, compiled with and without dot product instructions: dot16(sum, x, y) adds the
 * products of 16 int8, in any of the four lanes. */
#ifndef NPUMATMUL_MULTIPLY_NEON_LOOPS_H
#define NPUMATMUL_MULTIPLY_NEON_LOOPS_H

/* ---- floats -------------------------------------------------------------------------------------------------------- */

#define VECTOR float32x4_t
#define PARTS 4
#define ROWS 2
#define COLUMNS 2
#define ALONE 4

INLINE float32x4_t load_floats(const float *p) { return vld1q_f32(p); }
INLINE float32x4_t zero_floats(void) { return vdupq_n_f32(0); }
INLINE float32x4_t add_products(float32x4_t sum, float32x4_t x, float32x4_t y) { return vfmaq_f32(sum, x, y); }

/* The low halves of 16 pairs as int8, or the high ones. */
INLINE int8x16_t low_halves(uint8x16_t pairs) { return vshrq_n_s8(vreinterpretq_s8_u8(vshlq_n_u8(pairs, 4)), 4); }
INLINE int8x16_t high_halves(uint8x16_t pairs) { return vshrq_n_s8(vreinterpretq_s8_u8(pairs), 4); }

/* enum of multiply_floats.h: 0 halves, 1 bytes, 2 nibbles */
INLINE void load_b(const int kind, const uint8_t *column, int64_t group, const int half, float32x4_t *y) {
  if (kind == 0) {
    const float16x8_t low = vreinterpretq_f16_u8(vld1q_u8(column + 32 * group));
    const float16x8_t high = vreinterpretq_f16_u8(vld1q_u8(column + 32 * group + 16));
    y[0] = vcvt_f32_f16(vget_low_f16(low)), y[1] = vcvt_high_f32_f16(low);
    y[2] = vcvt_f32_f16(vget_low_f16(high)), y[3] = vcvt_high_f32_f16(high);
    return;
  }
  const uint8x16_t raw = vld1q_u8(column + (kind == 1 ? group : group / 2) * 16);
  const int8x16_t x = kind == 1 ? vreinterpretq_s8_u8(raw) : half ? high_halves(raw) : low_halves(raw);
  const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_high_s8(x);
  y[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), y[1] = vcvtq_f32_s32(vmovl_high_s16(low));
  y[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), y[3] = vcvtq_f32_s32(vmovl_high_s16(high));
}

INLINE float sum_lanes(const float32x4_t *sums) {
  const float32x4_t four = vaddq_f32(vaddq_f32(sums[0], sums[2]), vaddq_f32(sums[1], sums[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

#include "multiply_floats.h"

TARGET static void halves_to_floats(const uint16_t *halves, float *out, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const float16x8_t eight = vreinterpretq_f16_u16(vld1q_u16(halves + i));
    vst1q_f32(out + i, vcvt_f32_f16(vget_low_f16(eight)));
    vst1q_f32(out + i + 4, vcvt_high_f32_f16(eight));
  }
  if (i < count) npumm_multipliers_scalar.halves_to_floats(halves + i, out + i, count - i);
}

/* ---- integers ------------------------------------------------------------------------------------------------------ */

#define INTS_MOST 16

/* `has_pairs`: B is int4, 16 bytes of a column are 32 places. Where tile_k is known when this is compiled, columns need no
 * registers for their addresses. */
INLINE void ints_block(const int has_pairs, const int8_t *a, int64_t a_stride, npumm_tile_column tiles,
                       const int64_t tile_k, int64_t n, int32_t *c, int64_t c_stride, const int rows,
                       const int columns) {
  int32x4_t sums[INTS_MOST];
#pragma GCC unroll 16
  for (int i = 0; i < rows * columns; i++) sums[i] = vdupq_n_s32(0);
  const int64_t column_bytes = has_pairs ? tile_k / 2 : tile_k;
  const uint8_t *first = tiles.b + n * column_bytes;
  const int8_t *x = a;
  for (int64_t t = 0; t < tiles.k_tiles; t++, first += tiles.tile_n * column_bytes) {
    for (int64_t k = 0; k < tile_k; k += 32, x += 32) {
      int8x16_t of_rows[4][2];
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) {
        of_rows[r][0] = vld1q_s8(x + r * a_stride), of_rows[r][1] = vld1q_s8(x + r * a_stride + 16);
      }
#pragma GCC unroll 16
      for (int j = 0; j < columns; j++) {
        const uint8_t *column = first + j * column_bytes + (has_pairs ? k / 2 : k);
        const uint8x16_t raw = vld1q_u8(column);
        const int8x16_t y0 = has_pairs ? low_halves(raw) : vreinterpretq_s8_u8(raw);
        const int8x16_t y1 = has_pairs ? high_halves(raw) : vreinterpretq_s8_u8(vld1q_u8(column + 16));
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
          sums[r * columns + j] = dot16(dot16(sums[r * columns + j], of_rows[r][0], y0), of_rows[r][1], y1);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows * columns; i += 4) {
    const int32x4_t four = vpaddq_s32(vpaddq_s32(sums[i], sums[i + 1]), vpaddq_s32(sums[i + 2], sums[i + 3]));
    vst1q_s32(c + i / columns * c_stride + n + i % columns, four);
  }
}

INLINE void ints(const int has_pairs, const int8_t *a, int64_t a_stride, int64_t rows, npumm_tile_column tiles,
                 const int64_t tile_k, int32_t *c, int64_t c_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    for (int64_t n = 0; n < tiles.tile_n; n += 4) {
      ints_block(has_pairs, a + r * a_stride, a_stride, tiles, tile_k, n, c + r * c_stride, c_stride, 4, 4);
    }
  }
  for (; r + 2 <= rows; r += 2) {
    for (int64_t n = 0; n < tiles.tile_n; n += 8) {
      ints_block(has_pairs, a + r * a_stride, a_stride, tiles, tile_k, n, c + r * c_stride, c_stride, 2, 8);
    }
  }
  for (; r < rows; r++) {
    for (int64_t n = 0; n < tiles.tile_n; n += 16) {
      ints_block(has_pairs, a + r * a_stride, a_stride, tiles, tile_k, n, c + r * c_stride, c_stride, 1, 16);
    }
  }
}

TARGET static void i8(const int8_t *a, int64_t a_stride, const int32_t *row_sums, int64_t rows, npumm_tile_column tiles,
                      int32_t *c, int64_t c_stride) {
  (void)row_sums;
  if (tiles.tile_k == 32) {
    ints(0, a, a_stride, rows, tiles, 32, c, c_stride);
  } else {
    ints(0, a, a_stride, rows, tiles, tiles.tile_k, c, c_stride);
  }
}

TARGET static void i4(const int8_t *a, int64_t a_stride, const int32_t *row_sums, int64_t rows, npumm_tile_column tiles,
                      int32_t *c, int64_t c_stride) {
  (void)row_sums;
  if (tiles.tile_k == 32) {
    ints(1, a, a_stride, rows, tiles, 32, c, c_stride);
  } else {
    ints(1, a, a_stride, rows, tiles, tiles.tile_k, c, c_stride);
  }
}

#endif
