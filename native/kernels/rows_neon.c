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

static void f32_to_i8(const float *src, int8_t *dst, int64_t n, float scale) {
  const float32x4_t divisor = vdupq_n_f32(scale), low = vdupq_n_f32(-127.0f), high = vdupq_n_f32(127.0f);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const float32x4_t x = vminq_f32(vmaxq_f32(vdivq_f32(vld1q_f32(src + i), divisor), low), high);
    const float32x4_t y = vminq_f32(vmaxq_f32(vdivq_f32(vld1q_f32(src + i + 4), divisor), low), high);
    const int16x8_t words = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(x)), vqmovn_s32(vcvtnq_s32_f32(y)));
    vst1_s8(dst + i, vqmovn_s16(words));
  }
  npumm_rows_scalar.f32_to_i8(src + i, dst + i, n - i, scale);
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

const npumm_row_kernels npumm_rows_neon = {"neon", f32_to_f16, f32_to_i8, absmax};
#else
typedef int npumm_rows_neon_is_empty_here;
#endif
