/* Row kernels for x86-64 with AVX-512; the tail of each row goes through those for AVX2. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "rows.h"
#include "transpose.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")))
#define ROUND (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

AVX512 static inline __m512i bits_at(const float *src) { return _mm512_loadu_si512((const void *)src); }
AVX512 static inline __m512i magnitude_of(__m512i bits) {
  return _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
}
AVX512 static inline void store_halves(uint16_t *dst, __m256i halves) {
  _mm256_storeu_si256((__m256i *)(void *)dst, halves);
}

AVX512 static void f32_to_f16(const float *src, uint16_t *dst, int64_t n, float scale) {
  const __m512 factor = _mm512_set1_ps(scale);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    store_halves(dst + i, _mm512_cvtps_ph(_mm512_mul_ps(_mm512_loadu_ps(src + i), factor), ROUND));
    store_halves(dst + i + 16, _mm512_cvtps_ph(_mm512_mul_ps(_mm512_loadu_ps(src + i + 16), factor), ROUND));
  }
  npumm_rows_avx2.f32_to_f16(src + i, dst + i, n - i, scale);
}

AVX512 static void f32_to_f16_high(const float *src, uint16_t *dst, int64_t n, float scale) {
  const __m512 factor = _mm512_set1_ps(scale);
  const __m256i magnitude_mask = _mm256_set1_epi16(0x7fff), limit = _mm256_set1_epi16(0x7bff);
  const __m256i one = _mm256_set1_epi16(0x3c00);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i half = _mm512_cvtps_ph(_mm512_mul_ps(_mm512_loadu_ps(src + i), factor), ROUND);
    const __mmask16 wild = _mm256_cmpgt_epi16_mask(_mm256_and_si256(half, magnitude_mask), limit);
    const __m256i unit = _mm256_or_si256(_mm256_andnot_si256(magnitude_mask, half), one);
    store_halves(dst + i, _mm256_mask_blend_epi16(wild, half, unit));
  }
  npumm_rows_avx2.f32_to_f16_high(src + i, dst + i, n - i, scale);
}

AVX512 static void f32_to_f16_low(const float *src, uint16_t *dst, int64_t n, float scale) {
  const __m512 factor = _mm512_set1_ps(scale), limit = _mm512_set1_ps(65504.0f);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(src + i), factor);
    const __m512 high = _mm512_cvtph_ps(_mm512_cvtps_ph(x, ROUND));
    const __mmask16 is_finite = _mm512_cmp_ps_mask(_mm512_abs_ps(high), limit, _CMP_LE_OQ);
    store_halves(dst + i, _mm512_cvtps_ph(_mm512_mask_sub_ps(high, is_finite, x, high), ROUND));
  }
  npumm_rows_avx2.f32_to_f16_low(src + i, dst + i, n - i, scale);
}

typedef struct {
  __m512 scale, reciprocal, low, high;
  __m512i zero;
} steps;

AVX512 static inline steps steps_of(const npumm_quantizer *how) {
  const steps result = {_mm512_set1_ps(how->scale), _mm512_set1_ps(1.0f / how->scale), _mm512_set1_ps(how->low),
                        _mm512_set1_ps(how->high), _mm512_set1_epi32(how->zero)};
  return result;
}

AVX512 static inline steps steps_at(const npumm_quantizers *how, int64_t i) {
  const steps result = {_mm512_loadu_ps(how->scale + i), _mm512_loadu_ps(how->reciprocal + i),
                        _mm512_loadu_ps(how->low + i), _mm512_loadu_ps(how->high + i),
                        _mm512_loadu_si512((const void *)(how->zero + i))};
  return result;
}

/* Clamped before rounding: the same result, and no int overflow. max gives its second operand for a nan. */
AVX512 static inline __m512 clamped(__m512 quotient, const steps *s) {
  return _mm512_min_ps(_mm512_max_ps(quotient, s->low), s->high);
}

AVX512 static inline void store_bytes(int8_t *dst, __m512 quotient, const steps *s) {
  const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(quotient), s->zero);
  _mm_storeu_si128((__m128i *)(void *)dst, _mm512_cvtepi32_epi8(whole));
}

