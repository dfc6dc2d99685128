/* Row kernels for aarch64 (NEON is part of the base architecture); tails go through the scalar reference. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "rows.h"
#include "transpose.h"

static void f32_to_f16(const float *src, uint16_t *dst, int64_t n, float scale) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const float16x4_t half = vcvt_f16_f32(vmulq_n_f32(vld1q_f32(src + i), scale));
    vst1_u16(dst + i, vreinterpret_u16_f16(half));
  }
  npumm_rows_scalar.f32_to_f16(src + i, dst + i, n - i, scale);
}

static void f32_to_f16_high(const float *src, uint16_t *dst, int64_t n, float scale) {
  const uint16x4_t magnitude_mask = vdup_n_u16(0x7fff), limit = vdup_n_u16(0x7bff), one = vdup_n_u16(0x3c00);
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const uint16x4_t half = vreinterpret_u16_f16(vcvt_f16_f32(vmulq_n_f32(vld1q_f32(src + i), scale)));
    const uint16x4_t wild = vcgt_u16(vand_u16(half, magnitude_mask), limit);
    vst1_u16(dst + i, vbsl_u16(wild, vorr_u16(vbic_u16(half, magnitude_mask), one), half));
  }
  npumm_rows_scalar.f32_to_f16_high(src + i, dst + i, n - i, scale);
}

static void f32_to_f16_low(const float *src, uint16_t *dst, int64_t n, float scale) {
  const float32x4_t limit = vdupq_n_f32(65504.0f);
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const float32x4_t x = vmulq_n_f32(vld1q_f32(src + i), scale);
    const float32x4_t high = vcvt_f32_f16(vcvt_f16_f32(x));
    const float32x4_t low = vbslq_f32(vcaleq_f32(high, limit), vsubq_f32(x, high), high);
    vst1_u16(dst + i, vreinterpret_u16_f16(vcvt_f16_f32(low)));
  }
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

/* 16 values; steps[0] serves all of them, or each four have their own. Returns whether all are finite. */
static inline int quantize_16(const float *src, int8_t *dst, const steps *of, const int each, const int usual) {
  const float32x4_t limit = vdupq_n_f32(3.402823466e+38f);
  int32x4_t whole[4];
  if (usual) {
    float32x4_t off = vdupq_n_f32(0.0f);
    uint32x4_t largest = vdupq_n_u32(0);
    for (int v = 0; v < 4; v++) {
      const steps *s = &of[each * v];
      const float32x4_t x = vld1q_f32(src + 4 * v);
      largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(x)));
      const float32x4_t q = clamped(vmulq_f32(x, s->reciprocal), s);
      const int32x4_t rounded = vcvtnq_s32_f32(q);
      off = vmaxq_f32(off, vabdq_f32(q, vcvtq_f32_s32(rounded)));
      whole[v] = vaddq_s32(rounded, s->zero);
    }
    if (vmaxvq_f32(off) <= NPUMM_SURE && vmaxvq_u32(largest) < 0x7f800000u) {
      store_bytes(dst, whole);
      return 1;
    }
  }
  uint32x4_t all_finite = vdupq_n_u32(0xffffffffu);
  for (int v = 0; v < 4; v++) {
    const steps *s = &of[each * v];
    const float32x4_t x = vld1q_f32(src + 4 * v);
    const uint32x4_t is_finite = vcaleq_f32(x, limit);
    all_finite = vandq_u32(all_finite, is_finite);
    const float32x4_t q = vbslq_f32(is_finite, clamped(vdivq_f32(x, s->scale), s), s->low);
    whole[v] = vaddq_s32(vcvtnq_s32_f32(q), s->zero);
  }
  store_bytes(dst, whole);
  return vminvq_u32(all_finite) != 0;
}

static int quantize(const float *src, int8_t *dst, int64_t n, const npumm_quantizer *how) {
  const steps all = steps_of(how);
  const int usual = npumm_is_usual_scale(how->scale);
  int finite = 1;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) finite &= quantize_16(src + i, dst + i, &all, 0, usual);
  return npumm_rows_scalar.quantize(src + i, dst + i, n - i, how) && finite;
}

