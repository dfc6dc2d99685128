/*
 * AVX-512 with VNNI. The functions carry the target themselves. The two shapes of loop are those of products_avx2.c;
 * panels of integers hold four k's of all columns side by side. vpdpbusd multiplies bytes with a sign by bytes without:
 * B is made such by adding 128, and what that adds, 128 times the sum of A's row, is taken off again.
 */
#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#include "arrange_avx512.h"
#include "products.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vnni,avx2,fma,f16c")))

enum { BLOCKS_FROM = 8, PANEL_ROWS = 8 };

/* ---- rearranging --------------------------------------------------------------------------------------------------- */

/* Columns n to n + 16 of halves: for each k a vector of the columns, as floats. */
INLINE void arrange_halves(sim_tiles tiles, size_t n, float *panel) {
  const __m512i apart = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24, 22,
                                         20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  for (size_t t = 0; t < tiles.k_tiles; t++, panel += TILE_K * LANES) {
    const uint8_t *tile = tiles.b + (t * tiles.tile_n + n) * TILE_K * 2;
    __m512i x[LANES]; /* a column each, of pairs of halves */
#pragma GCC unroll 16
    for (size_t i = 0; i < LANES; i++) x[i] = _mm512_loadu_si512(tile + 64 * i);
    even_and_odd(x, LANES, 1);
    even_and_odd(x, LANES, 2);
    even_and_odd(x, LANES, 4);
    even_and_odd(x, LANES, 8);
#pragma GCC unroll 16
    for (size_t i = 0; i < LANES; i++) {
      const __m512i both = _mm512_permutexvar_epi16(apart, x[i]);
      _mm512_store_ps(panel + 2 * i * LANES, _mm512_cvtph_ps(_mm512_castsi512_si256(both)));
      _mm512_store_ps(panel + (2 * i + 1) * LANES, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(both, 1)));
    }
  }
}

/* ---- floats -------------------------------------------------------------------------------------------------------- */

/* Sums of the lanes of 16 vectors, in their order. */
INLINE __m512 add_lanes_f32(__m512 *v) {
  __m512i *raw = (__m512i *)v;
  even_and_odd(raw, LANES, 1);
  even_and_odd(raw, LANES, 2);
  even_and_odd(raw, LANES, 4);
  even_and_odd(raw, LANES, 8);
#pragma GCC unroll 4
  for (size_t half = LANES / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (size_t i = 0; i < half; i++) v[i] = _mm512_add_ps(v[i], v[i + half]);
  }
  return v[0];
}

TARGET static void f16_one_row(const float *a, sim_tiles tiles, float *c) {
  for (size_t n = 0; n < tiles.tile_n; n += LANES) {
    __m512 sums[LANES];
#pragma GCC unroll 16
    for (size_t j = 0; j < LANES; j++) sums[j] = _mm512_setzero_ps();
    for (size_t t = 0; t < tiles.k_tiles; t++) {
      const uint8_t *tile = tiles.b + (t * tiles.tile_n + n) * TILE_K * 2;
      const __m512 y0 = _mm512_loadu_ps(a + t * TILE_K), y1 = _mm512_loadu_ps(a + t * TILE_K + LANES);
#pragma GCC unroll 16
      for (size_t j = 0; j < LANES; j++) {
        if (j % 2 == 0) _mm_prefetch((const char *)tile + SIM_AHEAD + 64 * j, _MM_HINT_T1);
        const __m256i *x = (const __m256i *)(const void *)(tile + j * TILE_K * 2);
        sums[j] = _mm512_fmadd_ps(y0, _mm512_cvtph_ps(_mm256_loadu_si256(x)), sums[j]);
        sums[j] = _mm512_fmadd_ps(y1, _mm512_cvtph_ps(_mm256_loadu_si256(x + 1)), sums[j]);
      }
    }
    _mm512_storeu_ps(c + n, _mm512_add_ps(_mm512_loadu_ps(c + n), add_lanes_f32(sums)));
  }
}

