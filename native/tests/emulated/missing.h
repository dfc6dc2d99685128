/*
 * What SIMDe 0.7.4 does not have with 512 bits, or has not as processors do it (the range of nans), as Intel's documentation
 * defines it. native/tests/test_intrinsics.c compares these, and what the loops use of SIMDe, with values worked out by
 * hand.
 */
#ifndef NPUMATMUL_EMULATED_MISSING_H
#define NPUMATMUL_EMULATED_MISSING_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EMULATED static inline __attribute__((unused))

/* ---- halves of 256 bits -------------------------------------------------------------------------------------------- */

EMULATED __m256i emulated_half(__m512i x, int upper) {
  __m256i half;
  memcpy(&half, (const char *)&x + 32 * upper, sizeof half);
  return half;
}
EMULATED __m256 emulated_half_ps(__m512 x, int upper) {
  __m256 half;
  memcpy(&half, (const char *)&x + 32 * upper, sizeof half);
  return half;
}
EMULATED __m512i emulated_both(__m256i low, __m256i high) {
  __m512i x;
  memcpy(&x, &low, sizeof low);
  memcpy((char *)&x + sizeof low, &high, sizeof high);
  return x;
}
EMULATED __m512 emulated_both_ps(__m256 low, __m256 high) {
  __m512 x;
  memcpy(&x, &low, sizeof low);
  memcpy((char *)&x + sizeof low, &high, sizeof high);
  return x;
}

/* SIMDe has them, without their usual names. */
#undef _mm512_shuffle_i64x2
#define _mm512_shuffle_i64x2(x, y, lanes) simde_mm512_shuffle_i32x4(x, y, lanes)
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4(x, y, lanes) simde_mm512_shuffle_f32x4(x, y, lanes)

#undef _mm512_permute_ps
#define _mm512_permute_ps(x, order) \
  emulated_both_ps(_mm256_permute_ps(emulated_half_ps(x, 0), order), _mm256_permute_ps(emulated_half_ps(x, 1), order))

/* ---- conversions --------------------------------------------------------------------------------------------------- */

EMULATED __m512 emulated_cvtph_ps(__m256i x) {
  return emulated_both_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps(x) emulated_cvtph_ps(x)

/* The place of the immediate that passes over exceptions means nothing to the form of 256 bits. */
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, rounding)                                      \
  _mm256_set_m128i(_mm256_cvtps_ph(emulated_half_ps(x, 1), (rounding)&7), \
                   _mm256_cvtps_ph(emulated_half_ps(x, 0), (rounding)&7))

EMULATED __m512 emulated_cvtepi32_ps(__m512i x) {
  return emulated_both_ps(_mm256_cvtepi32_ps(emulated_half(x, 0)), _mm256_cvtepi32_ps(emulated_half(x, 1)));
}
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(x) emulated_cvtepi32_ps(x)

EMULATED __m512i emulated_cvtps_epi32(__m512 x) {
  return emulated_both(_mm256_cvtps_epi32(emulated_half_ps(x, 0)), _mm256_cvtps_epi32(emulated_half_ps(x, 1)));
}
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(x) emulated_cvtps_epi32(x)

EMULATED __m512i emulated_cvtepi8_epi32(__m128i x) {
  return emulated_both(_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
}
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32(x) emulated_cvtepi8_epi32(x)

EMULATED __m512i emulated_cvtepu8_epi16(__m256i x) {
  return emulated_both(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(x)),
                       _mm256_cvtepu8_epi16(_mm256_extracti128_si256(x, 1)));
}
#undef _mm512_cvtepu8_epi16
#define _mm512_cvtepu8_epi16(x) emulated_cvtepu8_epi16(x)

EMULATED __m128i emulated_cvtepi32_epi8(__m512i x) {
  uint32_t from[16];
  uint8_t to[16];
  memcpy(from, &x, sizeof from);
  for (int i = 0; i < 16; i++) to[i] = (uint8_t)from[i];
  __m128i y;
  memcpy(&y, to, sizeof y);
  return y;
}
#undef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8(x) emulated_cvtepi32_epi8(x)

EMULATED __m512i emulated_zextsi128_si512(__m128i x) {
  __m512i y = _mm512_setzero_si512();
  memcpy(&y, &x, sizeof x);
  return y;
}
#undef _mm512_zextsi128_si512
#define _mm512_zextsi128_si512(x) emulated_zextsi128_si512(x)

#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(x, upper) emulated_half_ps(x, upper)

/* ---- integers ------------------------------------------------------------------------------------------------------ */

EMULATED __m512i emulated_srai_epi32(__m512i x, unsigned count) {
  const int most = count > 31 ? 31 : (int)count;
  return emulated_both(_mm256_srai_epi32(emulated_half(x, 0), most), _mm256_srai_epi32(emulated_half(x, 1), most));
}
#undef _mm512_srai_epi32
#define _mm512_srai_epi32(x, count) emulated_srai_epi32(x, count)

