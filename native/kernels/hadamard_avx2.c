/* The Hadamard transform's inner loops for x86-64 with AVX2; tails go through the scalar reference. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "hadamard.h"

#define AVX2 __attribute__((target("avx2")))

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

/* The stages within eight floats: the upper of each pair is negated, the pair swapped, and both are added. */
AVX2 static __m256 stages_of_8(__m256 x, int64_t block) {
  const __m256 odd = _mm256_castsi256_ps(_mm256_setr_epi32(0, INT32_MIN, 0, INT32_MIN, 0, INT32_MIN, 0, INT32_MIN));
  const __m256 pair = _mm256_castsi256_ps(_mm256_setr_epi32(0, 0, INT32_MIN, INT32_MIN, 0, 0, INT32_MIN, INT32_MIN));
  const __m256 half = _mm256_castsi256_ps(_mm256_setr_epi32(0, 0, 0, 0, INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN));
  x = _mm256_add_ps(_mm256_permute_ps(x, 0xb1), _mm256_xor_ps(x, odd));
  if (block == 2) return x;
  x = _mm256_add_ps(_mm256_permute_ps(x, 0x4e), _mm256_xor_ps(x, pair));
  if (block == 4) return x;
  return _mm256_add_ps(_mm256_permute2f128_ps(x, x, 1), _mm256_xor_ps(x, half));
}

AVX2 static void stages_above_8(float *x, int64_t n) {
  int64_t half = 8;
  for (; 2 * half < n; half *= 4) { /* two stages at a time, to touch memory half as often */
    for (int64_t start = 0; start < n; start += 4 * half) {
      for (int64_t i = start; i < start + half; i += 8) {
        const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + half);
        const __m256 c = _mm256_loadu_ps(x + i + 2 * half), d = _mm256_loadu_ps(x + i + 3 * half);
        const __m256 ab = _mm256_add_ps(a, b), a_b = _mm256_sub_ps(a, b);
        const __m256 cd = _mm256_add_ps(c, d), c_d = _mm256_sub_ps(c, d);
        _mm256_storeu_ps(x + i, _mm256_add_ps(ab, cd));
        _mm256_storeu_ps(x + i + half, _mm256_add_ps(a_b, c_d));
        _mm256_storeu_ps(x + i + 2 * half, _mm256_sub_ps(ab, cd));
        _mm256_storeu_ps(x + i + 3 * half, _mm256_sub_ps(a_b, c_d));
      }
    }
  }
  for (int64_t i = 0; half < n && i < half; i += 8) {
    const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + half);
    _mm256_storeu_ps(x + i, _mm256_add_ps(a, b));
    _mm256_storeu_ps(x + i + half, _mm256_sub_ps(a, b));
  }
}

AVX2 static void power(float *x, int64_t n, int64_t block) {
  if (block < 2) return;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, stages_of_8(_mm256_loadu_ps(x + i), block));
  if (i < n) npumm_hadamard_scalar.power(x + i, n - i, block); /* small blocks alone leave a rest */
  for (int64_t start = 0; block > 8 && start < n; start += block) stages_above_8(x + start, block);
}

/* Some rows of the product. Entries are 1 and -1, so that a fused product is the rounded one and its sum the same. */
__attribute__((always_inline, target("avx2,fma"))) static inline void rows_of_dense(const float *m, int64_t order,
                                                                                    const float (*in)[NPUMM_LANES],
                                                                                    float (*out)[NPUMM_LANES],
                                                                                    const int rows) {
  __m256 sums[8];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) sums[i] = _mm256_setzero_ps();
  for (int64_t j = 0; j < order; j++) {
    const __m256 x = _mm256_loadu_ps(in[j]);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) sums[i] = _mm256_fmadd_ps(_mm256_broadcast_ss(m + i * order + j), x, sums[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) _mm256_storeu_ps(out[i], sums[i]);
}

__attribute__((target("avx2,fma"))) static void dense(const float *matrix, int64_t order,
                                                      const float (*in)[NPUMM_LANES], float (*out)[NPUMM_LANES]) {
  int64_t i = 0;
  for (; i + 8 <= order; i += 8) rows_of_dense(matrix + i * order, order, in, out + i, 8);
  for (; i + 4 <= order; i += 4) rows_of_dense(matrix + i * order, order, in, out + i, 4);
  for (; i < order; i++) rows_of_dense(matrix + i * order, order, in, out + i, 1);
}

const npumm_hadamard_kernels npumm_hadamard_avx2 = {scale, divide, power, dense};
#else
typedef int npumm_hadamard_avx2_is_empty_here;
#endif
