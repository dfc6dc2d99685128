/*
 * Instructions of AVX-512 and AMX that the loops use, against values worked out by hand from Intel's documentation: those of the
 * processor where it has them, or what stands in for them where they are emulated (tools/c_tests.py). Compile:
 * gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_intrinsics.c native/kernels/checksum_scalar.c
 */
#include <stdint.h>
#include <string.h>

#include "count.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <math.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))

#define SAME(vector, ...)                              \
  do {                                                 \
    __typeof__(vector) is = (vector);                  \
    HOLDS(memcmp(&is, (__VA_ARGS__), sizeof is) == 0); \
  } while (0)

#define ROUND (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

/* 0, 1, 2, ... of 32 bits. */
TARGET static __m512i counted(void) { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

TARGET static void conversions(void) {
  /* 1, -2, the least normal and subnormal halves, the largest one, infinities; twice */
  const uint16_t halves[16] = {0x3c00, 0xc000, 0x0400, 0x0001, 0x7bff, 0x7c00, 0xfc00, 0x8000,
                               0xfc00, 0x7bff, 0x0001, 0x0400, 0xc000, 0x3c00, 0x3555, 0x0000};
  const float floats[16] = {1.0f,      -2.0f,    0x1p-14f, 0x1p-24f, 65504.0f, INFINITY, -INFINITY,   -0.0f,
                            -INFINITY, 65504.0f, 0x1p-24f, 0x1p-14f, -2.0f,    1.0f,     0x1.554p-2f, 0.0f};
  SAME(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)halves)), floats);
  SAME(_mm512_cvtps_ph(_mm512_loadu_ps(floats), ROUND), halves);
  /* ties: to even; 65520 is the first that becomes infinite */
  const float ties[16] = {1.0f + 0x1p-11f, 1.0f + 0x3p-11f, 65519.0f, 65520.0f, 0x1p-25f, 0x3p-25f, -0x1p-25f, 1.0f};
  const uint16_t rounded[16] = {0x3c00, 0x3c02, 0x7bff, 0x7c00, 0x0000, 0x0002, 0x8000, 0x3c00};
  SAME(_mm512_cvtps_ph(_mm512_loadu_ps(ties), ROUND), rounded);

  const int32_t integers[16] = {0, -1, 1, 127, -128, 16777217, -2147483647 - 1, 2147483647, 5, 6, 7, 8, 9, 10, 11, -12};
  const float as_floats[16] = {0, -1, 1, 127, -128, 16777216.0f, -0x1p31f, 0x1p31f, 5, 6, 7, 8, 9, 10, 11, -12};
  SAME(_mm512_cvtepi32_ps(_mm512_loadu_si512(integers)), as_floats);
  const uint8_t low_bytes[16] = {0, 255, 1, 127, 128, 1, 0, 255, 5, 6, 7, 8, 9, 10, 11, 244};
  SAME(_mm512_cvtepi32_epi8(_mm512_loadu_si512(integers)), low_bytes);

  const float quotients[16] = {0.5f,     1.5f, 2.5f, -0.5f, -1.5f, 0.49999997f, NAN, 0x1p31f,
                               -0x1p31f, 3,    4,    5,     6,     7,           8,   -9};
  const int32_t whole[16] = {0, 2, 2, 0, -2, 0, INT32_MIN, INT32_MIN, INT32_MIN, 3, 4, 5, 6, 7, 8, -9};
  SAME(_mm512_cvtps_epi32(_mm512_loadu_ps(quotients)), whole);

  const int8_t bytes[32] = {0, -1, 127, -128, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, -15, 16, -17};
  int32_t wide[16];
  uint16_t words[32];
  for (int i = 0; i < 16; i++) wide[i] = bytes[i];
  for (int i = 0; i < 32; i++) words[i] = (uint8_t)bytes[i];
  SAME(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)bytes)), wide);
  SAME(_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)bytes)), words);
  uint8_t back[32];
  for (int i = 0; i < 32; i++) words[i] = (uint16_t)(words[i] | 0x4200), back[i] = (uint8_t)bytes[i];
  SAME(_mm512_cvtepi16_epi8(_mm512_loadu_si512(words)), back);
}

