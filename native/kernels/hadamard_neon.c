/* The Hadamard transform's inner loops for aarch64; tails go through the scalar reference. */
#if defined(__aarch64__)
#include <arm_neon.h>

#define INLINE static inline

typedef float32x4_t vector;
enum { WIDTH = 4 };

INLINE vector load(const float *from) { return vld1q_f32(from); }
INLINE void store(float *to, vector v) { vst1q_f32(to, v); }
INLINE vector plus(vector a, vector b) { return vaddq_f32(a, b); }
INLINE vector minus(vector a, vector b) { return vsubq_f32(a, b); }
INLINE vector minus_both(vector a, vector b) { return vsubq_f32(vnegq_f32(a), b); }
INLINE vector negated(vector a) { return vnegq_f32(a); }

#include "hadamard_loops.h"

static void scale(const float *src, const float *factor, float *dst, int64_t n) {
  int64_t i = 0;
  for (; factor && i + 4 <= n; i += 4) vst1q_f32(dst + i, vmulq_f32(vld1q_f32(src + i), vld1q_f32(factor + i)));
  for (; i < n; i++) dst[i] = factor ? src[i] * factor[i] : src[i];
}

static void divide(const float *src, const float *divisor, float *dst, int64_t n) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(dst + i, vdivq_f32(vld1q_f32(src + i), vld1q_f32(divisor + i)));
  npumm_hadamard_scalar.divide(src + i, divisor + i, dst + i, n - i);
}

static float32x4_t with_signs(float32x4_t x, uint32x4_t signs) {
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
  v = vaddq_f32(vrev64q_f32(v), with_signs(v, odd));
  return block > 2 ? vaddq_f32(vextq_f32(v, v, 2), with_signs(v, pair)) : v;
}

static void power(const float *src, const float *factor, float *x, int64_t n, int64_t block) {
  static const uint32_t odd_signs[4] = {0, 0x80000000u, 0, 0x80000000u};
  static const uint32_t pair_signs[4] = {0, 0, 0x80000000u, 0x80000000u};
  const uint32x4_t odd = vld1q_u32(odd_signs), pair = vld1q_u32(pair_signs);
  if (factor || src != x) scale(src, factor, x, n);
  if (block < 2) return;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    float32x4_t v[4];
    for (int j = 0; j < 4; j++) v[j] = vld1q_f32(x + i + 4 * j);
    for (int j = 0; j < 4; j++) v[j] = within_4(v[j], block, odd, pair);
    for (int j = 0; j < 4; j++) vst1q_f32(x + i + 4 * j, v[j]);
  }
  for (; i + 4 <= n; i += 4) vst1q_f32(x + i, within_4(vld1q_f32(x + i), block, odd, pair));
  if (i < n) npumm_hadamard_scalar.power(x + i, NULL, x + i, n - i, block); /* small blocks alone leave a rest */
  for (int64_t start = 0; block > 4 && start < n; start += block) stages_above_4(x + start, block);
}

static void dense(const uint8_t *codes, int64_t order, float *x, int64_t stride) { any_order(codes, order, x, stride); }
static void known(int64_t order, float *x, int64_t stride) { any_known_order(order, x, stride); }

const npumm_hadamard_kernels npumm_hadamard_neon = {divide, power, dense, known};
#else
typedef int npumm_hadamard_neon_is_empty_here;
#endif
