/* Row kernels for x86-64 with AVX2 and F16C; the tail of each row goes through the scalar reference. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "rows.h"

#define AVX2 __attribute__((target("avx2,f16c")))

AVX2 static void f32_to_f16(const float *src, uint16_t *dst, int64_t n, float scale) {
  const __m256 factor = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(src + i), factor);
    _mm_storeu_si128((__m128i *)(dst + i), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  npumm_rows_scalar.f32_to_f16(src + i, dst + i, n - i, scale);
}

AVX2 static void f32_to_f16_high(const float *src, uint16_t *dst, int64_t n, float scale) {
  const __m256 factor = _mm256_set1_ps(scale);
  const __m128i magnitude_mask = _mm_set1_epi16(0x7fff), limit = _mm_set1_epi16(0x7bff), one = _mm_set1_epi16(0x3c00);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(src + i), factor);
    const __m128i half = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m128i wild = _mm_cmpgt_epi16(_mm_and_si128(half, magnitude_mask), limit);
    const __m128i unit = _mm_or_si128(_mm_andnot_si128(magnitude_mask, half), one);
    _mm_storeu_si128((__m128i *)(dst + i), _mm_blendv_epi8(half, unit, wild));
  }
  npumm_rows_scalar.f32_to_f16_high(src + i, dst + i, n - i, scale);
}

AVX2 static void f32_to_f16_low(const float *src, uint16_t *dst, int64_t n, float scale) {
  const __m256 factor = _mm256_set1_ps(scale), limit = _mm256_set1_ps(65504.0f);
  const __m256 magnitude_mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(src + i), factor);
    const __m256 high = _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    const __m256 is_finite = _mm256_cmp_ps(_mm256_and_ps(high, magnitude_mask), limit, _CMP_LE_OQ);
    const __m256 low = _mm256_blendv_ps(high, _mm256_sub_ps(x, high), is_finite);
    _mm_storeu_si128((__m128i *)(dst + i), _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  npumm_rows_scalar.f32_to_f16_low(src + i, dst + i, n - i, scale);
}

AVX2 static int quantize(const float *src, int8_t *dst, int64_t n, const npumm_quantizer *how) {
  const __m256 divisor = _mm256_set1_ps(how->scale);
  const __m256 low = _mm256_set1_ps(how->low), high = _mm256_set1_ps(how->high);
  const __m256 magnitude_mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256 limit = _mm256_set1_ps(3.402823466e+38f);
  const __m256i zero = _mm256_set1_epi32(how->zero);
  __m256 all_finite = _mm256_cmp_ps(low, low, _CMP_EQ_OQ);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    __m256 x = _mm256_loadu_ps(src + i), y = _mm256_loadu_ps(src + i + 8);
    const __m256 x_finite = _mm256_cmp_ps(_mm256_and_ps(x, magnitude_mask), limit, _CMP_LE_OQ);
    const __m256 y_finite = _mm256_cmp_ps(_mm256_and_ps(y, magnitude_mask), limit, _CMP_LE_OQ);
    all_finite = _mm256_and_ps(all_finite, _mm256_and_ps(x_finite, y_finite));
    /* Clamped before rounding: the same result, and no int overflow. max gives its second operand for a nan. */
    x = _mm256_min_ps(_mm256_max_ps(_mm256_div_ps(x, divisor), low), high);
    y = _mm256_min_ps(_mm256_max_ps(_mm256_div_ps(y, divisor), low), high);
    x = _mm256_blendv_ps(low, x, x_finite);
    y = _mm256_blendv_ps(low, y, y_finite);
    const __m256i words = _mm256_packs_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(x), zero),
                                             _mm256_add_epi32(_mm256_cvtps_epi32(y), zero));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
    _mm_storeu_si128((__m128i *)(dst + i), bytes);
  }
  const int tail_finite = npumm_rows_scalar.quantize(src + i, dst + i, n - i, how);
  return _mm256_movemask_ps(all_finite) == 0xff && tail_finite;
}

