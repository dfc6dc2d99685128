/* The inner loops of products for AVX-512 with VNNI. The functions carry the target themselves. */
#if defined(__x86_64__)

#include <immintrin.h>

#include "multiply.h"

#define TARGET __attribute__((target("avx512f,avx512vnni,avx2,fma,f16c")))
#define INLINE __attribute__((always_inline, target("avx512f,avx512vnni,avx2,fma,f16c"))) static inline

/* ---- floats -------------------------------------------------------------------------------------------------------- */

#define VECTOR __m512
#define PARTS 1
#define ROWS 4
#define COLUMNS 4
#define ALONE 16

INLINE __m512 load_floats(const float *p) { return _mm512_loadu_ps(p); }
INLINE __m512 zero_floats(void) { return _mm512_setzero_ps(); }
INLINE __m512 add_products(__m512 sum, __m512 x, __m512 y) { return _mm512_fmadd_ps(x, y, sum); }

/* enum of multiply_floats.h: 0 halves, 1 bytes, 2 nibbles */
INLINE void load_b(const int kind, const uint8_t *column, int64_t group, const int half, __m512 *y) {
  if (kind == 0) {
    y[0] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(column + 32 * group)));
    return;
  }
  __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(column + (kind == 1 ? group : group / 2) * 16));
  if (kind == 2) {
    const __m128i sign = _mm_set1_epi8(8);
    if (half) x = _mm_srli_epi16(x, 4);
    x = _mm_sub_epi8(_mm_xor_si128(_mm_and_si128(x, _mm_set1_epi8(15)), sign), sign);
  }
  y[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x));
}

INLINE float sum_lanes(const __m512 *sums) {
  const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(sums[0]), 1));
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sums[0]), upper);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#include "multiply_floats.h"

TARGET static void halves_to_floats(const uint16_t *halves, float *out, int64_t count) {
  npumm_multipliers_avx2.halves_to_floats(halves, out, count);
}

/* ---- integers: B is made unsigned for vpdpbusd, which adds 128 or 8 times the sum of A's row ------------------------ */

#define INTS_MOST 16

INLINE __m512i load_512(const void *p) { return _mm512_loadu_si512(p); }

INLINE __m512i twice(const int8_t *p) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

INLINE __m512i four_times(const int8_t *p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* A vector holds two columns of 32 places. */
INLINE void i8_block(const int8_t *a, int64_t a_stride, const int32_t *row_sums, npumm_tile_column tiles, int64_t n,
                     int32_t *c, int64_t c_stride, const int rows, const int vectors) {
  const __m512i sign = _mm512_set1_epi32((int32_t)0x80808080u);
  __m512i sums[INTS_MOST];
#pragma GCC unroll 16
  for (int i = 0; i < rows * vectors; i++) sums[i] = _mm512_setzero_si512();
  const uint8_t *first = tiles.b + n * 32;
  const int8_t *x = a;
  for (int64_t t = 0; t < tiles.k_tiles; t++, first += tiles.tile_n * 32, x += 32) {
    __m512i y[16];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
      y[v] = _mm512_xor_si512(load_512(first + 64 * v), sign);
      if (rows > 1) _mm_prefetch((const char *)first + 64 * (vectors + v), _MM_HINT_T0); /* the next columns */
      else if (v % 2 == 0) _mm_prefetch((const char *)first + NPUMM_AHEAD + 64 * v, _MM_HINT_T1);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
      const __m512i of_row = twice(x + r * a_stride);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; v++) {
        sums[r * vectors + v] = _mm512_dpbusd_epi32(sums[r * vectors + v], y[v], of_row);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++) {
    const __m128i less = _mm_set1_epi32((int32_t)(128u * (uint32_t)row_sums[r]));
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v += 2) {
      const __m512i *own = sums + r * vectors + v;
      const __m256i v0 = _mm512_castsi512_si256(own[0]), v1 = _mm512_extracti64x4_epi64(own[0], 1);
      const __m256i v2 = _mm512_castsi512_si256(own[1]), v3 = _mm512_extracti64x4_epi64(own[1], 1);
      const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(v0, v1), _mm256_hadd_epi32(v2, v3));
      const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
      _mm_storeu_si128((__m128i *)(void *)(c + r * c_stride + n + 2 * v), _mm_sub_epi32(four, less));
    }
  }
}

TARGET static void i8_by_32(const int8_t *a, int64_t a_stride, const int32_t *row_sums, int64_t rows,
                            npumm_tile_column tiles, int32_t *c, int64_t c_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    for (int64_t n = 0; n < tiles.tile_n; n += 8) {
      i8_block(a + r * a_stride, a_stride, row_sums + r, tiles, n, c + r * c_stride, c_stride, 4, 4);
    }
  }
  for (; r + 2 <= rows; r += 2) {
    for (int64_t n = 0; n < tiles.tile_n; n += 8) {
      i8_block(a + r * a_stride, a_stride, row_sums + r, tiles, n, c + r * c_stride, c_stride, 2, 4);
    }
  }
  for (; r < rows; r++) {
    int64_t n = 0;
    for (; n + 32 <= tiles.tile_n; n += 32) { /* whole tiles: B is read as it lies in memory */
      i8_block(a + r * a_stride, a_stride, row_sums + r, tiles, n, c + r * c_stride, c_stride, 1, 16);
    }
    for (; n < tiles.tile_n; n += 16) {
      i8_block(a + r * a_stride, a_stride, row_sums + r, tiles, n, c + r * c_stride, c_stride, 1, 8);
    }
  }
}

