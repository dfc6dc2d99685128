/* Row kernels for x86-64 with AVX2, FMA and F16C; the tail of each row goes through the scalar reference. */
#if defined(__x86_64__)
#include <immintrin.h>

#include <string.h>

#include "rows.h"
#include "transpose.h"

#define AVX2 __attribute__((target("avx2,fma,f16c")))

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

/* Eight quotients, clamped: the same result as after rounding, and no int overflow. max gives `low` for a nan. */
AVX2 static inline __m256 clamped(__m256 quotient, __m256 low, __m256 high) {
  return _mm256_min_ps(_mm256_max_ps(quotient, low), high);
}

/* 32 sums of integers as bytes. */
AVX2 static inline void store_bytes(int8_t *dst, const __m256i *whole) {
  const __m256i first = _mm256_packs_epi32(whole[0], whole[1]), second = _mm256_packs_epi32(whole[2], whole[3]);
  const __m256i bytes = _mm256_packs_epi16(first, second); /* of each half four at a time */
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256((__m256i *)(void *)dst, _mm256_permutevar8x32_epi32(bytes, order));
}

typedef struct {
  __m256 scale, reciprocal, low, high;
  __m256i zero;
} steps;

AVX2 static inline steps steps_of(const npumm_quantizer *how) {
  const steps result = {_mm256_set1_ps(how->scale), _mm256_set1_ps(1.0f / how->scale), _mm256_set1_ps(how->low),
                        _mm256_set1_ps(how->high), _mm256_set1_epi32(how->zero)};
  return result;
}

AVX2 static inline steps steps_at(const npumm_quantizers *how, int64_t i) {
  const steps result = {_mm256_loadu_ps(how->scale + i), _mm256_loadu_ps(how->reciprocal + i),
                        _mm256_loadu_ps(how->low + i), _mm256_loadu_ps(how->high + i),
                        _mm256_loadu_si256((const __m256i *)(const void *)(how->zero + i))};
  return result;
}

/* 32 values; steps[0] serves all of them, or each eight have their own. Returns whether all are finite. */
AVX2 static inline int quantize_32(const float *src, int8_t *dst, const steps *of, const int each, const int usual) {
  const __m256 magnitude_mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256 limit = _mm256_set1_ps(3.402823466e+38f);
  __m256i whole[4];
  __m256 all_finite = _mm256_cmp_ps(limit, limit, _CMP_EQ_OQ);
  if (usual) {
    __m256 off = _mm256_setzero_ps(), wild = off;
    for (int v = 0; v < 4; v++) {
      const steps *s = &of[each * v];
      const __m256 x = _mm256_loadu_ps(src + 8 * v);
      wild = _mm256_or_ps(wild, _mm256_cmp_ps(_mm256_and_ps(x, magnitude_mask), limit, _CMP_NLE_UQ));
      const __m256 q = clamped(_mm256_mul_ps(x, s->reciprocal), s->low, s->high);
      const __m256i rounded = _mm256_cvtps_epi32(q);
      off = _mm256_max_ps(off, _mm256_and_ps(_mm256_sub_ps(q, _mm256_cvtepi32_ps(rounded)), magnitude_mask));
      whole[v] = _mm256_add_epi32(rounded, s->zero);
    }
    const __m256 unsure = _mm256_cmp_ps(off, _mm256_set1_ps(NPUMM_SURE), _CMP_GT_OQ);
    if (!_mm256_movemask_ps(_mm256_or_ps(unsure, wild))) {
      store_bytes(dst, whole);
      return 1;
    }
  }
  for (int v = 0; v < 4; v++) {
    const steps *s = &of[each * v];
    const __m256 x = _mm256_loadu_ps(src + 8 * v);
    const __m256 is_finite = _mm256_cmp_ps(_mm256_and_ps(x, magnitude_mask), limit, _CMP_LE_OQ);
    all_finite = _mm256_and_ps(all_finite, is_finite);
    const __m256 q = _mm256_blendv_ps(s->low, clamped(_mm256_div_ps(x, s->scale), s->low, s->high), is_finite);
    whole[v] = _mm256_add_epi32(_mm256_cvtps_epi32(q), s->zero);
  }
  store_bytes(dst, whole);
  return _mm256_movemask_ps(all_finite) == 0xff;
}

/* What a row's codes have in common: clamped as bytes, after narrowing with saturation. */
typedef struct {
  __m256 reciprocal, bias;
  __m256i low, high;
} codes;

/*
 * 32 values of a row, as long as all of them are sure. Codes are taken in steps of 2^-16, half a code more and four
 * steps, so that the upper halves are the codes; of what is not clamped the error is below three steps. Within four of a
 * half the lower halves are 0 to 7, and whatever is no integer of 32 bits becomes -2^31, whose lower half is 0, too.
 */
