/* The inner loops of products for AVX2 with FMA and F16C. The functions carry the target themselves. */
#if defined(__x86_64__)

#include <immintrin.h>

#include "multiply.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE __attribute__((always_inline, target("avx2,fma,f16c"))) static inline

/* ---- floats -------------------------------------------------------------------------------------------------------- */

#define VECTOR __m256
#define PARTS 2
#define ROWS 2
#define COLUMNS 2
#define ALONE 16

INLINE __m256 load_floats(const float *p) { return _mm256_loadu_ps(p); }
INLINE __m256 zero_floats(void) { return _mm256_setzero_ps(); }
INLINE __m256 add_products(__m256 sum, __m256 x, __m256 y) { return _mm256_fmadd_ps(x, y, sum); }

/* enum of multiply_floats.h: 0 halves, 1 bytes, 2 nibbles */
INLINE void load_b(const int kind, const uint8_t *column, int64_t group, const int half, __m256 *y) {
  if (kind == 0) {
    y[0] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(column + 32 * group)));
    y[1] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(column + 32 * group + 16)));
    return;
  }
  __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(column + (kind == 1 ? group : group / 2) * 16));
  if (kind == 2) {
    const __m128i sign = _mm_set1_epi8(8);
    if (half) x = _mm_srli_epi16(x, 4);
    x = _mm_sub_epi8(_mm_xor_si128(_mm_and_si128(x, _mm_set1_epi8(15)), sign), sign);
  }
  y[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x));
  y[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x)));
}

INLINE float sum_lanes(const __m256 *sums) {
  const __m256 eight = _mm256_add_ps(sums[0], sums[1]);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#include "multiply_floats.h"

TARGET static void halves_to_floats(const uint16_t *halves, float *out, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(halves + i))));
  }
  if (i < count) npumm_multipliers_scalar.halves_to_floats(halves + i, out + i, count - i);
}

/* ---- int8: widened to int16, products added in pairs by madd, which int32 holds exactly ----------------------------- */

#define INTS_MOST 8
#define ROW_COLUMNS 64

INLINE __m256i load_wide(const void *bytes) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)bytes)); }

/* Sums of the lanes of four vectors. */
INLINE __m128i add_lanes(__m256i v0, __m256i v1, __m256i v2, __m256i v3) {
  const __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(v0, v1), _mm256_hadd_epi32(v2, v3));
  return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