/* 64 values; steps[0] serves all of them, or each sixteen have their own. Returns whether all are finite. */
AVX512 static inline int quantize_64(const float *src, int8_t *dst, const steps *of, const int each, const int usual) {
  const __m512 limit = _mm512_set1_ps(3.402823466e+38f);
  if (usual) {
    __m512 off = _mm512_setzero_ps();
    __m512i largest = _mm512_setzero_si512();
    for (int v = 0; v < 4; v++) {
      const steps *s = &of[each * v];
      const __m512i bits = bits_at(src + 16 * v);
      largest = _mm512_max_epu32(largest, magnitude_of(bits));
      const __m512 q = clamped(_mm512_mul_ps(_mm512_castsi512_ps(bits), s->reciprocal), s);
      off = _mm512_range_ps(off, _mm512_reduce_ps(q, ROUND), 0x0b); /* the larger magnitude */
      store_bytes(dst + 16 * v, q, s);
    }
    const __mmask16 unsure = _mm512_cmp_ps_mask(off, _mm512_set1_ps(NPUMM_SURE), _CMP_GT_OQ);
    if (!(unsure | _mm512_cmpgt_epu32_mask(largest, _mm512_castps_si512(limit)))) return 1;
  }
  __mmask16 all_finite = 0xffff;
  for (int v = 0; v < 4; v++) {
    const steps *s = &of[each * v];
    const __m512 x = _mm512_loadu_ps(src + 16 * v);
    const __mmask16 is_finite = _mm512_cmp_ps_mask(_mm512_abs_ps(x), limit, _CMP_LE_OQ);
    all_finite &= is_finite;
    store_bytes(dst + 16 * v, _mm512_mask_blend_ps(is_finite, s->low, clamped(_mm512_div_ps(x, s->scale), s)), s);
  }
  return all_finite == 0xffff;
}

/* What a row's codes have in common: clamped as bytes, after narrowing with saturation. */
typedef struct {
  __m512 reciprocal, bias;
  __m512i low, high;
} codes;

/*
 * 64 values of a row, as long as all of them are sure. Codes are taken in steps of 2^-16, half a code more and four
 * steps, so that the upper halves are the codes; of what is not clamped the error is below three steps. Within four of a
 * half the lower halves are 0 to 7, and whatever is no integer of 32 bits becomes -2^31, whose lower half is 0, too.
 */
enum { STEPS = 1 << 16, HALF = STEPS / 2, MARGIN = 4, UNSURE = STEPS - 2 * MARGIN };
AVX512 static inline int quantize_64_surely(const float *src, int8_t *dst, const codes *of) {
  const __m512i uppers = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                                          25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  __m512i fixed[4];
  __mmask16 unsure = 0;
  for (int v = 0; v < 4; v++) {
    fixed[v] = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_loadu_ps(src + 16 * v), of->reciprocal, of->bias));
    unsure |= _mm512_testn_epi32_mask(fixed[v], _mm512_set1_epi32(UNSURE));
  }
  if (unsure) return 0;
  const __m512i first = _mm512_permutex2var_epi16(fixed[0], uppers, fixed[1]);
  const __m512i second = _mm512_permutex2var_epi16(fixed[2], uppers, fixed[3]);
  __m512i bytes = _mm512_packs_epi16(first, second); /* of each half eight at a time */
  bytes = _mm512_min_epi8(_mm512_max_epi8(bytes, of->low), of->high);
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  _mm512_storeu_si512((void *)dst, _mm512_permutexvar_epi64(order, bytes));
  return 1;
}

/* The others. Apart, so that what these need takes no registers of the usual ones. */
__attribute__((noinline)) AVX512 static int divide_64(const float *src, int8_t *dst, const npumm_quantizer *how) {
  const steps all = steps_of(how);
  return quantize_64(src, dst, &all, 0, 0);
}

AVX512 static int quantize(const float *src, int8_t *dst, int64_t n, const npumm_quantizer *how) {
  const codes row = {_mm512_set1_ps(STEPS / how->scale), _mm512_set1_ps((float)(how->zero * STEPS + HALF + MARGIN)),
                     _mm512_set1_epi8((int8_t)((int32_t)how->low + how->zero)),
                     _mm512_set1_epi8((int8_t)((int32_t)how->high + how->zero))};
  const int usual = npumm_is_usual_scale(how->scale);
  int finite = 1;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    if (!usual || !quantize_64_surely(src + i, dst + i, &row)) finite &= divide_64(src + i, dst + i, how);
  }
  return npumm_rows_avx2.quantize(src + i, dst + i, n - i, how) && finite;
}