enum { STEPS = 1 << 16, HALF = STEPS / 2, MARGIN = 4, UNSURE = STEPS - 2 * MARGIN };
AVX2 static inline int quantize_32_surely(const float *src, int8_t *dst, const codes *of) {
  __m256i whole[4], least = _mm256_set1_epi32(UNSURE);
  for (int v = 0; v < 4; v++) {
    const __m256i fixed = _mm256_cvtps_epi32(_mm256_fmadd_ps(_mm256_loadu_ps(src + 8 * v), of->reciprocal, of->bias));
    least = _mm256_min_epi32(least, _mm256_and_si256(fixed, _mm256_set1_epi32(UNSURE)));
    whole[v] = _mm256_srai_epi32(fixed, 16);
  }
  if (_mm256_movemask_epi8(_mm256_cmpeq_epi32(least, _mm256_setzero_si256()))) return 0;
  const __m256i first = _mm256_packs_epi32(whole[0], whole[1]), second = _mm256_packs_epi32(whole[2], whole[3]);
  __m256i bytes = _mm256_packs_epi16(first, second); /* of each half four at a time */
  bytes = _mm256_min_epi8(_mm256_max_epi8(bytes, of->low), of->high);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256((__m256i *)(void *)dst, _mm256_permutevar8x32_epi32(bytes, order));
  return 1;
}

/* The others. Apart, so that what these need takes no registers of the usual ones. */
__attribute__((noinline)) AVX2 static int divide_32(const float *src, int8_t *dst, const npumm_quantizer *how) {
  const steps all = steps_of(how);
  return quantize_32(src, dst, &all, 0, 0);
}

AVX2 static int quantize(const float *src, int8_t *dst, int64_t n, const npumm_quantizer *how) {
  const codes row = {_mm256_set1_ps(STEPS / how->scale), _mm256_set1_ps((float)(how->zero * STEPS + HALF + MARGIN)),
                     _mm256_set1_epi8((int8_t)((int32_t)how->low + how->zero)),
                     _mm256_set1_epi8((int8_t)((int32_t)how->high + how->zero))};
  const int usual = npumm_is_usual_scale(how->scale);
  int finite = 1;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    if (!usual || !quantize_32_surely(src + i, dst + i, &row)) finite &= divide_32(src + i, dst + i, how);
  }
  return npumm_rows_scalar.quantize(src + i, dst + i, n - i, how) && finite;
}

/* 32 values with reciprocals of their own, and the rest of `all`. Returns 0 where one of them has to be looked at again. */
AVX2 static inline int quantize_alike_32(const float *src, const float *reciprocal, int8_t *dst, const steps *all) {
  const __m256 magnitude_mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256i whole[4], largest = _mm256_setzero_si256();
  __m256 off = _mm256_setzero_ps();
  for (int v = 0; v < 4; v++) {
    const __m256 x = _mm256_loadu_ps(src + 8 * v);
    largest = _mm256_max_epu32(largest, _mm256_castps_si256(_mm256_and_ps(x, magnitude_mask)));
    const __m256 q = clamped(_mm256_mul_ps(x, _mm256_loadu_ps(reciprocal + 8 * v)), all->low, all->high);
    const __m256i rounded = _mm256_cvtps_epi32(q);
    off = _mm256_max_ps(off, _mm256_and_ps(_mm256_sub_ps(q, _mm256_cvtepi32_ps(rounded)), magnitude_mask));
    whole[v] = _mm256_add_epi32(rounded, all->zero);
  }
  const __m256i wild = _mm256_cmpgt_epi32(largest, _mm256_set1_epi32(0x7f7fffff)); /* infs and nans */
  const __m256 unsure = _mm256_cmp_ps(off, _mm256_set1_ps(NPUMM_SURE), _CMP_GT_OQ);
  store_bytes(dst, whole);
  return !_mm256_movemask_ps(_mm256_or_ps(unsure, _mm256_castsi256_ps(wild)));
}

AVX2 static int quantize_columns(const float *src, int8_t *dst, int64_t n, const npumm_quantizers *how) {
  const int quick = n > 0 && how->usual && how->alike;
  const steps all = quick ? steps_of(&(npumm_quantizer){1.0f, how->low[0], how->high[0], how->zero[0]}) : (steps){0};
  int finite = 1;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    if (quick && quantize_alike_32(src + i, how->reciprocal + i, dst + i, &all)) continue;
    const steps own[4] = {steps_at(how, i), steps_at(how, i + 8), steps_at(how, i + 16), steps_at(how, i + 24)};
    finite &= quantize_32(src + i, dst + i, own, 1, how->usual);
  }
  if (i == n) return finite;
  const npumm_quantizers rest = {how->scale + i, how->reciprocal + i, how->low + i, how->high + i,
                                 how->zero + i,  how->usual,          how->alike};
  return npumm_rows_scalar.quantize_columns(src + i, dst + i, n - i, &rest) && finite;
}