INLINE void i8_block(const int8_t *a, int64_t a_stride, npumm_tile_column tiles, int64_t n, int32_t *c,
                     int64_t c_stride, const int rows, const int columns) {
  __m256i sums[INTS_MOST];
#pragma GCC unroll 8
  for (int i = 0; i < rows * columns; i++) sums[i] = _mm256_setzero_si256();
  const uint8_t *first = tiles.b + n * tiles.tile_k;
  const int8_t *x = a;
  for (int64_t t = 0; t < tiles.k_tiles; t++, first += tiles.tile_n * tiles.tile_k) {
    for (int64_t k = 0; k < tiles.tile_k; k += 16, x += 16) {
      __m256i wide[4];
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) wide[r] = load_wide(x + r * a_stride);
#pragma GCC unroll 8
      for (int j = 0; j < columns; j++) {
        const __m256i y = load_wide(first + j * tiles.tile_k + k);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
          sums[r * columns + j] = _mm256_add_epi32(sums[r * columns + j], _mm256_madd_epi16(wide[r], y));
        }
      }
    }
  }
  if (columns == 2) { /* four rows */
    for (int r = 0; r < rows; r += 2) {
      int32_t four[4];
      _mm_storeu_si128((__m128i *)(void *)four,
                       add_lanes(sums[2 * r], sums[2 * r + 1], sums[2 * r + 2], sums[2 * r + 3]));
      c[r * c_stride + n] = four[0], c[r * c_stride + n + 1] = four[1];
      c[(r + 1) * c_stride + n] = four[2], c[(r + 1) * c_stride + n + 1] = four[3];
    }
    return;
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows * columns; i += 4) {
    _mm_storeu_si128((__m128i *)(void *)(c + i / columns * c_stride + n + i % columns),
                     add_lanes(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
  }
}

/*
 * One row by all columns of the tiles at once, so that B is read in the order in which it lies in memory, which is what
 * decides where it comes from there: eight columns at a time would come back to each tile for the next eight. The sums,
 * too many for registers, stay in the L1 cache. `columns` is known when it is compiled.
 */
INLINE void i8_row(const int8_t *a, npumm_tile_column tiles, int32_t *c, const int64_t columns) {
  __m256i sums[ROW_COLUMNS];
  for (int64_t n = 0; n < columns; n++) sums[n] = _mm256_setzero_si256();
  const uint8_t *tile = tiles.b;
  for (int64_t t = 0; t < tiles.k_tiles; t++, tile += columns * tiles.tile_k) {
    for (int64_t k = 0; k < tiles.tile_k; k += 32, a += 32) {
      const __m256i x0 = load_wide(a), x1 = load_wide(a + 16);
      const uint8_t *y = tile + k;
      for (int64_t n = 0; n < columns; n++, y += tiles.tile_k) {
        sums[n] = _mm256_add_epi32(
            sums[n], _mm256_add_epi32(_mm256_madd_epi16(x0, load_wide(y)), _mm256_madd_epi16(x1, load_wide(y + 16))));
      }
    }
  }
  for (int64_t n = 0; n < columns; n += 4) {
    _mm_storeu_si128((__m128i *)(void *)(c + n), add_lanes(sums[n], sums[n + 1], sums[n + 2], sums[n + 3]));
  }
}

TARGET static void i8(const int8_t *a, int64_t a_stride, const int32_t *row_sums, int64_t rows, npumm_tile_column tiles,
                      int32_t *c, int64_t c_stride) {
  (void)row_sums;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    for (int64_t n = 0; n < tiles.tile_n; n += 2) {
      i8_block(a + r * a_stride, a_stride, tiles, n, c + r * c_stride, c_stride, 4, 2);
    }
  }
  for (; r + 2 <= rows; r += 2) {
    for (int64_t n = 0; n < tiles.tile_n; n += 4) {
      i8_block(a + r * a_stride, a_stride, tiles, n, c + r * c_stride, c_stride, 2, 4);
    }
  }
  for (; r < rows; r++) {
    if (tiles.tile_n == 32) {
      i8_row(a + r * a_stride, tiles, c + r * c_stride, 32);
      continue;
    }
    if (tiles.tile_n == 64) {
      i8_row(a + r * a_stride, tiles, c + r * c_stride, 64);
      continue;
    }
    for (int64_t n = 0; n < tiles.tile_n; n += 8) {
      i8_block(a + r * a_stride, a_stride, tiles, n, c + r * c_stride, c_stride, 1, 8);
    }
  }
}

/* ---- int4: less by 8, so that bytes without a sign meet those of A in maddubs: sums stay below 2^15 ----------------- */

/* Four columns, whose sums are the halves of two vectors. */
INLINE void store_four(int32_t *c, const __m256i *sums, __m128i less) {
  /* half 0 of the sums of two vectors are columns 0 and 2, half 1 are columns 1 and 3 */
  const __m256i two = _mm256_hadd_epi32(sums[0], sums[1]), all = _mm256_hadd_epi32(two, two);
  const __m128i four = _mm_unpacklo_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  _mm_storeu_si128((__m128i *)(void *)c, _mm_sub_epi32(four, less));
}

