/* Vectors of 16 floats, for x86-64 with AVX-512; what each function does stands in lanes_scalar.h. */
#ifndef NPUMATMUL_LANES_AVX512_H
#define NPUMATMUL_LANES_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define LANES_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define LANES static inline LANES_TARGET

typedef __m512 vec;
typedef __m512i ivec;
enum { WIDTH = 16, GROUP = 1 };

LANES vec vec_load(const float *at) { return _mm512_loadu_ps(at); }
LANES void vec_store(float *at, vec x) { _mm512_storeu_ps(at, x); }
LANES vec vec_all(float x) { return _mm512_set1_ps(x); }
LANES vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
LANES vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
LANES vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
LANES vec vec_div(vec a, vec b) { return _mm512_div_ps(a, b); }
LANES vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
LANES vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
LANES vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }
LANES ivec vec_bits(vec x) { return _mm512_castps_si512(x); }
LANES vec vec_of_bits(ivec bits) { return _mm512_castsi512_ps(bits); }
LANES ivec ivec_all(uint32_t x) { return _mm512_set1_epi32((int32_t)x); }
LANES ivec ivec_add(ivec a, ivec b) { return _mm512_add_epi32(a, b); }
LANES ivec ivec_sub(ivec a, ivec b) { return _mm512_sub_epi32(a, b); }
LANES ivec ivec_and(ivec a, ivec b) { return _mm512_and_si512(a, b); }
LANES ivec ivec_or(ivec a, ivec b) { return _mm512_or_si512(a, b); }
LANES ivec ivec_half(ivec a) { return _mm512_srai_epi32(a, 1); }
LANES ivec ivec_exponent(ivec a) { return _mm512_slli_epi32(a, 23); }

/* x 2^k of a whole k, rounded once. */
#define VEC_SCALE(x, k) _mm512_scalef_ps(x, k)

LANES vec vec_of_halves(const uint16_t *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }
LANES vec vec_of_codes(const int8_t *at) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)at)));
}
/* Neighbours of a, then of b, within each quarter. */
LANES vec vec_neighbours(vec a, vec b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

LANES vec vec_fold(vec rows[4][1]) {
  const vec a = rows[0][0], b = rows[1][0], c = rows[2][0], d = rows[3][0];
  const vec x = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  const vec y = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
  return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
}

LANES vec vec_join(vec a, vec b, vec c, vec d) { return vec_neighbours(vec_neighbours(a, b), vec_neighbours(c, d)); }

LANES float vec_sum(const vec *row) {
  const __m256 x = _mm256_add_ps(_mm512_castps512_ps256(row[0]), _mm512_extractf32x8_ps(row[0], 1));
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(_mm_shuffle_ps(y, y, 0x88), _mm_shuffle_ps(y, y, 0xdd));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}

LANES float vec_most(const vec *row) {
  const __m256 x = _mm256_max_ps(_mm512_castps512_ps256(row[0]), _mm512_extractf32x8_ps(row[0], 1));
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}

#endif
