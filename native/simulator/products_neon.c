/*
 * NEON for aarch64, with and without the dot product instructions of Armv8.2 (Cortex-A76 has them, Cortex-A55 too).
 * The loops have the two shapes described in products_avx2.c.
 */
#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

#include "products.h"

#define INLINE __attribute__((always_inline)) static inline

/* Through bytes, because B may start at any byte. */
INLINE float16x8_t load_halves(const uint8_t *halves) { return vreinterpretq_f16_u8(vld1q_u8(halves)); }

static void f16_four_rows(const float *a, size_t a_stride, sim_tiles tiles, float *c, size_t c_stride) {
  size_t tile_bytes = tiles.tile_n * tiles.tile_k * 2;
  for (size_t n = 0; n < tiles.tile_n; n += 2) {
    float32x4_t sums[4][2];
    for (size_t r = 0; r < 4; r++) sums[r][0] = sums[r][1] = vdupq_n_f32(0);
    const uint8_t *column = tiles.b + n * tiles.tile_k * 2;
    size_t k = 0;
    for (size_t t = 0; t < tiles.k_tiles; t++, column += tile_bytes) {
      for (size_t step = 0; step < tiles.tile_k; step += 8, k += 8) {
        float16x8_t h0 = load_halves(column + step * 2), h1 = load_halves(column + (tiles.tile_k + step) * 2);
        float32x4_t x00 = vcvt_f32_f16(vget_low_f16(h0)), x01 = vcvt_high_f32_f16(h0);
        float32x4_t x10 = vcvt_f32_f16(vget_low_f16(h1)), x11 = vcvt_high_f32_f16(h1);
#pragma GCC unroll 4
        for (size_t r = 0; r < 4; r++) {
          float32x4_t y0 = vld1q_f32(a + r * a_stride + k), y1 = vld1q_f32(a + r * a_stride + k + 4);
          sums[r][0] = vfmaq_f32(vfmaq_f32(sums[r][0], y0, x00), y1, x01);
          sums[r][1] = vfmaq_f32(vfmaq_f32(sums[r][1], y0, x10), y1, x11);
        }
      }
    }
    for (size_t r = 0; r < 4; r++) {
      c[r * c_stride + n] += vaddvq_f32(sums[r][0]);
      c[r * c_stride + n + 1] += vaddvq_f32(sums[r][1]);
    }
  }
}

static void f16_one_row(const float *a, sim_tiles tiles, float *c) {
  float32x4_t sums[SIM_TILE_N_MAX];
  for (size_t n = 0; n < tiles.tile_n; n++) sums[n] = vdupq_n_f32(0);
  const uint8_t *b = tiles.b;
  for (size_t t = 0; t < tiles.k_tiles; t++) {
    for (size_t part = 0; part < tiles.tile_k / 16; part++) {
      const float *y = a + t * tiles.tile_k + part * 16;
      float32x4_t y0 = vld1q_f32(y), y1 = vld1q_f32(y + 4), y2 = vld1q_f32(y + 8), y3 = vld1q_f32(y + 12);
      const uint8_t *x = b + part * 32;
      for (size_t n = 0; n < tiles.tile_n; n++, x += tiles.tile_k * 2) {
        float16x8_t h0 = load_halves(x), h1 = load_halves(x + 16);
        float32x4_t sum = vfmaq_f32(sums[n], y0, vcvt_f32_f16(vget_low_f16(h0)));
        sum = vfmaq_f32(sum, y1, vcvt_high_f32_f16(h0));
        sum = vfmaq_f32(sum, y2, vcvt_f32_f16(vget_low_f16(h1)));
        sums[n] = vfmaq_f32(sum, y3, vcvt_high_f32_f16(h1));
      }
    }
    b += tiles.tile_n * tiles.tile_k * 2;
  }
  for (size_t n = 0; n < tiles.tile_n; n++) c[n] += vaddvq_f32(sums[n]);
}

static void f16(sim_rows a, sim_tiles tiles, float *c, size_t c_stride) {
  const float *values = a.values;
  size_t r = 0;
  for (; r + 4 <= a.rows; r += 4) { f16_four_rows(values + r * a.stride, a.stride, tiles, c + r * c_stride, c_stride); }
  for (; r < a.rows; r++) f16_one_row(values + r * a.stride, tiles, c + r * c_stride);
}