AVX2 static void pairs(const int8_t *src, uint8_t *dst, int64_t n, int high, int high_first) {
  const __m256i bias = _mm256_set1_epi8(high ? 8 : 0), nibble = _mm256_set1_epi8(0x0f);
  const __m128i shift = _mm_cvtsi32_si128(high ? 4 : 0);
  /* even * 1 + odd * 16, or the other way round, as 16-bit sums of neighbours */
  const __m256i weights = _mm256_set1_epi16(high_first ? 0x0110 : 0x1001);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i values = _mm256_add_epi8(_mm256_loadu_si256((const __m256i *)(src + i)), bias);
    const __m256i nibbles = _mm256_and_si256(_mm256_srl_epi16(values, shift), nibble);
    const __m256i words = _mm256_maddubs_epi16(nibbles, weights);
    _mm_storeu_si128((__m128i *)(dst + i / 2),
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
  npumm_rows_scalar.pairs(src + i, dst + i / 2, n - i, high, high_first);
}

AVX2 static int32_t sum(const int8_t *src, int64_t n) {
  const __m256i flip = _mm256_set1_epi8((char)0x80); /* the sum of absolute differences takes unsigned bytes */
  __m256i total = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i values = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(src + i)), flip);
    total = _mm256_add_epi64(total, _mm256_sad_epu8(values, _mm256_setzero_si256()));
  }
  uint64_t lanes[4];
  _mm256_storeu_si256((__m256i *)lanes, total);
  const uint64_t flipped = lanes[0] + lanes[1] + lanes[2] + lanes[3];
  return (int32_t)((uint32_t)(flipped - (uint64_t)i * 128) + (uint32_t)npumm_rows_scalar.sum(src + i, n - i));
}

AVX2 static float absmax(const float *src, int64_t n, int *finite) {
  const __m256 magnitude_mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256 limit = _mm256_set1_ps(3.402823466e+38f);
  __m256 largest = _mm256_setzero_ps(), all_finite = _mm256_cmp_ps(largest, largest, _CMP_EQ_OQ);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_and_ps(_mm256_loadu_ps(src + i), magnitude_mask);
    const __m256 is_finite = _mm256_cmp_ps(x, limit, _CMP_LE_OQ);
    all_finite = _mm256_and_ps(all_finite, is_finite);
    largest = _mm256_max_ps(largest, _mm256_and_ps(x, is_finite));
  }
  if (_mm256_movemask_ps(all_finite) != 0xff) *finite = 0;
  float lanes[8];
  _mm256_storeu_ps(lanes, largest);
  float result = npumm_rows_scalar.absmax(src + i, n - i, finite);
  for (int lane = 0; lane < 8; lane++) result = lanes[lane] > result ? lanes[lane] : result;
  return result;
}

AVX2 static void minmax(const float *src, int64_t n, float range[2], int *finite) {
  const __m256 magnitude_mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256 limit = _mm256_set1_ps(3.402823466e+38f);
  __m256 least = _mm256_set1_ps(range[0]), largest = _mm256_set1_ps(range[1]);
  __m256 all_finite = _mm256_cmp_ps(limit, limit, _CMP_EQ_OQ);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_loadu_ps(src + i);
    const __m256 is_finite = _mm256_cmp_ps(_mm256_and_ps(x, magnitude_mask), limit, _CMP_LE_OQ);
    all_finite = _mm256_and_ps(all_finite, is_finite);
    least = _mm256_min_ps(least, _mm256_blendv_ps(least, x, is_finite));
    largest = _mm256_max_ps(largest, _mm256_blendv_ps(largest, x, is_finite));
  }
  if (_mm256_movemask_ps(all_finite) != 0xff) *finite = 0;
  float low[8], high[8];
  _mm256_storeu_ps(low, least);
  _mm256_storeu_ps(high, largest);
  for (int lane = 0; lane < 8; lane++) {
    range[0] = low[lane] < range[0] ? low[lane] : range[0];
    range[1] = high[lane] > range[1] ? high[lane] : range[1];
  }
  npumm_rows_scalar.minmax(src + i, n - i, range, finite);
}

const npumm_row_kernels npumm_rows_avx2 = {"avx2", f32_to_f16, f32_to_f16_high, f32_to_f16_low, quantize,
                                           pairs,  sum,        absmax,          minmax};
#else
typedef int npumm_rows_avx2_is_empty_here;
#endif
