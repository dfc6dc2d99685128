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
LANES void vec_to_halves(vec x, uint16_t *at) {
  _mm_storeu_si128((__m128i *)at, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* Neighbours of a, then of b, within each half. */
LANES vec vec_neighbours(vec a, vec b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}

/* The four sums that are left of a row: those of row a in the lower half, of b in the upper one. */
LANES vec vec_fours(const vec *a, const vec *b) {
  const vec x = _mm256_add_ps(a[0], a[1]), y = _mm256_add_ps(b[0], b[1]);
  return _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
}

LANES void vec_sums(vec rows[16][2], float *sums) {
  for (int r = 0; r < 16; r += 8) {
    const vec low = vec_neighbours(vec_fours(rows[r], rows[r + 4]), vec_fours(rows[r + 1], rows[r + 5]));
    const vec high = vec_neighbours(vec_fours(rows[r + 2], rows[r + 6]), vec_fours(rows[r + 3], rows[r + 7]));
    vec_store(sums + r, vec_neighbours(low, high));
  }
}

LANES float vec_sum(const vec *row) {
  vec x = vec_fours(row, row);
  x = vec_neighbours(x, x);
  return _mm256_cvtss_f32(vec_neighbours(x, x));
}

LANES float vec_most(const vec *row) {
  const vec x = vec_max(row[0], row[1]);
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}

#endif