/* PANEL_ROWS rows, of which `rows` are there; even and odd k's are summed apart. */
TARGET static void f16_panel(const float *a, size_t stride, size_t rows, const float *panel, size_t depth, float *c,
                             size_t c_stride) {
  __m512 sums[PANEL_ROWS][2];
  const float *row[PANEL_ROWS];
#pragma GCC unroll 8
  for (size_t r = 0; r < PANEL_ROWS; r++) {
    row[r] = a + (r < rows ? r : rows - 1) * stride;
    sums[r][0] = sums[r][1] = _mm512_setzero_ps();
  }
  for (size_t k = 0; k < depth; k += 2, panel += 2 * LANES) {
    const __m512 x0 = _mm512_load_ps(panel), x1 = _mm512_load_ps(panel + LANES);
#pragma GCC unroll 8
    for (size_t r = 0; r < PANEL_ROWS; r++) {
      sums[r][0] = _mm512_fmadd_ps(x0, _mm512_set1_ps(row[r][k]), sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(x1, _mm512_set1_ps(row[r][k + 1]), sums[r][1]);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < PANEL_ROWS; r++) {
    if (r == rows) return;
    const __m512 sum = _mm512_add_ps(sums[r][0], sums[r][1]);
    _mm512_storeu_ps(c + r * c_stride, _mm512_add_ps(_mm512_loadu_ps(c + r * c_stride), sum));
  }
}

TARGET static void f16_by_16(sim_rows a, sim_tiles tiles, float *c, size_t c_stride) {
  const float *values = a.values;
  if (!tiles.spare) {
    for (size_t r = 0; r < a.rows; r++) f16_one_row(values + r * a.stride, tiles, c + r * c_stride);
    return;
  }
  for (size_t n = 0; n < tiles.tile_n; n += LANES) {
    arrange_halves(tiles, n, tiles.spare);
    for (size_t r = 0; r < a.rows; r += PANEL_ROWS) {
      const size_t left = a.rows - r;
      f16_panel(values + r * a.stride, a.stride, left < PANEL_ROWS ? left : PANEL_ROWS, tiles.spare,
                tiles.k_tiles * TILE_K, c + r * c_stride + n, c_stride);
    }
  }
}

/* Tiles that are narrower are for AVX2. */
static void f16(sim_rows a, sim_tiles tiles, float *c, size_t c_stride) {
  bool fits = tiles.tile_n % LANES == 0 && tiles.tile_k == TILE_K;
  (fits ? f16_by_16 : sim_products_avx2.f16)(a, tiles, c, c_stride);
}

/* ---- integers ------------------------------------------------------------------------------------------------------ */

INLINE __m512i load_four(const int8_t *a) {
  int32_t four;
  memcpy(&four, a, sizeof four);
  return _mm512_set1_epi32(four);
}

/* 16 sums in the order of columns from those of two columns of eight in each of eight vectors. */
INLINE __m512i add_lanes_i32(__m512i *v) {
  even_and_odd(v, LANES / 2, 1);
  even_and_odd(v, LANES / 2, 2);
  even_and_odd(v, LANES / 2, 4);
#pragma GCC unroll 3
  for (size_t half = LANES / 4; half > 0; half /= 2) {
#pragma GCC unroll 4
    for (size_t i = 0; i < half; i++) v[i] = _mm512_add_epi32(v[i], v[i + half]);
  }
  return v[0];
}

/* All of c's columns from n on at once, 16 times `sixteens`. */
INLINE void i8_row(const int8_t *a, int32_t sum, sim_tiles tiles, size_t n, int32_t *c, const size_t sixteens) {
  const __m512i sign = _mm512_set1_epi8((char)0x80), less = _mm512_set1_epi32((int32_t)(128u * (uint32_t)sum));
  __m512i sums[LANES]; /* two columns each */
#pragma GCC unroll 16
  for (size_t i = 0; i < 8 * sixteens; i++) sums[i] = _mm512_setzero_si512();
  for (size_t t = 0; t < tiles.k_tiles; t++) {
    const uint8_t *tile = tiles.b + (t * tiles.tile_n + n) * TILE_K;
    const __m256i once = _mm256_loadu_si256((const __m256i *)(const void *)(a + t * TILE_K));
    const __m512i y = _mm512_broadcast_i64x4(once);
#pragma GCC unroll 16
    for (size_t i = 0; i < 8 * sixteens; i++) {
      if (i % 2 == 0) _mm_prefetch((const char *)tile + SIM_AHEAD + 64 * i, _MM_HINT_T1);
      const __m512i x = _mm512_xor_si512(_mm512_loadu_si512(tile + 64 * i), sign);
      sums[i] = _mm512_dpbusd_epi32(sums[i], x, y);
    }
  }
#pragma GCC unroll 2
  for (size_t s = 0; s < sixteens; s++) {
    int32_t *out = c + n + s * LANES;
    const __m512i all = _mm512_sub_epi32(add_lanes_i32(sums + 8 * s), less);
    _mm512_storeu_si512(out, _mm512_add_epi32(_mm512_loadu_si512(out), all));
  }
}

TARGET static void i8_one_row(const int8_t *a, int32_t sum, sim_tiles tiles, int32_t *c) {
  size_t n = 0;
  for (; n + 2 * LANES <= tiles.tile_n; n += 2 * LANES) i8_row(a, sum, tiles, n, c, 2);
  for (; n < tiles.tile_n; n += LANES) i8_row(a, sum, tiles, n, c, 1);
}

INLINE void i8_panel(const int8_t *a, size_t stride, size_t rows, const int32_t *row_sums, const __m512i *panel,
                     size_t lines, int32_t *c, size_t c_stride, const size_t vectors) {
  __m512i sums[PANEL_ROWS][2];
  const int8_t *row[PANEL_ROWS];
#pragma GCC unroll 8
  for (size_t r = 0; r < PANEL_ROWS; r++) {
    row[r] = a + (r < rows ? r : rows - 1) * stride;
    sums[r][0] = sums[r][1] = _mm512_setzero_si512();
  }
  for (size_t k = 0; k < lines; k++, panel++) {
    const __m512i x0 = _mm512_load_si512(panel), x1 = _mm512_load_si512(panel + (vectors - 1) * lines);
#pragma GCC unroll 8
    for (size_t r = 0; r < PANEL_ROWS; r++) {
      const __m512i y = load_four(row[r] + 4 * k);
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], x0, y);
      if (vectors > 1) sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], x1, y);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < PANEL_ROWS; r++) {
    if (r == rows) return;
    const __m512i less = _mm512_set1_epi32((int32_t)(128u * (uint32_t)row_sums[r]));
#pragma GCC unroll 2
    for (size_t v = 0; v < vectors; v++) {
      int32_t *out = c + r * c_stride + v * LANES;
      _mm512_storeu_si512(out, _mm512_add_epi32(_mm512_loadu_si512(out), _mm512_sub_epi32(sums[r][v], less)));
    }
  }
}

