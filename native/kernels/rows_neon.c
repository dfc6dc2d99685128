/* Row kernels for aarch64 (NEON is part of the base architecture); tails go through the scalar reference. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "rows.h"
#include "transpose.h"

/*
 * Loops take several vectors at once, all loaded before the first is stored: cores that execute instructions in their
 * order (Cortex-A53, A55) would wait for every step of one.
 */

enum { WHOLE, HIGH, LOW }; /* f32_to_f16, f32_to_f16_high, f32_to_f16_low */

static inline float32x4_t what_is_left(float32x4_t x, float32x4_t high) {
  return vbslq_f32(vcaleq_f32(high, vdupq_n_f32(65504.0f)), vsubq_f32(x, high), high);
}

static inline uint16x8_t halves_of(const int part, float32x4_t x, float32x4_t y) {
  const float16x8_t both = vcvt_high_f16_f32(vcvt_f16_f32(x), y);
  const uint16x8_t half = vreinterpretq_u16_f16(both);
  if (part == HIGH) {
    const uint16x8_t magnitude_mask = vdupq_n_u16(0x7fff), one = vdupq_n_u16(0x3c00);
    const uint16x8_t wild = vcgtq_u16(vandq_u16(half, magnitude_mask), vdupq_n_u16(0x7bff));
    return vbslq_u16(wild, vorrq_u16(vbicq_u16(half, magnitude_mask), one), half);
  }
  if (part == LOW) {
    const float32x4_t low = what_is_left(x, vcvt_f32_f16(vget_low_f16(both)));
    return vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(low), what_is_left(y, vcvt_high_f32_f16(both))));
  }
  return half;
}

static inline void to_halves(const int part, const int count, const float *src, uint16_t *dst, float scale) {
  float32x4_t x[8];
  uint16x8_t halves[4];
  for (int v = 0; v < count; v++) x[v] = vmulq_n_f32(vld1q_f32(src + 4 * v), scale);
  for (int v = 0; v < count / 2; v++) halves[v] = halves_of(part, x[2 * v], x[2 * v + 1]);
  for (int v = 0; v < count / 2; v++) vst1q_u16(dst + 8 * v, halves[v]);
}

/* Returns how many of the values are done. */
static inline int64_t all_to_halves(const int part, const float *src, uint16_t *dst, int64_t n, float scale) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) to_halves(part, 8, src + i, dst + i, scale);
  for (; i + 8 <= n; i += 8) to_halves(part, 2, src + i, dst + i, scale);
  return i;
}

static void f32_to_f16(const float *src, uint16_t *dst, int64_t n, float scale) {
  const int64_t i = all_to_halves(WHOLE, src, dst, n, scale);
  npumm_rows_scalar.f32_to_f16(src + i, dst + i, n - i, scale);
}

static void f32_to_f16_high(const float *src, uint16_t *dst, int64_t n, float scale) {
  const int64_t i = all_to_halves(HIGH, src, dst, n, scale);
  npumm_rows_scalar.f32_to_f16_high(src + i, dst + i, n - i, scale);
}

static void f32_to_f16_low(const float *src, uint16_t *dst, int64_t n, float scale) {
  const int64_t i = all_to_halves(LOW, src, dst, n, scale);
  npumm_rows_scalar.f32_to_f16_low(src + i, dst + i, n - i, scale);
}

typedef struct {
  float32x4_t scale, reciprocal, low, high;
  int32x4_t zero;
} steps;

static inline steps steps_of(const npumm_quantizer *how) {
  const steps result = {vdupq_n_f32(how->scale), vdupq_n_f32(1.0f / how->scale), vdupq_n_f32(how->low),
                        vdupq_n_f32(how->high), vdupq_n_s32(how->zero)};
  return result;
}

static inline steps steps_at(const npumm_quantizers *how, int64_t i) {
  const steps result = {vld1q_f32(how->scale + i), vld1q_f32(how->reciprocal + i), vld1q_f32(how->low + i),
                        vld1q_f32(how->high + i), vld1q_s32(how->zero + i)};
  return result;
}

/* Clamped before rounding: the same result, and no int overflow. maxnm gives the other operand for a nan. */
static inline float32x4_t clamped(float32x4_t quotient, const steps *s) {
  return vminq_f32(vmaxnmq_f32(quotient, s->low), s->high);
}