/* An int8 product fits int16 (at most 128 * 128), and the pairwise addition widens to int32: exact. */
INLINE int32x4_t multiply_add_plain(int32x4_t sum, int8x16_t x, int8x16_t y) {
  sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(x), vget_low_s8(y)));
  return vpadalq_s16(sum, vmull_high_s8(x, y));
}

#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))

DOTPROD __attribute__((always_inline)) static inline int32x4_t multiply_add_dotprod(int32x4_t sum, int8x16_t x,
                                                                                    int8x16_t y) {
  return vdotq_s32(sum, x, y);
}

INLINE void add_wrapping(int32_t *out, int32x4_t sums) {
  *out = (int32_t)((uint32_t)*out + (uint32_t)vaddvq_s32(sums));
}

/*
 * The two int8 loops, once per way to multiply. A macro, because a function with one target attribute cannot be
 * inlined from a template with another.
 */
#define DEFINE_I8(suffix, TARGET)                                                                                  \
  TARGET static void i8_four_rows_##suffix(const int8_t *a, size_t a_stride, sim_tiles tiles, int32_t *c,          \
                                           size_t c_stride) {                                                      \
    size_t tile_bytes = tiles.tile_n * tiles.tile_k;                                                               \
    for (size_t n = 0; n < tiles.tile_n; n += 2) {                                                                 \
      int32x4_t s00 = vdupq_n_s32(0), s01 = s00, s10 = s00, s11 = s00, s20 = s00, s21 = s00, s30 = s00, s31 = s00; \
      const uint8_t *column = tiles.b + n * tiles.tile_k;                                                          \
      size_t k = 0;                                                                                                \
      for (size_t t = 0; t < tiles.k_tiles; t++, column += tile_bytes) {                                           \
        for (size_t step = 0; step < tiles.tile_k; step += 16, k += 16) {                                          \
          int8x16_t x0 = vreinterpretq_s8_u8(vld1q_u8(column + step));                                             \
          int8x16_t x1 = vreinterpretq_s8_u8(vld1q_u8(column + tiles.tile_k + step));                              \
          int8x16_t y0 = vld1q_s8(a + k), y1 = vld1q_s8(a + a_stride + k);                                         \
          int8x16_t y2 = vld1q_s8(a + 2 * a_stride + k), y3 = vld1q_s8(a + 3 * a_stride + k);                      \
          s00 = multiply_add_##suffix(s00, x0, y0);                                                                \
          s01 = multiply_add_##suffix(s01, x1, y0);                                                                \
          s10 = multiply_add_##suffix(s10, x0, y1);                                                                \
          s11 = multiply_add_##suffix(s11, x1, y1);                                                                \
          s20 = multiply_add_##suffix(s20, x0, y2);                                                                \
          s21 = multiply_add_##suffix(s21, x1, y2);                                                                \
          s30 = multiply_add_##suffix(s30, x0, y3);                                                                \
          s31 = multiply_add_##suffix(s31, x1, y3);                                                                \
        }                                                                                                          \
      }                                                                                                            \
      add_wrapping(c + n, s00);                                                                                    \
      add_wrapping(c + n + 1, s01);                                                                                \
      add_wrapping(c + c_stride + n, s10);                                                                         \
      add_wrapping(c + c_stride + n + 1, s11);                                                                     \
      add_wrapping(c + 2 * c_stride + n, s20);                                                                     \
      add_wrapping(c + 2 * c_stride + n + 1, s21);                                                                 \
      add_wrapping(c + 3 * c_stride + n, s30);                                                                     \
      add_wrapping(c + 3 * c_stride + n + 1, s31);                                                                 \
    }                                                                                                              \
  }                                                                                                                \
  TARGET static void i8_one_row_##suffix(const int8_t *a, sim_tiles tiles, int32_t *c) {                           \
    int32x4_t sums[SIM_TILE_N_MAX];                                                                                \
    for (size_t n = 0; n < tiles.tile_n; n++) sums[n] = vdupq_n_s32(0);                                            \
    const uint8_t *b = tiles.b;                                                                                    \
    for (size_t t = 0; t < tiles.k_tiles; t++) {                                                                   \
      for (size_t part = 0; part < tiles.tile_k / 16; part++) {                                                    \
        int8x16_t y = vld1q_s8(a + t * tiles.tile_k + part * 16);                                                  \
        const uint8_t *x = b + part * 16;                                                                          \
        for (size_t n = 0; n < tiles.tile_n; n++, x += tiles.tile_k) {                                             \
          sums[n] = multiply_add_##suffix(sums[n], vreinterpretq_s8_u8(vld1q_u8(x)), y);                           \
        }                                                                                                          \
      }                                                                                                            \
      b += tiles.tile_n * tiles.tile_k;                                                                            \
    }                                                                                                              \
    for (size_t n = 0; n < tiles.tile_n; n++) add_wrapping(c + n, sums[n]);                                        \
  }                                                                                                                \
  static void i8_##suffix(sim_rows a, sim_tiles tiles, int32_t *c, size_t c_stride) {                              \
    const int8_t *values = a.values;                                                                               \
    size_t r = 0;                                                                                                  \
    for (; r + 4 <= a.rows; r += 4) {                                                                              \
      i8_four_rows_##suffix(values + r * a.stride, a.stride, tiles, c + r * c_stride, c_stride);                   \
    }                                                                                                              \
    for (; r < a.rows; r++) i8_one_row_##suffix(values + r * a.stride, tiles, c + r * c_stride);                   \
  }