/* Sums of the four lanes of each column in four vectors, in the order of the columns. */
INLINE __m512i sums_of_fours(const __m512i *v) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i v01 = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const __m512i v23 = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(v01, v23), _mm512_unpackhi_epi64(v01, v23));
  return _mm512_permutexvar_epi32(order, all); /* column 4 v + i stands at place 4 i + v */
}

/* A vector holds four columns of 32 places. */
INLINE void i4_block(const int8_t *a, int64_t a_stride, const int32_t *row_sums, npumm_tile_column tiles, int64_t n,
                     int32_t *c, int64_t c_stride, const int rows, const int vectors) {
  const __m512i sign = _mm512_set1_epi32((int32_t)0x88888888u), nibble = _mm512_set1_epi32(0x0f0f0f0f);
  __m512i sums[INTS_MOST];
#pragma GCC unroll 16
  for (int i = 0; i < rows * vectors; i++) sums[i] = _mm512_setzero_si512();
  const uint8_t *first = tiles.b + n * 16;
  const int8_t *x = a;
  for (int64_t t = 0; t < tiles.k_tiles; t++, first += tiles.tile_n * 16, x += 32) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
      if (rows > 1) _mm_prefetch((const char *)first + 64 * (vectors + v), _MM_HINT_T0); /* the next columns */
      else if (v % 2 == 0) _mm_prefetch((const char *)first + NPUMM_AHEAD + 64 * v, _MM_HINT_T1);
      const __m512i y = _mm512_xor_si512(load_512(first + 64 * v), sign);
      const __m512i low = _mm512_and_si512(y, nibble), high = _mm512_and_si512(_mm512_srli_epi32(y, 4), nibble);
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) {
        __m512i *sum = &sums[r * vectors + v];
        *sum = _mm512_dpbusd_epi32(*sum, low, four_times(x + r * a_stride));
        *sum = _mm512_dpbusd_epi32(*sum, high, four_times(x + r * a_stride + 16));
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++) {
    const __m512i less = _mm512_set1_epi32((int32_t)(8u * (uint32_t)row_sums[r]));
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v += 4) {
      const __m512i sixteen = sums_of_fours(sums + r * vectors + v);
      _mm512_storeu_si512(c + r * c_stride + n + 4 * v, _mm512_sub_epi32(sixteen, less));
    }
  }
}

TARGET static void i4_by_32(const int8_t *a, int64_t a_stride, const int32_t *row_sums, int64_t rows,
                            npumm_tile_column tiles, int32_t *c, int64_t c_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    for (int64_t n = 0; n < tiles.tile_n; n += 16) {
      i4_block(a + r * a_stride, a_stride, row_sums + r, tiles, n, c + r * c_stride, c_stride, 4, 4);
    }
  }
  for (; r + 2 <= rows; r += 2) {
    for (int64_t n = 0; n < tiles.tile_n; n += 16) {
      i4_block(a + r * a_stride, a_stride, row_sums + r, tiles, n, c + r * c_stride, c_stride, 2, 4);
    }
  }
  for (; r < rows; r++) {
    int64_t n = 0;
    for (; n + 64 <= tiles.tile_n; n += 64) { /* whole tiles: B is read as it lies in memory */
      i4_block(a + r * a_stride, a_stride, row_sums + r, tiles, n, c + r * c_stride, c_stride, 1, 16);
    }
    for (; n + 32 <= tiles.tile_n; n += 32) {
      i4_block(a + r * a_stride, a_stride, row_sums + r, tiles, n, c + r * c_stride, c_stride, 1, 8);
    }
    for (; n < tiles.tile_n; n += 16) {
      i4_block(a + r * a_stride, a_stride, row_sums + r, tiles, n, c + r * c_stride, c_stride, 1, 4);
    }
  }
}

/* The tiles of all chips are 32 deep where A holds integers; others are for AVX2. */
static void i8(const int8_t *a, int64_t a_stride, const int32_t *row_sums, int64_t rows, npumm_tile_column tiles,
               int32_t *c, int64_t c_stride) {
  npumm_int_loop *loop = tiles.tile_k == 32 ? i8_by_32 : npumm_multipliers_avx2.i8;
  loop(a, a_stride, row_sums, rows, tiles, c, c_stride);
}

static void i4(const int8_t *a, int64_t a_stride, const int32_t *row_sums, int64_t rows, npumm_tile_column tiles,
               int32_t *c, int64_t c_stride) {
  npumm_int_loop *loop = tiles.tile_k == 32 ? i4_by_32 : npumm_multipliers_avx2.i4;
  loop(a, a_stride, row_sums, rows, tiles, c, c_stride);
}

const npumm_multipliers npumm_multipliers_avx512 = {
    .name = "avx512",
    .i8 = i8,
    .i4 = i4,
    .f16 = f16,
    .f16_i8 = f16_i8,
    .f16_i4 = f16_i4,
    .halves_to_floats = halves_to_floats,
};

#else
typedef int npumm_multipliers_avx512_are_for_x86_64; /* C asks for something in every file */
#endif