static int quantize_columns(const float *src, int8_t *dst, int64_t n, const npumm_quantizers *how) {
  int finite = 1;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const steps own[4] = {steps_at(how, i), steps_at(how, i + 4), steps_at(how, i + 8), steps_at(how, i + 12)};
    finite &= quantize_16(src + i, dst + i, own, 1, how->usual);
  }
  const npumm_quantizers rest = {how->scale + i, how->reciprocal + i, how->low + i,
                                 how->high + i,  how->zero + i,       how->usual};
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

static void pairs(const int8_t *src, uint8_t *dst, int64_t n, int high, int high_first) {
  const uint8x16_t bias = vdupq_n_u8(high ? 8 : 0), nibble = vdupq_n_u8(0x0f);
  const int8x16_t shift = vdupq_n_s8(high ? -4 : 0);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const int8x16x2_t both = vld2q_s8(src + i);
    const uint8x16_t even = vshlq_u8(vaddq_u8(vreinterpretq_u8_s8(both.val[0]), bias), shift);
    const uint8x16_t odd = vshlq_u8(vaddq_u8(vreinterpretq_u8_s8(both.val[1]), bias), shift);
    const uint8x16_t low_first = vorrq_u8(vandq_u8(even, nibble), vshlq_n_u8(odd, 4));
    vst1q_u8(dst + i / 2, high_first ? vorrq_u8(vandq_u8(odd, nibble), vshlq_n_u8(even, 4)) : low_first);
  }
  npumm_rows_scalar.pairs(src + i, dst + i / 2, n - i, high, high_first);
}

static int32_t sum(const int8_t *src, int64_t n) {
  int32x4_t total = vdupq_n_s32(0);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) total = vpadalq_s16(total, vpaddlq_s8(vld1q_s8(src + i)));
  return (int32_t)((uint32_t)vaddvq_s32(total) + (uint32_t)npumm_rows_scalar.sum(src + i, n - i));
}

/* As bits, which are in the order of magnitudes: infs and nans above all others. */
static float absmax(const float *src, int64_t n, int *finite) {
  uint32x4_t most[4] = {vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(0)};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int v = 0; v < 4; v++) {
      most[v] = vmaxq_u32(most[v], vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(src + i + 4 * v))));
    }
  }
  const uint32x4_t all = vmaxq_u32(vmaxq_u32(most[0], most[1]), vmaxq_u32(most[2], most[3]));
  if (vmaxvq_u32(all) >= 0x7f800000u) return npumm_rows_scalar.absmax(src, n, finite); /* passes over infs and nans */
  const float largest = vmaxvq_f32(vreinterpretq_f32_u32(all));
  const float rest = npumm_rows_scalar.absmax(src + i, n - i, finite);
  return rest > largest ? rest : largest;
}

static void minmax(const float *src, int64_t n, float range[2], int *finite) {
  const float32x4_t limit = vdupq_n_f32(3.402823466e+38f);
  float32x4_t least = vdupq_n_f32(range[0]), largest = vdupq_n_f32(range[1]);
  uint32x4_t all_finite = vdupq_n_u32(0xffffffffu);
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const float32x4_t x = vld1q_f32(src + i);
    const uint32x4_t is_finite = vcaleq_f32(x, limit);
    all_finite = vandq_u32(all_finite, is_finite);
    least = vminq_f32(least, vbslq_f32(is_finite, x, least));
    largest = vmaxq_f32(largest, vbslq_f32(is_finite, x, largest));
  }
  if (vminvq_u32(all_finite) == 0) *finite = 0;
  range[0] = vminvq_f32(least);
  range[1] = vmaxvq_f32(largest);
  npumm_rows_scalar.minmax(src + i, n - i, range, finite);
}

const npumm_row_kernels npumm_rows_neon = {
    "neon", f32_to_f16, f32_to_f16_high, f32_to_f16_low, quantize,        quantize_columns, pairs,
    sum,    absmax,     minmax,          absmax_columns, npumm_transpose, npumm_pieces_base};
#else
typedef int npumm_rows_neon_is_empty_here;
#endif
