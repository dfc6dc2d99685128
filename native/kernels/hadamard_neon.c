/* The Hadamard transform's inner loops for aarch64; tails go through the scalar reference. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "hadamard.h"

static void scale(const float *src, const float *factor, float *dst, int64_t n) {
  int64_t i = 0;
  for (; factor && i + 4 <= n; i += 4) vst1q_f32(dst + i, vmulq_f32(vld1q_f32(src + i), vld1q_f32(factor + i)));
  npumm_hadamard_scalar.scale(src + i, factor ? factor + i : factor, dst + i, n - i);
}

static void divide(const float *src, const float *divisor, float *dst, int64_t n) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(dst + i, vdivq_f32(vld1q_f32(src + i), vld1q_f32(divisor + i)));
  npumm_hadamard_scalar.divide(src + i, divisor + i, dst + i, n - i);
}

static float32x4_t negated(float32x4_t x, uint32x4_t signs) {
  return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), signs));
}

/* Two stages, to touch memory half as often, at x and, with `places` 2, `apart` behind it: cores that execute
 * instructions in their order would wait for one alone. */
static inline void two_stages(const int places, float *x, int64_t apart, int64_t half) {
  float32x4_t a[2], b[2], c[2], d[2];
  for (int p = 0; p < places; p++) {
    float *at = x + p * apart;
    a[p] = vld1q_f32(at), b[p] = vld1q_f32(at + half);
    c[p] = vld1q_f32(at + 2 * half), d[p] = vld1q_f32(at + 3 * half);
  }
  for (int p = 0; p < places; p++) {
    const float32x4_t ab = vaddq_f32(a[p], b[p]), a_b = vsubq_f32(a[p], b[p]);
    const float32x4_t cd = vaddq_f32(c[p], d[p]), c_d = vsubq_f32(c[p], d[p]);
    a[p] = vaddq_f32(ab, cd), b[p] = vaddq_f32(a_b, c_d);
    c[p] = vsubq_f32(ab, cd), d[p] = vsubq_f32(a_b, c_d);
  }
  for (int p = 0; p < places; p++) {
    float *at = x + p * apart;
    vst1q_f32(at, a[p]), vst1q_f32(at + half, b[p]);
    vst1q_f32(at + 2 * half, c[p]), vst1q_f32(at + 3 * half, d[p]);
  }
}

static void stages_above_4(float *x, int64_t n) {
  int64_t half = 4;
  if (n == 16) {
    two_stages(1, x, 0, half);
    half *= 4;
  } else if (n > 16) {
    for (int64_t start = 0; start < n; start += 32) two_stages(2, x + start, 16, half);
    half *= 4;
  }
  for (; 2 * half < n; half *= 4) {
    for (int64_t start = 0; start < n; start += 4 * half) {
      for (int64_t i = start; i < start + half; i += 8) two_stages(2, x + i, 4, half);
    }
  }
  for (int64_t i = 0; half < n && i < half; i += 4) {
    const float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(x + i + half);
    vst1q_f32(x + i, vaddq_f32(a, b));
    vst1q_f32(x + i + half, vsubq_f32(a, b));
  }
}

/* The two stages within each four: the upper of each pair is negated, the pair swapped, and both are added. */
static inline float32x4_t within_4(float32x4_t v, int64_t block, uint32x4_t odd, uint32x4_t pair) {
  v = vaddq_f32(vrev64q_f32(v), negated(v, odd));
  return block > 2 ? vaddq_f32(vextq_f32(v, v, 2), negated(v, pair)) : v;
}

static void power(float *x, int64_t n, int64_t block) {
  static const uint32_t odd_signs[4] = {0, 0x80000000u, 0, 0x80000000u};
  static const uint32_t pair_signs[4] = {0, 0, 0x80000000u, 0x80000000u};
  const uint32x4_t odd = vld1q_u32(odd_signs), pair = vld1q_u32(pair_signs);
  if (block < 2) return;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    float32x4_t v[4];
    for (int j = 0; j < 4; j++) v[j] = vld1q_f32(x + i + 4 * j);
    for (int j = 0; j < 4; j++) v[j] = within_4(v[j], block, odd, pair);
    for (int j = 0; j < 4; j++) vst1q_f32(x + i + 4 * j, v[j]);
  }
  for (; i + 4 <= n; i += 4) vst1q_f32(x + i, within_4(vld1q_f32(x + i), block, odd, pair));
  if (i < n) npumm_hadamard_scalar.power(x + i, n - i, block); /* small blocks alone leave a rest */
  for (int64_t start = 0; block > 4 && start < n; start += block) stages_above_4(x + start, block);
}

/* Products with 1 and -1 are exact, so fusing changes no bit. Four rows at a time: a sum waits for the one before it. */
static void dense(const float *matrix, int64_t order, const float (*in)[NPUMM_LANES], float (*out)[NPUMM_LANES]) {
  int64_t i = 0;
  for (; i + 4 <= order; i += 4) {
    const float *m0 = matrix + i * order, *m1 = m0 + order, *m2 = m1 + order, *m3 = m2 + order;
    float32x4_t a0 = vdupq_n_f32(0.0f), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
    for (int64_t j = 0; j < order; j++) {
      const float32x4_t low = vld1q_f32(in[j]), high = vld1q_f32(in[j] + 4);
      a0 = vfmaq_n_f32(a0, low, m0[j]), b0 = vfmaq_n_f32(b0, high, m0[j]);
      a1 = vfmaq_n_f32(a1, low, m1[j]), b1 = vfmaq_n_f32(b1, high, m1[j]);
      a2 = vfmaq_n_f32(a2, low, m2[j]), b2 = vfmaq_n_f32(b2, high, m2[j]);
      a3 = vfmaq_n_f32(a3, low, m3[j]), b3 = vfmaq_n_f32(b3, high, m3[j]);
    }
    vst1q_f32(out[i], a0), vst1q_f32(out[i] + 4, b0);
    vst1q_f32(out[i + 1], a1), vst1q_f32(out[i + 1] + 4, b1);
    vst1q_f32(out[i + 2], a2), vst1q_f32(out[i + 2] + 4, b2);
    vst1q_f32(out[i + 3], a3), vst1q_f32(out[i + 3] + 4, b3);
  }
  for (; i < order; i++) {
    const float *m = matrix + i * order;
    float32x4_t low = vdupq_n_f32(0.0f), high = low;
    for (int64_t j = 0; j < order; j++) {
      low = vfmaq_n_f32(low, vld1q_f32(in[j]), m[j]);
      high = vfmaq_n_f32(high, vld1q_f32(in[j] + 4), m[j]);
    }
    vst1q_f32(out[i], low);
    vst1q_f32(out[i] + 4, high);
  }
}

const npumm_hadamard_kernels npumm_hadamard_neon = {scale, divide, power, dense};
#else
typedef int npumm_hadamard_neon_is_empty_here;
#endif
