/* Row kernels for aarch64 (NEON is part of the base architecture); tails go through the scalar reference. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "rows.h"

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

static int quantize(const float *src, int8_t *dst, int64_t n, const npumm_quantizer *how) {
  const float32x4_t divisor = vdupq_n_f32(how->scale), low = vdupq_n_f32(how->low), high = vdupq_n_f32(how->high);
  const float32x4_t limit = vdupq_n_f32(3.402823466e+38f);
  const int32x4_t zero = vdupq_n_s32(how->zero);
  uint32x4_t all_finite = vdupq_n_u32(0xffffffffu);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    float32x4_t x = vld1q_f32(src + i), y = vld1q_f32(src + i + 4);
    const uint32x4_t x_finite = vcaleq_f32(x, limit), y_finite = vcaleq_f32(y, limit);
    all_finite = vandq_u32(all_finite, vandq_u32(x_finite, y_finite));
    /* maxnm gives the other operand for a nan */
    x = vbslq_f32(x_finite, vminq_f32(vmaxnmq_f32(vdivq_f32(x, divisor), low), high), low);
    y = vbslq_f32(y_finite, vminq_f32(vmaxnmq_f32(vdivq_f32(y, divisor), low), high), low);
    const int16x8_t words =
        vcombine_s16(vqmovn_s32(vaddq_s32(vcvtnq_s32_f32(x), zero)), vqmovn_s32(vaddq_s32(vcvtnq_s32_f32(y), zero)));
    vst1_s8(dst + i, vqmovn_s16(words));
  }
  const int tail_finite = npumm_rows_scalar.quantize(src + i, dst + i, n - i, how);
  return vminvq_u32(all_finite) != 0 && tail_finite;
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

static float absmax(const float *src, int64_t n, int *finite) {
  const float32x4_t limit = vdupq_n_f32(3.402823466e+38f);
  float32x4_t largest = vdupq_n_f32(0.0f);
  uint32x4_t all_finite = vdupq_n_u32(0xffffffffu);
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const float32x4_t x = vabsq_f32(vld1q_f32(src + i));
    const uint32x4_t is_finite = vcleq_f32(x, limit);
    all_finite = vandq_u32(all_finite, is_finite);
    largest = vmaxq_f32(largest, vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), is_finite)));
  }
  if (vminvq_u32(all_finite) == 0) *finite = 0;
  const float tail = npumm_rows_scalar.absmax(src + i, n - i, finite);
  const float body = vmaxvq_f32(largest);
  return body > tail ? body : tail;
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

const npumm_row_kernels npumm_rows_neon = {"neon", f32_to_f16, f32_to_f16_high, f32_to_f16_low, quantize,
                                           pairs,  sum,        absmax,          minmax};
#else
typedef int npumm_rows_neon_is_empty_here;
#endif