static inline void store_bytes(int8_t *dst, const int32x4_t *whole) {
  const int16x8_t first = vcombine_s16(vqmovn_s32(whole[0]), vqmovn_s32(whole[1]));
  const int16x8_t second = vcombine_s16(vqmovn_s32(whole[2]), vqmovn_s32(whole[3]));
  vst1q_s8(dst, vcombine_s8(vqmovn_s16(first), vqmovn_s16(second)));
}

/* `count` vectors; of[0] serves all of them, or each has its own. Returns whether all values are finite. */
static inline int quantize_vectors(const int count, const float *src, int8_t *dst, const steps *of, const int each,
                                   const int usual) {
  const float32x4_t limit = vdupq_n_f32(3.402823466e+38f);
  int32x4_t whole[8];
  if (usual) {
    float32x4_t off[2] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
    uint32x4_t largest[2] = {vdupq_n_u32(0), vdupq_n_u32(0)};
    for (int v = 0; v < count; v++) {
      const steps *s = &of[each * v];
      const float32x4_t x = vld1q_f32(src + 4 * v);
      largest[v % 2] = vmaxq_u32(largest[v % 2], vreinterpretq_u32_f32(vabsq_f32(x)));
      const float32x4_t q = clamped(vmulq_f32(x, s->reciprocal), s);
      const int32x4_t rounded = vcvtnq_s32_f32(q);
      off[v % 2] = vmaxq_f32(off[v % 2], vabdq_f32(q, vcvtq_f32_s32(rounded)));
      whole[v] = vaddq_s32(rounded, s->zero);
    }
    const uint32x4_t sure = vcleq_f32(vmaxq_f32(off[0], off[1]), vdupq_n_f32(NPUMM_SURE));
    const uint32x4_t is_finite = vcltq_u32(vmaxq_u32(largest[0], largest[1]), vdupq_n_u32(0x7f800000u));
    if (vminvq_u32(vandq_u32(sure, is_finite)) != 0) {
      for (int v = 0; v < count; v += 4) store_bytes(dst + 4 * v, whole + v);
      return 1;
    }
  }
  uint32x4_t all_finite = vdupq_n_u32(0xffffffffu);
  for (int v = 0; v < count; v++) {
    const steps *s = &of[each * v];
    const float32x4_t x = vld1q_f32(src + 4 * v);
    const uint32x4_t is_finite = vcaleq_f32(x, limit);
    all_finite = vandq_u32(all_finite, is_finite);
    const float32x4_t q = vbslq_f32(is_finite, clamped(vdivq_f32(x, s->scale), s), s->low);
    whole[v] = vaddq_s32(vcvtnq_s32_f32(q), s->zero);
  }
  for (int v = 0; v < count; v += 4) store_bytes(dst + 4 * v, whole + v);
  return vminvq_u32(all_finite) != 0;
}

/* What a row's codes have in common: clamped as bytes, after narrowing with saturation. */
typedef struct {
  float32x4_t reciprocal;
  int16x8_t zero;
  int8x16_t low, high;
} codes;

/*
 * 32 values of a row, as long as all of them are sure. Whatever is no integer of 32 bits, an inf or nan, is far from what
 * it is rounded to; as bits, so that nans are largest. Returns whether that was done.
 */
static inline int quantize_32_surely(const float *src, int8_t *dst, const codes *of) {
  int32x4_t whole[8];
  uint32x4_t off[2] = {vdupq_n_u32(0), vdupq_n_u32(0)};
  for (int v = 0; v < 8; v++) {
    const float32x4_t q = vmulq_f32(vld1q_f32(src + 4 * v), of->reciprocal);
    whole[v] = vcvtnq_s32_f32(q);
    const float32x4_t by = vabdq_f32(q, vcvtq_f32_s32(whole[v]));
    off[v % 2] = vmaxq_u32(off[v % 2], vreinterpretq_u32_f32(by));
  }
  const uint32x4_t sure = vreinterpretq_u32_f32(vdupq_n_f32(NPUMM_SURE));
  if (vmaxvq_u32(vcgtq_u32(vmaxq_u32(off[0], off[1]), sure)) != 0) return 0;
  for (int v = 0; v < 8; v += 4) {
    const int16x8_t first = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(whole[v]), whole[v + 1]), of->zero);
    const int16x8_t second = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(whole[v + 2]), whole[v + 3]), of->zero);
    const int8x16_t bytes = vqmovn_high_s16(vqmovn_s16(first), second);
    vst1q_s8(dst + 4 * v, vminq_s8(vmaxq_s8(bytes, of->low), of->high));
  }
  return 1;
}