EMULATED __mmask16 emulated_cmpgt_epu32_mask(__m512i x, __m512i y) {
  uint32_t a[16], b[16], mask = 0;
  memcpy(a, &x, sizeof a);
  memcpy(b, &y, sizeof b);
  for (int i = 0; i < 16; i++) mask |= (uint32_t)(a[i] > b[i]) << i;
  return (__mmask16)mask;
}
#undef _mm512_cmpgt_epu32_mask
#define _mm512_cmpgt_epu32_mask(x, y) emulated_cmpgt_epu32_mask(x, y)

EMULATED __mmask16 emulated_testn_epi32_mask(__m512i x, __m512i y) {
  uint32_t a[16], b[16], mask = 0;
  memcpy(a, &x, sizeof a);
  memcpy(b, &y, sizeof b);
  for (int i = 0; i < 16; i++) mask |= (uint32_t)((a[i] & b[i]) == 0) << i;
  return (__mmask16)mask;
}
#undef _mm512_testn_epi32_mask
#define _mm512_testn_epi32_mask(x, y) emulated_testn_epi32_mask(x, y)

EMULATED __mmask16 emulated_cmpgt_epi16_mask(__m256i x, __m256i y) {
  int16_t a[16], b[16];
  uint32_t mask = 0;
  memcpy(a, &x, sizeof a);
  memcpy(b, &y, sizeof b);
  for (int i = 0; i < 16; i++) mask |= (uint32_t)(a[i] > b[i]) << i;
  return (__mmask16)mask;
}
#undef _mm256_cmpgt_epi16_mask
#define _mm256_cmpgt_epi16_mask(x, y) emulated_cmpgt_epi16_mask(x, y)

EMULATED uint32_t emulated_reduce_max_epu32(__m512i x) {
  uint32_t a[16], most = 0;
  memcpy(a, &x, sizeof a);
  for (int i = 0; i < 16; i++) most = a[i] > most ? a[i] : most;
  return most;
}
#undef _mm512_reduce_max_epu32
#define _mm512_reduce_max_epu32(x) emulated_reduce_max_epu32(x)

/* The processor refuses other addresses, too. */
EMULATED void emulated_stream_si512(void *to, __m512i x) {
  if ((uintptr_t)to % 64 != 0) abort();
  memcpy(to, &x, sizeof x);
}
#undef _mm512_stream_si512
#define _mm512_stream_si512(to, x) emulated_stream_si512(to, x)

/* ---- floats -------------------------------------------------------------------------------------------------------- */

EMULATED float emulated_reduce_ps_by(__m512 x, int largest) {
  float a[16];
  memcpy(a, &x, sizeof a);
  for (int width = 8; width > 0;
       width /= 2) { /* of two equal ones, or with a nan, the second, as the instructions do */
    for (int i = 0; i < width; i++) {
      a[i] = (largest ? a[i] > a[i + width] : a[i] < a[i + width]) ? a[i] : a[i + width];
    }
  }
  return a[0];
}
#undef _mm512_reduce_max_ps
#define _mm512_reduce_max_ps(x) emulated_reduce_ps_by(x, 1)
#undef _mm512_reduce_min_ps
#define _mm512_reduce_min_ps(x) emulated_reduce_ps_by(x, 0)

/* What is left of each number beside the nearest one of `places` binary places, ties to even; nothing of infinities. */
EMULATED __m512 emulated_reduce_to_nearest(__m512 x, int places) {
  float a[16];
  memcpy(a, &x, sizeof a);
  for (int i = 0; i < 16; i++) a[i] = isinf(a[i]) ? 0.0f : a[i] - ldexpf(nearbyintf(ldexpf(a[i], places)), -places);
  memcpy(&x, a, sizeof a);
  return x;
}
/* The larger magnitude, without its sign; of a nan and a number the number. Nobody needs other forms. */
EMULATED __m512 emulated_larger_magnitudes(__m512 x, __m512 y) {
  float a[16], b[16];
  memcpy(a, &x, sizeof a);
  memcpy(b, &y, sizeof b);
  for (int i = 0; i < 16; i++) a[i] = isnan(b[i]) || fabsf(a[i]) >= fabsf(b[i]) ? fabsf(a[i]) : fabsf(b[i]);
  memcpy(&x, a, sizeof a);
  return x;
}
#undef _mm512_range_ps
#define _mm512_range_ps(x, y, how) ((how) != 0x0b ? (abort(), (x)) : emulated_larger_magnitudes(x, y))

#undef _mm512_reduce_ps
#define _mm512_reduce_ps(x, how) (((how)&7) != 0 ? (abort(), (x)) : emulated_reduce_to_nearest(x, (how) >> 4))

#endif