/* A vector holds two columns of 32 places. */
INLINE void i4_block(const int8_t *a, int64_t a_stride, const int32_t *row_sums, npumm_tile_column tiles, int64_t n,
                     int32_t *c, int64_t c_stride, const int rows, const int vectors) {
  const __m256i sign = _mm256_set1_epi8((char)0x88), nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256i sums[INTS_MOST];
#pragma GCC unroll 8
  for (int i = 0; i < rows * vectors; i++) sums[i] = _mm256_setzero_si256();
  const int64_t column_bytes = tiles.tile_k / 2;
  const uint8_t *first = tiles.b + n * column_bytes;
  const int8_t *x = a;
  for (int64_t t = 0; t < tiles.k_tiles; t++, first += tiles.tile_n * column_bytes) {
    for (int64_t k = 0; k < column_bytes; k += 16, x += 32) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) {
        const uint8_t *pair = first + 2 * v * column_bytes + k;
        const __m256i y = _mm256_xor_si256(
            column_bytes == 16 ? _mm256_loadu_si256((const __m256i *)(const void *)pair)
                               : _mm256_loadu2_m128i((const __m128i *)(const void *)(pair + column_bytes),
                                                     (const __m128i *)(const void *)pair),
            sign);
        const __m256i low = _mm256_and_si256(y, nibble), high = _mm256_and_si256(_mm256_srli_epi16(y, 4), nibble);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
          const __m128i *row = (const __m128i *)(const void *)(x + r * a_stride);
          const __m256i of_low = _mm256_broadcastsi128_si256(_mm_loadu_si128(row));
          const __m256i of_high = _mm256_broadcastsi128_si256(_mm_loadu_si128(row + 1));
          const __m256i pairs =
              _mm256_add_epi16(_mm256_maddubs_epi16(low, of_low), _mm256_maddubs_epi16(high, of_high));
          sums[r * vectors + v] = _mm256_add_epi32(sums[r * vectors + v], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++) {
    const __m128i less = _mm_set1_epi32((int32_t)(8u * (uint32_t)row_sums[r]));
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v += 2) { store_four(c + r * c_stride + n + 2 * v, sums + r * vectors + v, less); }
  }
}

/* As `i8_row`; a vector holds two columns of 32 places, and `columns` is known when it is compiled. */
INLINE void i4_row(const int8_t *a, int32_t row_sum, npumm_tile_column tiles, int32_t *c, const int64_t columns) {
  const __m256i sign = _mm256_set1_epi8((char)0x88), nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  const __m128i less = _mm_set1_epi32((int32_t)(8u * (uint32_t)row_sum));
  __m256i sums[ROW_COLUMNS / 2];
  for (int64_t v = 0; v < columns / 2; v++) sums[v] = _mm256_setzero_si256();
  const uint8_t *pair = tiles.b;
  for (int64_t t = 0; t < tiles.k_tiles; t++, a += 32) {
    const __m128i *row = (const __m128i *)(const void *)a;
    const __m256i of_low = _mm256_broadcastsi128_si256(_mm_loadu_si128(row));
    const __m256i of_high = _mm256_broadcastsi128_si256(_mm_loadu_si128(row + 1));
    for (int64_t v = 0; v < columns / 2; v++, pair += 32) {
      const __m256i y = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(const void *)pair), sign);
      const __m256i low = _mm256_and_si256(y, nibble), high = _mm256_and_si256(_mm256_srli_epi16(y, 4), nibble);
      const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, of_low), _mm256_maddubs_epi16(high, of_high));
      sums[v] = _mm256_add_epi32(sums[v], _mm256_madd_epi16(pairs, ones));
    }
  }
  for (int64_t v = 0; v < columns / 2; v += 2) store_four(c + 2 * v, sums + v, less);
}

TARGET static void i4(const int8_t *a, int64_t a_stride, const int32_t *row_sums, int64_t rows, npumm_tile_column tiles,
                      int32_t *c, int64_t c_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    for (int64_t n = 0; n < tiles.tile_n; n += 4) {
      i4_block(a + r * a_stride, a_stride, row_sums + r, tiles, n, c + r * c_stride, c_stride, 4, 2);
    }
  }
  for (; r < rows; r++) {
    if (tiles.tile_k == 32 && tiles.tile_n == 32) {
      i4_row(a + r * a_stride, row_sums[r], tiles, c + r * c_stride, 32);
      continue;
    }
    if (tiles.tile_k == 32 && tiles.tile_n == 64) {
      i4_row(a + r * a_stride, row_sums[r], tiles, c + r * c_stride, 64);
      continue;
    }
    for (int64_t n = 0; n < tiles.tile_n; n += 16) {
      i4_block(a + r * a_stride, a_stride, row_sums + r, tiles, n, c + r * c_stride, c_stride, 1, 8);
    }
  }
}

const npumm_multipliers npumm_multipliers_avx2 = {
    .name = "avx2",
    .i8 = i8,
    .i4 = i4,
    .f16 = f16,
    .f16_i8 = f16_i8,
    .f16_i4 = f16_i4,
    .halves_to_floats = halves_to_floats,
};

#else
typedef int npumm_multipliers_avx2_are_for_x86_64; /* C asks for something in every file */
#endif