TARGET static void places(void) {
  const int32_t hundred[16] = {100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115};
  const __m512i a = counted(), b = _mm512_loadu_si512(hundred);
  SAME(_mm512_shuffle_i64x2(a, b, 0x88),
       (const int32_t[]){0, 1, 2, 3, 8, 9, 10, 11, 100, 101, 102, 103, 108, 109, 110, 111});
  SAME(_mm512_shuffle_i64x2(a, b, 0xdd),
       (const int32_t[]){4, 5, 6, 7, 12, 13, 14, 15, 104, 105, 106, 107, 112, 113, 114, 115});
  SAME(_mm512_castps_si512(_mm512_shuffle_f32x4(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0x1b)),
       (const int32_t[]){12, 13, 14, 15, 8, 9, 10, 11, 104, 105, 106, 107, 100, 101, 102, 103});
  SAME(_mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0x88)),
       (const int32_t[]){0, 2, 100, 102, 4, 6, 104, 106, 8, 10, 108, 110, 12, 14, 112, 114});
  SAME(_mm512_unpacklo_epi32(a, b),
       (const int32_t[]){0, 100, 1, 101, 4, 104, 5, 105, 8, 108, 9, 109, 12, 112, 13, 113});
  SAME(_mm512_unpackhi_epi64(a, b),
       (const int32_t[]){2, 3, 102, 103, 6, 7, 106, 107, 10, 11, 110, 111, 14, 15, 114, 115});
  const __m512i order = _mm512_setr_epi32(0, 16, 1, 17, 15, 31, 14, 30, 2, 2, 18, 18, 47, 32, 9, 25);
  SAME(_mm512_permutex2var_epi32(a, order, b),
       (const int32_t[]){0, 100, 1, 101, 15, 115, 14, 114, 2, 2, 102, 102, 15, 0, 9, 109});
  SAME(_mm512_permutexvar_epi32(order, b),
       (const int32_t[]){100, 100, 101, 101, 115, 115, 114, 114, 102, 102, 102, 102, 115, 100, 109, 109});
  int16_t words[32], turned[32];
  for (int i = 0; i < 32; i++) words[i] = (int16_t)(31 - i), turned[i] = (int16_t)(1000 + 31 - i);
  int16_t thousands[32];
  for (int i = 0; i < 32; i++) thousands[i] = (int16_t)(1000 + i);
  SAME(_mm512_permutexvar_epi16(_mm512_loadu_si512(words), _mm512_loadu_si512(thousands)), turned);
  SAME(_mm512_inserti64x4(a, _mm512_castsi512_si256(b), 1),
       (const int32_t[]){0, 1, 2, 3, 4, 5, 6, 7, 100, 101, 102, 103, 104, 105, 106, 107});
  SAME(_mm512_extracti64x4_epi64(b, 1), (const int32_t[]){108, 109, 110, 111, 112, 113, 114, 115});
  SAME(_mm512_extractf32x8_ps(_mm512_castsi512_ps(b), 1), (const int32_t[]){108, 109, 110, 111, 112, 113, 114, 115});
  SAME(_mm512_zextsi128_si512(_mm256_castsi256_si128(_mm512_castsi512_si256(b))),
       (const int32_t[16]){100, 101, 102, 103});
  SAME(_mm512_broadcast_i32x4(_mm_setr_epi32(1, 2, 3, 4)),
       (const int32_t[]){1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4});
}