AVX2 static void absmax_columns(const float *src, int64_t n, uint32_t *largest) {
  const __m256i magnitude_mask = _mm256_set1_epi32(0x7fffffff);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256i *most = (__m256i *)(void *)(largest + i);
    const __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)(src + i));
    _mm256_storeu_si256(most, _mm256_max_epu32(_mm256_loadu_si256(most), _mm256_and_si256(bits, magnitude_mask)));
  }
  npumm_rows_scalar.absmax_columns(src + i, n - i, largest + i);
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

AVX2 static void pair_columns(const int8_t *even, const int8_t *odd, uint8_t *dst, int64_t n, int high,
                              int high_first) {
  const int8_t *lower = high_first ? odd : even, *upper = high_first ? even : odd;
  const __m256i bias = _mm256_set1_epi8(high ? 8 : 0), nibble = _mm256_set1_epi8(0x0f);
  const __m128i right = _mm_cvtsi32_si128(high ? 4 : 0), left = _mm_cvtsi32_si128(high ? 0 : 4);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i a = _mm256_add_epi8(_mm256_loadu_si256((const __m256i *)(lower + i)), bias);
    const __m256i b = _mm256_add_epi8(_mm256_loadu_si256((const __m256i *)(upper + i)), bias);
    const __m256i low = _mm256_and_si256(_mm256_srl_epi16(a, right), nibble);
    _mm256_storeu_si256((__m256i *)(dst + i),
                        _mm256_or_si256(low, _mm256_andnot_si256(nibble, _mm256_sll_epi16(b, left))));
  }
  npumm_rows_scalar.pair_columns(even + i, odd + i, dst + i, n - i, high, high_first);
}

AVX2 void npumm_copy_columns_avx2(const npumm_columns *of, const char *src, char *dst, int64_t pitch) {
  const npumm_columns all = *of; /* which no store can change */
  const int64_t whole = all.bytes / 64 * 64, rest = all.bytes - whole;
  for (int64_t c = 0; c < all.cols; c++, src += all.stride, dst += pitch) {
    npumm_ask_ahead(&all, src, c);
    for (int64_t i = 0; i < whole; i += 64) {
      const __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)(src + i));
      const __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(src + i + 32));
      _mm256_storeu_si256((__m256i *)(void *)(dst + i), a);
      _mm256_storeu_si256((__m256i *)(void *)(dst + i + 32), b);
    }
    if (rest) memcpy(dst + whole, src + whole, (size_t)rest);
  }
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

/* As bits, which are in the order of magnitudes: infs and nans above all others. */
AVX2 static float absmax(const float *src, int64_t n, int *finite) {
  const __m256i magnitude_mask = _mm256_set1_epi32(0x7fffffff);
  __m256i most[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    for (int v = 0; v < 4; v++) {
      const __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)(src + i + 8 * v));
      most[v] = _mm256_max_epu32(most[v], _mm256_and_si256(bits, magnitude_mask));
    }
  }
  const __m256i all = _mm256_max_epu32(_mm256_max_epu32(most[0], most[1]), _mm256_max_epu32(most[2], most[3]));
  float lanes[8];
  _mm256_storeu_si256((__m256i *)(void *)lanes, all);
  float largest = 0.0f;
  int ordinary = 1;
  for (int lane = 0; lane < 8; lane++) {
    ordinary &= lanes[lane] <= 3.402823466e+38f;
    largest = lanes[lane] > largest ? lanes[lane] : largest;
  }
  if (!ordinary) return npumm_rows_scalar.absmax(src, n, finite); /* which passes over infs and nans */
  const float rest = npumm_rows_scalar.absmax(src + i, n - i, finite);
  return rest > largest ? rest : largest;
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

const npumm_row_kernels npumm_rows_avx2 = {"avx2",
                                           f32_to_f16,
                                           f32_to_f16_high,
                                           f32_to_f16_low,
                                           quantize,
                                           quantize_columns,
                                           pairs,
                                           pair_columns,
                                           sum,
                                           absmax,
                                           minmax,
                                           absmax_columns,
                                           npumm_copy_columns_avx2,
                                           npumm_transpose_avx2,
                                           npumm_pieces_avx2};
#else
typedef int npumm_rows_avx2_is_empty_here;
#endif