INLINE void i8_columns(sim_rows a, sim_tiles tiles, size_t n, int32_t *c, size_t c_stride, const size_t vectors) {
  const int8_t *values = a.values;
  const size_t lines = tiles.k_tiles * TILE_K / 4;
  __m512i *panel = tiles.spare;
  const __m512i sign = _mm512_set1_epi8((char)0x80);
  for (size_t v = 0; v < vectors; v++) arrange_bytes(tiles, n + v * LANES, sign, panel + v * lines);
  for (size_t r = 0; r < a.rows; r += PANEL_ROWS) {
    const size_t left = a.rows - r;
    i8_panel(values + r * a.stride, a.stride, left < PANEL_ROWS ? left : PANEL_ROWS, a.sums + r, panel, lines,
             c + r * c_stride + n, c_stride, vectors);
  }
}

TARGET static void i8_by_16(sim_rows a, sim_tiles tiles, int32_t *c, size_t c_stride) {
  const int8_t *values = a.values;
  if (!tiles.spare) {
    for (size_t r = 0; r < a.rows; r++) i8_one_row(values + r * a.stride, a.sums[r], tiles, c + r * c_stride);
    return;
  }
  size_t n = 0;
  for (; n + 2 * LANES <= tiles.tile_n; n += 2 * LANES) i8_columns(a, tiles, n, c, c_stride, 2);
  if (n < tiles.tile_n) i8_columns(a, tiles, n, c, c_stride, 1);
}

/* No chip has other tiles. */
static void i8(sim_rows a, sim_tiles tiles, int32_t *c, size_t c_stride) {
  bool fits = tiles.tile_n % LANES == 0 && tiles.tile_k == TILE_K;
  (fits ? i8_by_16 : sim_products_scalar.i8)(a, tiles, c, c_stride);
}

static void ready_ints(const int8_t *in, void *out, size_t count) { memcpy(out, in, count); }

/* ---- conversions --------------------------------------------------------------------------------------------------- */

static int32_t sum_ints(const int8_t *in, size_t count) { return sim_products_avx2.sum_ints(in, count); }

TARGET static void halves_to_floats(const uint8_t *halves, float *out, size_t count) {
  size_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(halves + 2 * i));
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(x));
  }
  if (i < count) sim_products_scalar.halves_to_floats(halves + 2 * i, out + i, count - i);
}

TARGET static void ints_to_halves(const int8_t *in, int32_t zero_point, uint8_t *halves, size_t count) {
  const __m512i zero = _mm512_set1_epi32(zero_point);
  size_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(in + i)));
    const __m512 values = _mm512_cvtepi32_ps(_mm512_sub_epi32(wide, zero));
    _mm256_storeu_si256((__m256i *)(void *)(halves + 2 * i), _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
  }
  if (i < count) sim_products_scalar.ints_to_halves(in + i, zero_point, halves + 2 * i, count - i);
}

TARGET static void unpack_pairs(const uint8_t *pairs, bool low_first, int8_t *out, size_t bytes) {
  const __m512i nibbles = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(8);
  size_t i = 0;
  for (; i + 32 <= bytes; i += 32) { /* each pair in the 16 bits that it becomes: 00hl to 0h0l or 0l0h */
    const __m512i x = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(pairs + i)));
    const __m512i low = low_first ? x : _mm512_srli_epi16(x, 4);
    const __m512i high = low_first ? _mm512_slli_epi16(x, 4) : _mm512_slli_epi16(x, 8);
    const __m512i both = _mm512_and_si512(_mm512_or_si512(low, high), nibbles);
    _mm512_storeu_si512(out + 2 * i, _mm512_sub_epi8(_mm512_xor_si512(both, sign), sign));
  }
  if (i < bytes) sim_products_scalar.unpack_pairs(pairs + i, low_first, out + 2 * i, bytes - i);
}

const sim_products sim_products_avx512 = {
    .name = "avx512",
    .blocks_from = BLOCKS_FROM,
    .f16 = f16,
    .i8 = i8,
    .int_bytes = sizeof(int8_t),
    .ready_ints = ready_ints,
    .sum_ints = sum_ints,
    .halves_to_floats = halves_to_floats,
    .ints_to_halves = ints_to_halves,
    .unpack_pairs = unpack_pairs,
};

#else
typedef int sim_products_avx512_is_for_x86_64; /* C asks for something in every file */
#endif
