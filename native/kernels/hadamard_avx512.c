/* The Hadamard transform's inner loops for x86-64 with AVX-512; what is shorter goes through those for AVX2. */
#if defined(__x86_64__)
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f")))
#define INLINE __attribute__((always_inline, target("avx512f"))) static inline

typedef __m512 vector;
enum { WIDTH = 16, MOST = 16 }; /* floats of a vector, and vectors at once */

INLINE vector load(const float *from) { return _mm512_loadu_ps(from); }
INLINE void store(float *to, vector v) { _mm512_storeu_ps(to, v); }

/*
 * Half of all additions are fused with a factor of 1 or -1, which is exact, and so rounded once: other units do them, at
 * the same time.
 */
INLINE vector plus(vector a, vector b) { return _mm512_add_ps(a, b); }
INLINE vector minus(vector a, vector b) { return _mm512_fnmadd_ps(b, _mm512_set1_ps(1.0f), a); }
INLINE vector minus_both(vector a, vector b) { return _mm512_fnmsub_ps(a, _mm512_set1_ps(1.0f), b); }
INLINE vector times(vector a, vector b) { return _mm512_mul_ps(a, b); }
INLINE vector negated(vector a) {
  const __m512i sign = _mm512_castps_si512(_mm512_set1_ps(-0.0f));
  return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(a), sign));
}

#include "hadamard_loops.h"

static void divide(const float *src, const float *divisor, float *dst, int64_t n) {
  npumm_hadamard_avx2.divide(src, divisor, dst, n);
}

/* x0 + x1 and x0 - x1 of neighbours 1, 2, 4 and 8 apart. */
INLINE vector stages_within(vector x, const int64_t block) {
  const vector by_1 = _mm512_setr_ps(1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1);
  const vector by_2 = _mm512_setr_ps(1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1);
  const vector by_4 = _mm512_setr_ps(1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1);
  const vector by_8 = _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1);
  if (block > 1) x = _mm512_fmadd_ps(x, by_1, _mm512_permute_ps(x, 0xb1));
  if (block > 2) x = _mm512_fmadd_ps(x, by_2, _mm512_permute_ps(x, 0x4e));
  if (block > 4) x = _mm512_fmadd_ps(x, by_4, _mm512_shuffle_f32x4(x, x, 0xb1));
  if (block > 8) x = _mm512_fmadd_ps(x, by_8, _mm512_shuffle_f32x4(x, x, 0x4e));
  return x;
}

#include "hadamard_stages.h"

/* Four stages at a time, eight in the first vectors, to touch memory as seldom. */
AVX512 static void power(const float *src, const float *factor, float *dst, int64_t n, int64_t block) {
  if (block < WIDTH) {
    const int64_t whole = n / WIDTH * WIDTH;
    if (block == 1) first_stages(src, factor, dst, whole, 1, 1);
    if (block == 2) first_stages(src, factor, dst, whole, 2, 1);
    if (block == 4) first_stages(src, factor, dst, whole, 4, 1);
    if (block == 8) first_stages(src, factor, dst, whole, 8, 1);
    npumm_hadamard_avx2.power(src + whole, factor ? factor + whole : NULL, dst + whole, n - whole, block);
    return;
  }
  int64_t apart = block < MOST * WIDTH ? block : MOST * WIDTH;
  if (apart == 16) first_stages(src, factor, dst, n, 16, 1);
  if (apart == 32) first_stages(src, factor, dst, n, 16, 2);
  if (apart == 64) first_stages(src, factor, dst, n, 16, 4);
  if (apart == 128) first_stages(src, factor, dst, n, 16, 8);
  if (apart == 256) first_stages(src, factor, dst, n, 16, 16);
  for (; 16 * apart <= block; apart *= 16) later_stages(dst, n, apart, 16);
  if (8 * apart == block) later_stages(dst, n, apart, 8);
  if (4 * apart == block) later_stages(dst, n, apart, 4);
  if (2 * apart == block) later_stages(dst, n, apart, 2);
}

AVX512 static void dense(const uint8_t *codes, int64_t order, float *x, int64_t stride) {
  any_order(codes, order, x, stride);
}
AVX512 static void known(int64_t order, float *x, int64_t stride) { any_known_order(order, x, stride); }

const npumm_hadamard_kernels npumm_hadamard_avx512 = {divide, power, dense, known};
#else
typedef int npumm_hadamard_avx512_is_empty_here;
#endif