static int quantize(const float *src, int8_t *dst, int64_t n, const npumm_quantizer *how) {
  const steps all = steps_of(how);
  const codes row = {all.reciprocal, vdupq_n_s16((int16_t)how->zero),
                     vdupq_n_s8((int8_t)((int32_t)how->low + how->zero)),
                     vdupq_n_s8((int8_t)((int32_t)how->high + how->zero))};
  const int usual = npumm_is_usual_scale(how->scale);
  int finite = 1;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    if (!usual || !quantize_32_surely(src + i, dst + i, &row)) {
      finite &= quantize_vectors(8, src + i, dst + i, &all, 0, 0);
    }
  }
  if (i + 16 <= n) {
    finite &= quantize_vectors(4, src + i, dst + i, &all, 0, usual);
    i += 16;
  }
  return npumm_rows_scalar.quantize(src + i, dst + i, n - i, how) && finite;
}

static int quantize_columns(const float *src, int8_t *dst, int64_t n, const npumm_quantizers *how) {
  int finite = 1;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const steps own[4] = {steps_at(how, i), steps_at(how, i + 4), steps_at(how, i + 8), steps_at(how, i + 12)};
    finite &= quantize_vectors(4, src + i, dst + i, own, 1, how->usual);
  }
  const npumm_quantizers rest = {how->scale + i, how->reciprocal + i, how->low + i, how->high + i,
                                 how->zero + i,  how->usual,          how->alike};
  return npumm_rows_scalar.quantize_columns(src + i, dst + i, n - i, &rest) && finite;
}

static void absmax_columns(const float *src, int64_t n, uint32_t *largest) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const uint32x4_t bits = vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(src + i)));
    vst1q_u32(largest + i, vmaxq_u32(vld1q_u32(largest + i), bits));
  }
  npumm_rows_scalar.absmax_columns(src + i, n - i, largest + i);
}

/* One of each pair goes into the other one's byte with a shift: the low nibbles of both, or the high ones of both plus 8. */
static inline void join(const int count, const int8_t *src, uint8_t *dst, const int high, const int high_first) {
  uint8x16x2_t x[4];
  uint8x16_t joined[4];
  for (int v = 0; v < count; v++) x[v] = vld2q_u8((const uint8_t *)src + 32 * v);
  for (int v = 0; v < count; v++) {
    const uint8x16_t bias = vdupq_n_u8(high ? 8 : 0);
    const uint8x16_t first = vaddq_u8(x[v].val[high_first], bias), second = vaddq_u8(x[v].val[!high_first], bias);
    joined[v] = high ? vsriq_n_u8(second, first, 4) : vsliq_n_u8(first, second, 4);
  }
  for (int v = 0; v < count; v++) vst1q_u8(dst + 16 * v, joined[v]);
}

/* Returns how many of the values are done. */
static inline int64_t all_pairs(const int8_t *src, uint8_t *dst, int64_t n, const int high, const int high_first) {
  int64_t i = 0;
  for (; i + 128 <= n; i += 128) join(4, src + i, dst + i / 2, high, high_first);
  for (; i + 32 <= n; i += 32) join(1, src + i, dst + i / 2, high, high_first);
  return i;
}

static void pairs(const int8_t *src, uint8_t *dst, int64_t n, int high, int high_first) {
  int64_t i;
  if (high) i = high_first ? all_pairs(src, dst, n, 1, 1) : all_pairs(src, dst, n, 1, 0);
  else i = high_first ? all_pairs(src, dst, n, 0, 1) : all_pairs(src, dst, n, 0, 0);
  npumm_rows_scalar.pairs(src + i, dst + i / 2, n - i, high, high_first);
}