TARGET static void integers(void) {
  /* bytes without a sign times bytes with one, four of them added to what is there, modulo 2^32 */
  const __m512i a = _mm512_set1_epi32((int32_t)0xff8001ffu), b = _mm512_set1_epi32((int32_t)0x807f80ffu);
  const int32_t four = 255 * -1 + 1 * -128 + 128 * 127 + 255 * -128;
  SAME(_mm512_dpbusd_epi32(_mm512_set1_epi32(7), a, b),
       (const int32_t[]){7 + four, 7 + four, 7 + four, 7 + four, 7 + four, 7 + four, 7 + four, 7 + four, 7 + four,
                         7 + four, 7 + four, 7 + four, 7 + four, 7 + four, 7 + four, 7 + four});
  const __m512i least =
      _mm512_dpbusd_epi32(_mm512_set1_epi32(INT32_MIN), _mm512_set1_epi32(255), _mm512_set1_epi32(128));
  HOLDS(_mm_cvtsi128_si32(_mm256_castsi256_si128(_mm512_castsi512_si256(least))) ==
        INT32_MAX - 32639); /* not saturated */
  int16_t pairs[32];
  for (int i = 0; i < 32; i++) pairs[i] = i % 2 ? 15 * 16 + 3 : 7 * 16 + 2;
  uint8_t nibbles[64];
  for (int i = 0; i < 64; i++) nibbles[i] = (const uint8_t[]){2, 7, 3, 15}[i % 4];
  SAME(_mm512_maddubs_epi16(_mm512_loadu_si512(nibbles), _mm512_set1_epi16(0x1001)), pairs);
  const int32_t signs[16] = {-1, -2, 5, INT32_MIN, 1};
  SAME(_mm512_srai_epi32(_mm512_loadu_si512(signs), 1), (const int32_t[16]){-1, -1, 2, INT32_MIN / 2, 0});
  const uint32_t large[16] = {0x7f800000u, 0x80000000u, 0, 0xffffffffu, 3};
  HOLDS(_mm512_testn_epi32_mask(_mm512_loadu_si512(signs), _mm512_set1_epi32(4)) == 0xfff8);
  SAME(_mm512_castps_si512(_mm512_permute_ps(_mm512_castsi512_ps(counted()), 0xb1)),
       (const int32_t[]){1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
  HOLDS(_mm512_cmpgt_epu32_mask(_mm512_loadu_si512(large), _mm512_set1_epi32(0x7f7fffff)) == 0xb);
  HOLDS(_mm512_reduce_max_epu32(_mm512_loadu_si512(large)) == 0xffffffffu);
  const __m256i shorts = _mm256_setr_epi16(0, 1, -1, 2, 32767, -32768, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9);
  HOLDS(_mm256_cmpgt_epi16_mask(shorts, _mm256_setzero_si256()) == 0x801a);
  SAME(_mm512_ternarylogic_epi64(counted(), _mm512_set1_epi32(5), _mm512_set1_epi32(6), 0x96),
       (const int32_t[]){3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12});
  SAME(_mm512_max_epu32(_mm512_loadu_si512(large), _mm512_set1_epi32(4)),
       (const uint32_t[]){0x7f800000u, 0x80000000u, 4, 0xffffffffu, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4});
  _Alignas(64) int32_t past[16];
  _mm512_stream_si512((void *)past, counted());
  _mm_sfence();
  SAME(counted(), past);
}

TARGET static float first(__m512 x) { return _mm_cvtss_f32(_mm256_castps256_ps128(_mm512_castps512_ps256(x))); }

TARGET static void floats(void) {
  /* fused: 1 + 2^-23 squared, less 1 + 2^-22, is 2^-46 */
  const __m512 near = _mm512_set1_ps(1.0f + 0x1p-23f);
  HOLDS(first(_mm512_fmadd_ps(near, near, _mm512_set1_ps(-1.0f - 0x1p-22f))) == 0x1p-46f);
  const float mixed[16] = {0.5f, -3.0f, 2.5f, 1.25f, -1.75f, 8388609.0f, INFINITY, NAN, 9, -9, 1, 1, 1, 1, 1, 1};
  const __m512 x = _mm512_loadu_ps(mixed);
  float left[16], larger[16];
  _mm512_storeu_ps(left, _mm512_reduce_ps(x, ROUND)); /* beside the nearest whole number, ties to even */
  const float nearest[] = {0.5f, 0.0f, 0.5f, 0.25f, 0.25f, 0.0f, 0.0f};
  for (int i = 0; i < 7; i++) HOLDS(left[i] == nearest[i]);
  HOLDS(isnan(left[7]));
  _mm512_storeu_ps(larger,
                   _mm512_range_ps(_mm512_set1_ps(-2.0f), x, 0x0b)); /* the larger magnitude, without its sign */
  const float magnitudes[] = {2, 3, 2.5f, 2, 2, 8388609.0f, INFINITY, 2, 9, 9, 2};
  for (int i = 0; i < 11; i++) HOLDS(larger[i] == magnitudes[i] && !signbit(larger[i]));
  HOLDS(_mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(3.402823466e+38f), _CMP_LE_OQ) == 0xff3f);
  HOLDS(_mm512_cmp_ps_mask(x, _mm512_set1_ps(1.0f), _CMP_GT_OQ) == 0x016c);
  /* of a nan and a number max and min give the second */
  HOLDS(first(_mm512_max_ps(_mm512_set1_ps(NAN), near)) == 1.0f + 0x1p-23f);
  HOLDS(isnan(first(_mm512_min_ps(near, _mm512_set1_ps(NAN)))));
  const float finite[16] = {1, -7, 3, 4, 5, 6, 7, 8, 9, 30, 11, 12, 13, 14, 15, 2};
  HOLDS(_mm512_reduce_max_ps(_mm512_loadu_ps(finite)) == 30 && _mm512_reduce_min_ps(_mm512_loadu_ps(finite)) == -7);
  SAME(_mm512_mask_sub_ps(near, 6, _mm512_loadu_ps(finite), _mm512_set1_ps(1.0f)),
       (const float[]){1.0f + 0x1p-23f, -8, 2, 1.0f + 0x1p-23f, 1.0f + 0x1p-23f, 1.0f + 0x1p-23f, 1.0f + 0x1p-23f,
                       1.0f + 0x1p-23f, 1.0f + 0x1p-23f, 1.0f + 0x1p-23f, 1.0f + 0x1p-23f, 1.0f + 0x1p-23f,
                       1.0f + 0x1p-23f, 1.0f + 0x1p-23f, 1.0f + 0x1p-23f, 1.0f + 0x1p-23f});
}

/* Two rows of four bytes with a sign, times two columns: sums modulo 2^32 in a corner of the tile. */
#if defined(NPUMATMUL_EMULATED_TILES_H)
static void tiles(void) {
  const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shapes = {.palette = 1, .row_bytes = {8, 8, 8}, .rows = {2, 2, 2}};
  const int8_t a[2][8] = {{1, 2, 3, 4, 5, 6, 7, 8}, {-128, -128, -128, -128, 0, 0, 0, 1}};
  const int8_t b[2][2][4] = {{{1, 1, 1, 1}, {-128, -128, -128, -128}}, {{2, 0, 0, -1}, {0, 0, 0, 127}}};
  int32_t c[2][3] = {{100, 200, 9}, {-5, INT32_MAX, 9}};
  const int32_t expected[2][3] = {{100 + 10 + 10 - 8, 200 - 1280 + 1016, 9},
                                  {-5 - 512 - 1, INT32_MIN + 65535 + 127, 9}};
  _tile_loadconfig(&shapes);
  _tile_loadd(0, c, sizeof c[0]);
  _tile_loadd(1, a, sizeof a[0]);
  _tile_loadd(2, b, sizeof b[0]);
  _tile_dpbssd(0, 1, 2);
  _tile_stored(0, c, sizeof c[0]);
  _tile_release();
  HOLDS(memcmp(c, expected, sizeof c) == 0);
}
#else
static void tiles(void) {}
#endif

static void instructions(void) {
  const int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  if (!wide || !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vnni")) return;
  conversions();
  places();
  integers();
  floats();
  tiles();
}
#else
static void instructions(void) {}
#endif

int main(void) {
  HOLDS(sizeof(float) == 4); /* where a processor has none of them */
  instructions();
  return report("test_intrinsics");
}
