/* The Hadamard transform's inner loops for x86-64 with AVX2; tails go through the scalar reference. */
#if defined(__x86_64__)
#include <immintrin.h>

#include <stddef.h>

#include "hadamard.h"
#include "npumatmul_kernels.h"

#define AVX2 __attribute__((target("avx2")))
#define FMA __attribute__((always_inline, target("avx2,fma"))) static inline

AVX2 static void scale(const float *src, const float *factor, float *dst, int64_t n) {
  int64_t i = 0;
  for (; factor && i + 8 <= n; i += 8) {
    _mm256_storeu_ps(dst + i, _mm256_mul_ps(_mm256_loadu_ps(src + i), _mm256_loadu_ps(factor + i)));
  }
  npumm_hadamard_scalar.scale(src + i, factor ? factor + i : factor, dst + i, n - i);
}

AVX2 static void divide(const float *src, const float *divisor, float *dst, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(dst + i, _mm256_div_ps(_mm256_loadu_ps(src + i), _mm256_loadu_ps(divisor + i)));
  }
  npumm_hadamard_scalar.divide(src + i, divisor + i, dst + i, n - i);
}

/* x0 + x1 and x0 - x1 of neighbours `apart`: fused with a factor of 1 or -1, which is exact, and so rounded once. */
FMA __m256 stage_of_1(__m256 x) {
  return _mm256_fmadd_ps(x, _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), _mm256_permute_ps(x, 0xb1));
}
FMA __m256 stage_of_2(__m256 x) {
  return _mm256_fmadd_ps(x, _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), _mm256_permute_ps(x, 0x4e));
}
FMA __m256 stage_of_4(__m256 x) {
  return _mm256_fmadd_ps(x, _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), _mm256_permute2f128_ps(x, x, 1));
}

/* The stages between `count` vectors. */
FMA void stages_between(__m256 *v, const int count) {
#pragma GCC unroll 3
  for (int half = 1; half < count; half *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
      if (i & half) continue;
      const __m256 a = v[i], b = v[i + half];
      v[i] = _mm256_add_ps(a, b);
      v[i + half] = _mm256_sub_ps(a, b);
    }
  }
}

/* The first stages, within and between `count` vectors that are neighbours. */
FMA void first_stages(float *x, int64_t n, const int count) {
  for (int64_t i = 0; i < n; i += 8 * count) {
    __m256 v[8];
#pragma GCC unroll 8
    for (int j = 0; j < count; j++) v[j] = stage_of_4(stage_of_2(stage_of_1(_mm256_loadu_ps(x + i + 8 * j))));
    stages_between(v, count);
#pragma GCC unroll 8
    for (int j = 0; j < count; j++) _mm256_storeu_ps(x + i + 8 * j, v[j]);
  }
}

/* The stages between `count` vectors that stand `apart` floats from each other. */
FMA void later_stages(float *x, int64_t n, int64_t apart, const int count) {
  for (int64_t start = 0; start < n; start += count * apart) {
    for (int64_t i = start; i < start + apart; i += 8) {
      __m256 v[8];
#pragma GCC unroll 8
      for (int j = 0; j < count; j++) v[j] = _mm256_loadu_ps(x + i + j * apart);
      stages_between(v, count);
#pragma GCC unroll 8
      for (int j = 0; j < count; j++) _mm256_storeu_ps(x + i + j * apart, v[j]);
    }
  }
}

/* Three stages at a time, to touch memory a third as often. */
__attribute__((target("avx2,fma"))) static void power(float *x, int64_t n, int64_t block) {
  if (block < 2) return;
  if (block < 8) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256 v = stage_of_1(_mm256_loadu_ps(x + i));
      _mm256_storeu_ps(x + i, block == 2 ? v : stage_of_2(v));
    }
    if (i < n) npumm_hadamard_scalar.power(x + i, n - i, block);
    return;
  }
  if (block == 8) first_stages(x, n, 1);
  if (block == 16) first_stages(x, n, 2);
  if (block == 32) first_stages(x, n, 4);
  if (block >= 64) first_stages(x, n, 8);
  int64_t apart = 64;
  for (; 8 * apart <= block; apart *= 8) later_stages(x, n, apart, 8);
  if (4 * apart == block) later_stages(x, n, apart, 4);
  if (2 * apart == block) later_stages(x, n, apart, 2);
}

/* The signed sums of four vectors, in the order of their codes. */
FMA void sums_of_four(const float *x, int64_t stride, float *sums) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  for (int half = 0; half < NPUMM_LANES; half += 8) {
    const __m256 x0 = _mm256_loadu_ps(x + half), x1 = _mm256_loadu_ps(x + stride + half);
    const __m256 x2 = _mm256_loadu_ps(x + 2 * stride + half), x3 = _mm256_loadu_ps(x + 3 * stride + half);
    const __m256 first[2] = {_mm256_add_ps(x0, x1), _mm256_sub_ps(x0, x1)};
    const __m256 second[2] = {_mm256_add_ps(x2, x3), _mm256_sub_ps(x2, x3)};
#pragma GCC unroll 8
    for (int code = 0; code < 16; code += 2) {
      const __m256 a = first[code >> 1 & 1], b = second[(code >> 2 & 1) ^ (code >> 3 & 1)];
      const __m256 sum = code & 4 ? _mm256_sub_ps(a, b) : _mm256_add_ps(a, b);
      _mm256_store_ps(sums + code * NPUMM_LANES + half, sum);
      _mm256_store_ps(sums + (15 - code) * NPUMM_LANES + half, _mm256_xor_ps(sum, sign));
    }
  }
}

/* Four rows: what is there of them already, if there is anything, and a sum of each of some fours. */
FMA void four_rows(const uint8_t *codes, int64_t next_row, int64_t fours, const float *sums, const float *before,
                   float *to, int64_t stride) {
  const uint8_t *end = codes + fours;
  __m256 low[4], high[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const float *from = before ? before + i * NPUMM_LANES : sums + codes[i * next_row];
    low[i] = _mm256_loadu_ps(from), high[i] = _mm256_loadu_ps(from + 8);
  }
  if (!before) codes++, sums += NPUMM_SUMS;
  for (; codes < end; codes++, sums += NPUMM_SUMS) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const float *sum = sums + codes[i * next_row];
      low[i] = _mm256_add_ps(low[i], _mm256_loadu_ps(sum));
      high[i] = _mm256_add_ps(high[i], _mm256_loadu_ps(sum + 8));
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm256_storeu_ps(to + i * stride, low[i]);
    _mm256_storeu_ps(to + i * stride + 8, high[i]);
  }
}

__attribute__((target("avx2,fma"))) static void dense(const uint8_t *codes, int64_t order, float *x, int64_t stride) {
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

const npumm_hadamard_kernels npumm_hadamard_avx2 = {scale, divide, power, dense};
#else
typedef int npumm_hadamard_avx2_is_empty_here;
#endif
