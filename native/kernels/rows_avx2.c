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

AVX2 static void f32_to_i8(const float *src, int8_t *dst, int64_t n, float scale) {
  const __m256 divisor = _mm256_set1_ps(scale);
  const __m256 low = _mm256_set1_ps(-127.0f), high = _mm256_set1_ps(127.0f);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    __m256 x = _mm256_div_ps(_mm256_loadu_ps(src + i), divisor);
    __m256 y = _mm256_div_ps(_mm256_loadu_ps(src + i + 8), divisor);
    x = _mm256_min_ps(_mm256_max_ps(x, low), high); /* clamped before rounding: same result, no int overflow */
    y = _mm256_min_ps(_mm256_max_ps(y, low), high);
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x), _mm256_cvtps_epi32(y));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
    _mm_storeu_si128((__m128i *)(dst + i), bytes);
  }
  npumm_rows_scalar.f32_to_i8(src + i, dst + i, n - i, scale);
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

const npumm_row_kernels npumm_rows_avx2 = {"avx2", f32_to_f16, f32_to_i8, absmax};
#else
typedef int npumm_rows_avx2_is_empty_here;
#endif
