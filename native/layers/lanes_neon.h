/* Vectors of 4 floats, for 64-bit ARM; what each function does stands in lanes_scalar.h. */
#ifndef NPUMATMUL_LANES_NEON_H
#define NPUMATMUL_LANES_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define LANES_TARGET
#define LANES static inline

typedef float32x4_t vec;
typedef uint32x4_t ivec;
enum { WIDTH = 4, GROUP = 4 };

LANES vec vec_load(const float *at) { return vld1q_f32(at); }
LANES void vec_store(float *at, vec x) { vst1q_f32(at, x); }
LANES vec vec_all(float x) { return vdupq_n_f32(x); }
LANES vec vec_add(vec a, vec b) { return vaddq_f32(a, b); }
LANES vec vec_sub(vec a, vec b) { return vsubq_f32(a, b); }
LANES vec vec_mul(vec a, vec b) { return vmulq_f32(a, b); }
LANES vec vec_div(vec a, vec b) { return vdivq_f32(a, b); }
LANES vec vec_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
LANES vec vec_max(vec a, vec b) { return vmaxq_f32(a, b); } /* a nan where either is one */
LANES vec vec_min(vec a, vec b) { return vminq_f32(a, b); }
LANES ivec vec_bits(vec x) { return vreinterpretq_u32_f32(x); }
LANES vec vec_of_bits(ivec bits) { return vreinterpretq_f32_u32(bits); }
LANES ivec ivec_all(uint32_t x) { return vdupq_n_u32(x); }
LANES ivec ivec_add(ivec a, ivec b) { return vaddq_u32(a, b); }
LANES ivec ivec_sub(ivec a, ivec b) { return vsubq_u32(a, b); }
LANES ivec ivec_and(ivec a, ivec b) { return vandq_u32(a, b); }
LANES ivec ivec_or(ivec a, ivec b) { return vorrq_u32(a, b); }
LANES ivec ivec_half(ivec a) { return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a), 1)); }
LANES ivec ivec_exponent(ivec a) { return vshlq_n_u32(a, 23); }

LANES vec vec_of_halves(const uint16_t *at) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at))); }
LANES vec vec_of_codes(const int8_t *at) {
  int32_t four;
  memcpy(&four, at, sizeof four);
  const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}

LANES vec vec_fold(vec rows[1][4]) {
  return vaddq_f32(vaddq_f32(rows[0][0], rows[0][2]), vaddq_f32(rows[0][1], rows[0][3]));
}

LANES vec vec_join(vec a, vec b, vec c, vec d) { return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)); }

LANES float vec_sum(const vec *row) {
  vec x = vaddq_f32(vaddq_f32(row[0], row[2]), vaddq_f32(row[1], row[3]));
  x = vpaddq_f32(x, x);
  return vgetq_lane_f32(vpaddq_f32(x, x), 0);
}

LANES float vec_most(const vec *row) { return vmaxvq_f32(vec_max(vec_max(row[0], row[1]), vec_max(row[2], row[3]))); }

#endif