DEFINE_I8(plain, )
DEFINE_I8(dotprod, DOTPROD)

static void halves_to_floats(const uint8_t *halves, float *out, size_t count) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    float16x8_t h = load_halves(halves + 2 * i);
    vst1q_f32(out + i, vcvt_f32_f16(vget_low_f16(h)));
    vst1q_f32(out + i + 4, vcvt_high_f32_f16(h));
  }
  if (i < count) sim_products_scalar.halves_to_floats(halves + 2 * i, out + i, count - i);
}

static void ints_to_halves(const int8_t *in, int32_t zero_point, uint8_t *halves, size_t count) {
  const int16x8_t zero = vdupq_n_s16((int16_t)zero_point);
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    int16x8_t values = vsubq_s16(vmovl_s8(vld1_s8(in + i)), zero);
    float16x4_t low = vcvt_f16_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(values))));
    float16x4_t high = vcvt_f16_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(values))));
    vst1q_u8(halves + 2 * i, vcombine_u8(vreinterpret_u8_f16(low), vreinterpret_u8_f16(high)));
  }
  if (i < count) sim_products_scalar.ints_to_halves(in + i, zero_point, halves + 2 * i, count - i);
}

static void unpack_pairs(const uint8_t *pairs, bool low_first, int8_t *out, size_t bytes) {
  size_t i = 0;
  for (; i + 16 <= bytes; i += 16) {
    int8x16_t x = vreinterpretq_s8_u8(vld1q_u8(pairs + i));
    int8x16_t low = vshrq_n_s8(vshlq_n_s8(x, 4), 4), high = vshrq_n_s8(x, 4);
    int8x16x2_t both = {{low_first ? low : high, low_first ? high : low}};
    vst2q_s8(out + 2 * i, both); /* interleaves */
  }
  if (i < bytes) sim_products_scalar.unpack_pairs(pairs + i, low_first, out + 2 * i, bytes - i);
}

static void ready_ints(const int8_t *in, void *out, size_t count) { memcpy(out, in, count); }

static int32_t sum_ints(const int8_t *in, size_t count) {
  int32x4_t sums = vdupq_n_s32(0);
  size_t i = 0;
  for (; i + 16 <= count; i += 16) sums = vpadalq_s16(sums, vpaddlq_s8(vld1q_s8(in + i)));
  return vaddvq_s32(sums) + sim_products_scalar.sum_ints(in + i, count - i);
}

const sim_products sim_products_neon = {
    .name = "neon",
    .blocks_from = 4,
    .f16 = f16,
    .i8 = i8_plain,
    .int_bytes = sizeof(int8_t),
    .ready_ints = ready_ints,
    .sum_ints = sum_ints,
    .halves_to_floats = halves_to_floats,
    .ints_to_halves = ints_to_halves,
    .unpack_pairs = unpack_pairs,
};

const sim_products sim_products_neon_dotprod = {
    .name = "neon-dotprod",
    .blocks_from = 4,
    .f16 = f16,
    .i8 = i8_dotprod,
    .int_bytes = sizeof(int8_t),
    .ready_ints = ready_ints,
    .sum_ints = sum_ints,
    .halves_to_floats = halves_to_floats,
    .ints_to_halves = ints_to_halves,
    .unpack_pairs = unpack_pairs,
};

#else
typedef int sim_products_neon_is_for_aarch64; /* C asks for something in every file */
#endif