static void pair_columns(const int8_t *even, const int8_t *odd, uint8_t *dst, int64_t n, int high, int high_first) {
  const uint8_t *lower = (const uint8_t *)(high_first ? odd : even),
                *upper = (const uint8_t *)(high_first ? even : odd);
  const uint8x16_t bias = vdupq_n_u8(8);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const uint8x16_t a = vld1q_u8(lower + i), b = vld1q_u8(lower + i + 16);
    const uint8x16_t c = vld1q_u8(upper + i), d = vld1q_u8(upper + i + 16);
    if (high) {
      vst1q_u8(dst + i, vsriq_n_u8(vaddq_u8(c, bias), vaddq_u8(a, bias), 4));
      vst1q_u8(dst + i + 16, vsriq_n_u8(vaddq_u8(d, bias), vaddq_u8(b, bias), 4));
    } else {
      vst1q_u8(dst + i, vsliq_n_u8(a, c, 4));
      vst1q_u8(dst + i + 16, vsliq_n_u8(b, d, 4));
    }
  }
  npumm_rows_scalar.pair_columns(even + i, odd + i, dst + i, n - i, high, high_first);
}

static int32_t sum(const int8_t *src, int64_t n) {
  int32x4_t totals[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int v = 0; v < 4; v++) totals[v] = vpadalq_s16(totals[v], vpaddlq_s8(vld1q_s8(src + i + 16 * v)));
  }
  for (; i + 16 <= n; i += 16) totals[0] = vpadalq_s16(totals[0], vpaddlq_s8(vld1q_s8(src + i)));
  const int32x4_t total = vaddq_s32(vaddq_s32(totals[0], totals[1]), vaddq_s32(totals[2], totals[3]));
  return (int32_t)((uint32_t)vaddvq_s32(total) + (uint32_t)npumm_rows_scalar.sum(src + i, n - i));
}

/* As bits, which are in the order of magnitudes: infs and nans above all others. */
static inline uint32x4_t magnitudes(const float *src) { return vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(src))); }

static float absmax(const float *src, int64_t n, int *finite) {
  uint32x4_t most[4] = {vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(0)};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    uint32x4_t x[8];
    for (int v = 0; v < 8; v++) x[v] = magnitudes(src + i + 4 * v);
    for (int v = 0; v < 8; v++) most[v % 4] = vmaxq_u32(most[v % 4], x[v]);
  }
  for (; i + 4 <= n; i += 4) most[0] = vmaxq_u32(most[0], magnitudes(src + i));
  const uint32x4_t all = vmaxq_u32(vmaxq_u32(most[0], most[1]), vmaxq_u32(most[2], most[3]));
  if (vmaxvq_u32(all) >= 0x7f800000u) return npumm_rows_scalar.absmax(src, n, finite); /* passes over infs and nans */
  const float largest = vmaxvq_f32(vreinterpretq_f32_u32(all));
  const float rest = npumm_rows_scalar.absmax(src + i, n - i, finite);
  return rest > largest ? rest : largest;
}

static void minmax(const float *src, int64_t n, float range[2], int *finite) {
  float32x4_t least[4], most[4];
  uint32x4_t largest[4];
  for (int v = 0; v < 4; v++) {
    least[v] = vdupq_n_f32(range[0]), most[v] = vdupq_n_f32(range[1]);
    largest[v] = vdupq_n_u32(0);
  }
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int v = 0; v < 4; v++) {
      const float32x4_t x = vld1q_f32(src + i + 4 * v);
      largest[v] = vmaxq_u32(largest[v], vreinterpretq_u32_f32(vabsq_f32(x)));
      least[v] = vminq_f32(least[v], x);
      most[v] = vmaxq_f32(most[v], x);
    }
  }
  if (vmaxvq_u32(vmaxq_u32(vmaxq_u32(largest[0], largest[1]), vmaxq_u32(largest[2], largest[3]))) >= 0x7f800000u) {
    npumm_rows_scalar.minmax(src, n, range, finite); /* passes over infs and nans */
    return;
  }
  range[0] = vminvq_f32(vminq_f32(vminq_f32(least[0], least[1]), vminq_f32(least[2], least[3])));
  range[1] = vmaxvq_f32(vmaxq_f32(vmaxq_f32(most[0], most[1]), vmaxq_f32(most[2], most[3])));
  npumm_rows_scalar.minmax(src + i, n - i, range, finite);
}

const npumm_row_kernels npumm_rows_neon = {"neon",
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
                                           npumm_transpose,
                                           npumm_pieces_neon};
#else
typedef int npumm_rows_neon_is_empty_here;
#endif