/* Four times 16 whole numbers, saturated to bytes, in the order that as_they_were undoes. */
AVX512 static inline __m512i saturated(const __m512i *whole) {
  return _mm512_packs_epi16(_mm512_packs_epi32(whole[0], whole[1]), _mm512_packs_epi32(whole[2], whole[3]));
}
AVX512 static inline __m512i as_they_were(__m512i bytes) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
}

/*
 * 64 values with reciprocals of their own, no zero point and bounds within int8. Each is rounded a little above and a
 * little below: where both are the same it is that. Returns 0 where they are not, or where one may be no number or beyond
 * int32, which becomes -128: then the values have to be looked at again.
 */
AVX512 static inline int quantize_alike_64(const float *src, const float *reciprocal, int8_t *dst, __m512i low,
                                           __m512i high) {
  const __m512 doubt = _mm512_set1_ps(0.5f - NPUMM_SURE);
  __m512i above[4], below[4];
  for (int v = 0; v < 4; v++) {
    const __m512 x = _mm512_loadu_ps(src + 16 * v), factor = _mm512_loadu_ps(reciprocal + 16 * v);
    above[v] = _mm512_cvtps_epi32(_mm512_fmadd_ps(x, factor, doubt));
    below[v] = _mm512_cvtps_epi32(_mm512_fmsub_ps(x, factor, doubt));
  }
  const __m512i bytes = saturated(above), others = saturated(below);
  _mm512_storeu_si512((void *)dst, as_they_were(_mm512_min_epi8(_mm512_max_epi8(bytes, low), high)));
  const __mmask64 same = _mm512_cmpeq_epi8_mask(bytes, others);
  return !(~same | _mm512_cmpeq_epi8_mask(others, _mm512_set1_epi8(-128)));
}

AVX512 static int quantize_columns(const float *src, int8_t *dst, int64_t n, const npumm_quantizers *how) {
  const int quick =
      n > 0 && how->usual && how->alike && how->zero[0] == 0 && how->low[0] >= -128.0f && how->high[0] <= 127.0f;
  const __m512i low = _mm512_set1_epi8(quick ? (char)(int)how->low[0] : 0);
  const __m512i high = _mm512_set1_epi8(quick ? (char)(int)how->high[0] : 0);
  int finite = 1;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    if (quick && quantize_alike_64(src + i, how->reciprocal + i, dst + i, low, high)) continue;
    const steps own[4] = {steps_at(how, i), steps_at(how, i + 16), steps_at(how, i + 32), steps_at(how, i + 48)};
    finite &= quantize_64(src + i, dst + i, own, 1, how->usual);
  }
  if (i == n) return finite; /* the usual length, and short enough that two more calls would tell */
  const npumm_quantizers rest = {how->scale + i, how->reciprocal + i, how->low + i, how->high + i,
                                 how->zero + i,  how->usual,          how->alike};
  return npumm_rows_avx2.quantize_columns(src + i, dst + i, n - i, &rest) && finite;
}

/* even * 1 + odd * 16, or the other way round, as 16-bit sums of neighbours */
AVX512 static inline __m512i paired(const int8_t *src, const int high, __m512i weights) {
  __m512i values = _mm512_loadu_si512((const void *)src);
  if (high) values = _mm512_srli_epi16(_mm512_add_epi8(values, _mm512_set1_epi8(8)), 4);
  return _mm512_maddubs_epi16(_mm512_and_si512(values, _mm512_set1_epi8(0x0f)), weights);
}

AVX512 static inline int64_t pair_up(const int8_t *src, uint8_t *dst, int64_t n, const int high, int high_first) {
  const __m512i weights = _mm512_set1_epi16(high_first ? 0x0110 : 0x1001);
  const __m512i order =
      _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7); /* of what packing takes from two registers in turn */
  int64_t i = 0;
  for (; i + 128 <= n; i += 128) {
    const __m512i bytes = _mm512_packus_epi16(paired(src + i, high, weights), paired(src + i + 64, high, weights));
    _mm512_storeu_si512((void *)(dst + i / 2), _mm512_permutexvar_epi64(order, bytes));
  }
  return i;
}

