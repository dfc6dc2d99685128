/* Vectors of 8 floats, for x86-64 with AVX2, FMA and F16C; what each function does stands in lanes_scalar.h. */
#ifndef NPUMATMUL_LANES_AVX2_H
#define NPUMATMUL_LANES_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define LANES_TARGET __attribute__((target("avx2,fma,f16c")))
#define LANES static inline LANES_TARGET

typedef __m256 vec;
typedef __m256i ivec;
enum { WIDTH = 8, GROUP = 2 };

LANES vec vec_load(const float *at) { return _mm256_loadu_ps(at); }
LANES void vec_store(float *at, vec x) { _mm256_storeu_ps(at, x); }
LANES vec vec_all(float x) { return _mm256_set1_ps(x); }
LANES vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
LANES vec vec_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
LANES vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
LANES vec vec_div(vec a, vec b) { return _mm256_div_ps(a, b); }
LANES vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
LANES vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
LANES vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }
LANES ivec vec_bits(vec x) { return _mm256_castps_si256(x); }
LANES vec vec_of_bits(ivec bits) { return _mm256_castsi256_ps(bits); }
LANES ivec ivec_all(uint32_t x) { return _mm256_set1_epi32((int32_t)x); }
LANES ivec ivec_add(ivec a, ivec b) { return _mm256_add_epi32(a, b); }
LANES ivec ivec_sub(ivec a, ivec b) { return _mm256_sub_epi32(a, b); }
LANES ivec ivec_and(ivec a, ivec b) { return _mm256_and_si256(a, b); }
LANES ivec ivec_or(ivec a, ivec b) { return _mm256_or_si256(a, b); }
LANES ivec ivec_half(ivec a) { return _mm256_srai_epi32(a, 1); }
LANES ivec ivec_exponent(ivec a) { return _mm256_slli_epi32(a, 23); }

LANES vec vec_of_halves(const uint16_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }
LANES vec vec_of_codes(const int8_t *at) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}
/* Neighbours of a, then of b, within each half. */
LANES vec vec_neighbours(vec a, vec b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}

LANES vec vec_fold(vec rows[2][2]) {
  const vec x = _mm256_add_ps(rows[0][0], rows[0][1]), y = _mm256_add_ps(rows[1][0], rows[1][1]);
  return _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
}

LANES vec vec_join(vec a, vec b, vec c, vec d) { return vec_neighbours(vec_neighbours(a, b), vec_neighbours(c, d)); }

LANES float vec_sum(const vec *row) {
  const vec x = _mm256_add_ps(row[0], row[1]);
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(_mm_shuffle_ps(y, y, 0x88), _mm_shuffle_ps(y, y, 0xdd));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}

LANES float vec_most(const vec *row) {
  const vec x = vec_max(row[0], row[1]);
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}

#endif
