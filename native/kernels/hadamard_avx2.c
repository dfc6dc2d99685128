/* The Hadamard transform's inner loops for x86-64 with AVX2; tails go through the scalar reference. */
#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE __attribute__((always_inline, target("avx2,fma"))) static inline

typedef __m256 vector;
enum { WIDTH = 8, MOST = 8 }; /* floats of a vector, and vectors at once */

INLINE vector load(const float *from) { return _mm256_loadu_ps(from); }
INLINE void store(float *to, vector v) { _mm256_storeu_ps(to, v); }

/*
 * Half of all additions are fused with a factor of 1 or -1, which is exact, and so rounded once: other units do them, at
 * the same time.
 */
INLINE vector plus(vector a, vector b) { return _mm256_add_ps(a, b); }
INLINE vector minus(vector a, vector b) { return _mm256_fnmadd_ps(b, _mm256_set1_ps(1.0f), a); }
INLINE vector minus_both(vector a, vector b) { return _mm256_fnmsub_ps(a, _mm256_set1_ps(1.0f), b); }
INLINE vector times(vector a, vector b) { return _mm256_mul_ps(a, b); }
INLINE vector negated(vector a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }

#include "hadamard_loops.h"

AVX2 static void divide(const float *src, const float *divisor, float *dst, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) { store(dst + i, _mm256_div_ps(load(src + i), load(divisor + i))); }
  npumm_hadamard_scalar.divide(src + i, divisor + i, dst + i, n - i);
}

/* x0 + x1 and x0 - x1 of neighbours 1, 2 and 4 apart. */
INLINE vector stages_within(vector x, const int64_t block) {
  const vector by_1 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), by_2 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
  const vector by_4 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
  if (block > 1) x = _mm256_fmadd_ps(x, by_1, _mm256_permute_ps(x, 0xb1));
  if (block > 2) x = _mm256_fmadd_ps(x, by_2, _mm256_permute_ps(x, 0x4e));
  if (block > 4) x = _mm256_fmadd_ps(x, by_4, _mm256_permute2f128_ps(x, x, 1));
  return x;
}

#include "hadamard_stages.h"

/* Three stages at a time, to touch memory a third as often. */
AVX2 static void power(const float *src, const float *factor, float *dst, int64_t n, int64_t block) {
  if (block < 8) {
    const int64_t whole = n / 8 * 8;
    if (block == 1) first_stages(src, factor, dst, whole, 1, 1);
    if (block == 2) first_stages(src, factor, dst, whole, 2, 1);
    if (block == 4) first_stages(src, factor, dst, whole, 4, 1);
    npumm_hadamard_scalar.power(src + whole, factor ? factor + whole : NULL, dst + whole, n - whole, block);
    return;
  }
  if (block == 8) first_stages(src, factor, dst, n, 8, 1);
  if (block == 16) first_stages(src, factor, dst, n, 8, 2);
  if (block == 32) first_stages(src, factor, dst, n, 8, 4);
  if (block >= 64) first_stages(src, factor, dst, n, 8, 8);
  int64_t apart = 64;
  for (; 8 * apart <= block; apart *= 8) later_stages(dst, n, apart, 8);
  if (4 * apart == block) later_stages(dst, n, apart, 4);
  if (2 * apart == block) later_stages(dst, n, apart, 2);
}

AVX2 static void dense(const uint8_t *codes, int64_t order, float *x, int64_t stride) {
  any_order(codes, order, x, stride);
}
AVX2 static void known(int64_t order, float *x, int64_t stride) { any_known_order(order, x, stride); }

const npumm_hadamard_kernels npumm_hadamard_avx2 = {divide, power, dense, known};
#else
typedef int npumm_hadamard_avx2_is_empty_here;
#endif