AVX512 static void pairs(const int8_t *src, uint8_t *dst, int64_t n, int high, int high_first) {
  const int64_t i = high ? pair_up(src, dst, n, 1, high_first) : pair_up(src, dst, n, 0, high_first);
  if (i < n) npumm_rows_avx2.pairs(src + i, dst + i / 2, n - i, high, high_first);
}

AVX512 static void pair_columns(const int8_t *even, const int8_t *odd, uint8_t *dst, int64_t n, int high,
                                int high_first) {
  const int8_t *lower = high_first ? odd : even, *upper = high_first ? even : odd;
  const __m512i bias = _mm512_set1_epi8(high ? 8 : 0), nibble = _mm512_set1_epi8(0x0f);
  const __m128i right = _mm_cvtsi32_si128(high ? 4 : 0), left = _mm_cvtsi32_si128(high ? 0 : 4);
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    const __m512i a = _mm512_add_epi8(_mm512_loadu_si512((const void *)(lower + i)), bias);
    const __m512i b = _mm512_add_epi8(_mm512_loadu_si512((const void *)(upper + i)), bias);
    const __m512i low = _mm512_and_si512(_mm512_srl_epi16(a, right), nibble);
    _mm512_storeu_si512((void *)(dst + i),
                        _mm512_or_si512(low, _mm512_andnot_si512(nibble, _mm512_sll_epi16(b, left))));
  }
  npumm_rows_avx2.pair_columns(even + i, odd + i, dst + i, n - i, high, high_first);
}

static int32_t sum(const int8_t *src, int64_t n) { return npumm_rows_avx2.sum(src, n); }

/* As bits, which are in the order of magnitudes: infs and nans above all others. */
AVX512 static float absmax(const float *src, int64_t n, int *finite) {
  __m512i most[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int v = 0; v < 4; v++) most[v] = _mm512_max_epu32(most[v], magnitude_of(bits_at(src + i + 16 * v)));
  }
  const __m512i all = _mm512_max_epu32(_mm512_max_epu32(most[0], most[1]), _mm512_max_epu32(most[2], most[3]));
  const uint32_t bits = _mm512_reduce_max_epu32(all);
  if (bits >= 0x7f800000u) return npumm_rows_avx2.absmax(src, n, finite); /* which passes over infs and nans */
  const float rest = npumm_rows_avx2.absmax(src + i, n - i, finite);
  const float largest = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128((int)bits)));
  return rest > largest ? rest : largest;
}

AVX512 static void minmax(const float *src, int64_t n, float range[2], int *finite) {
  const __m512 limit = _mm512_set1_ps(3.402823466e+38f);
  __m512 least = _mm512_set1_ps(range[0]), largest = _mm512_set1_ps(range[1]);
  __mmask16 all_finite = 0xffff;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 x = _mm512_loadu_ps(src + i);
    const __mmask16 is_finite = _mm512_cmp_ps_mask(_mm512_abs_ps(x), limit, _CMP_LE_OQ);
    all_finite &= is_finite;
    least = _mm512_mask_min_ps(least, is_finite, least, x);
    largest = _mm512_mask_max_ps(largest, is_finite, largest, x);
  }
  if (all_finite != 0xffff) *finite = 0;
  range[0] = _mm512_reduce_min_ps(least);
  range[1] = _mm512_reduce_max_ps(largest);
  npumm_rows_avx2.minmax(src + i, n - i, range, finite);
}

AVX512 static void absmax_columns(const float *src, int64_t n, uint32_t *largest) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512i most = _mm512_loadu_si512((const void *)(largest + i));
    _mm512_storeu_si512((void *)(largest + i), _mm512_max_epu32(most, magnitude_of(bits_at(src + i))));
  }
  npumm_rows_avx2.absmax_columns(src + i, n - i, largest + i);
}

const npumm_row_kernels npumm_rows_avx512 = {"avx512",
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
                                             npumm_transpose_avx512,
                                             npumm_pieces_avx512};
#else
typedef int npumm_rows_avx512_is_empty_here;
#endif
