/* The Hadamard transform's inner loops for aarch64; tails go through the scalar reference. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include <stddef.h>

#include "hadamard.h"
#include "npumatmul_kernels.h"

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

/* The signed sums of four vectors, in the order of their codes. */
static inline void sums_of_four(const float *x, int64_t stride, float *sums) {
  for (int part = 0; part < NPUMM_LANES; part += 4) {
    const float32x4_t x0 = vld1q_f32(x + part), x1 = vld1q_f32(x + stride + part);
    const float32x4_t x2 = vld1q_f32(x + 2 * stride + part), x3 = vld1q_f32(x + 3 * stride + part);
    const float32x4_t first[2] = {vaddq_f32(x0, x1), vsubq_f32(x0, x1)};
    const float32x4_t second[2] = {vaddq_f32(x2, x3), vsubq_f32(x2, x3)};
#pragma GCC unroll 8
    for (int code = 0; code < 16; code += 2) {
      const float32x4_t a = first[code >> 1 & 1], b = second[(code >> 2 & 1) ^ (code >> 3 & 1)];
      const float32x4_t sum = code & 4 ? vsubq_f32(a, b) : vaddq_f32(a, b);
      vst1q_f32(sums + code * NPUMM_LANES + part, sum);
      vst1q_f32(sums + (15 - code) * NPUMM_LANES + part, vnegq_f32(sum));
    }
  }
}

/* Four rows: what is there of them already, if there is anything, and a sum of each of some fours. */
static inline void four_rows(const uint8_t *codes, int64_t next_row, int64_t fours, const float *sums,
                             const float *before, float *to, int64_t stride) {
  const uint8_t *end = codes + fours;
  float32x4_t v[4][4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const float *from = before ? before + i * NPUMM_LANES : sums + codes[i * next_row];
#pragma GCC unroll 4
    for (int part = 0; part < 4; part++) v[i][part] = vld1q_f32(from + 4 * part);
  }
  if (!before) codes++, sums += NPUMM_SUMS;
  for (; codes < end; codes++, sums += NPUMM_SUMS) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const float *sum = sums + codes[i * next_row];
#pragma GCC unroll 4
      for (int part = 0; part < 4; part++) v[i][part] = vaddq_f32(v[i][part], vld1q_f32(sum + 4 * part));
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
#pragma GCC unroll 4
    for (int part = 0; part < 4; part++) vst1q_f32(to + i * stride + 4 * part, v[i][part]);
  }
}

static void dense(const uint8_t *codes, int64_t order, float *x, int64_t stride) {
  /* a row more, for codes that are none */
  _Alignas(64) float sums[NPUMM_FOURS * NPUMM_SUMS + NPUMM_LANES], partial[NPUMM_HADAMARD_ORDER * NPUMM_LANES];
  const int64_t fours = order / 4;
  for (int64_t first = 0; first < fours; first += NPUMM_FOURS) {
    const int is_last = fours - first <= NPUMM_FOURS;
    const int64_t count = is_last ? fours - first : NPUMM_FOURS;
    for (int64_t f = 0; f < count; f++) sums_of_four(x + 4 * (first + f) * stride, stride, sums + f * NPUMM_SUMS);
    for (int64_t i = 0; i < order; i += 4) {
      float *here = partial + i * NPUMM_LANES;
      four_rows(codes + i * fours + first, fours, count, sums, first ? here : NULL, is_last ? x + i * stride : here,
                is_last ? stride : NPUMM_LANES);
    }
  }
}

const npumm_hadamard_kernels npumm_hadamard_neon = {scale, divide, power, dense};
#else
typedef int npumm_hadamard_neon_is_empty_here;
#endif
