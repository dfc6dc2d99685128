/*
 * AVX2 with FMA and F16C. The functions carry the target themselves, so that the file needs no compiler flags and the
 * library still loads on a CPU without them.
 *
 * Two shapes of loop:
 *   - for few rows, one row by all columns of the tile in dot product form: B's k is already the fastest index, so nothing
 *     is rearranged, and B is read strictly in the order in which it lies in memory, which is what the memory's speed asks
 *     for; the partial sums stay in the L1 cache. The CPU asks for what comes next by itself: asking for it here, at any
 *     distance, made a B that comes from DRAM a third slower;
 *   - for more, B is rearranged block by block into panels, in which all columns of one k (of two k's for integers, widened
 *     to int16) stand side by side. Six rows by sixteen columns are summed in registers; each number of A meets them all.
 */
#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#include "products.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE __attribute__((always_inline, target("avx2,fma,f16c"))) static inline

enum { BLOCKS_FROM = 4, PANEL_ROWS = 6, LANES = 8 };

INLINE __m256 load_halves(const uint8_t *halves) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)halves));
}

INLINE __m256i load_bytes_wide(const void *bytes) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)bytes));
}

/* Sums of the lanes of four vectors. */
INLINE __m128 add_lanes_f32(__m256 v0, __m256 v1, __m256 v2, __m256 v3) {
  __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(v0, v1), _mm256_hadd_ps(v2, v3));
  return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

INLINE __m128i add_lanes_i32(__m256i v0, __m256i v1, __m256i v2, __m256i v3) {
  __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(v0, v1), _mm256_hadd_epi32(v2, v3));
  return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

/* Vector i becomes what was element i of each. */
INLINE void transpose(__m256i *rows) {
  __m256i pairs[LANES], fours[LANES];
#pragma GCC unroll 4
  for (size_t i = 0; i < LANES; i += 2) {
    pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 2
  for (size_t i = 0; i < LANES; i += 4) {
    fours[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
    fours[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
    fours[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    fours[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; i++) {
    rows[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
  }
}

/* `width` columns from n on: halves as floats, or pairs of int8 as pairs of int16, a line of `width` for each. */
INLINE void arrange(sim_tiles tiles, size_t n, size_t width, const bool halves, __m256i *panel) {
  const size_t bytes = halves ? 2 : 1, step = halves ? LANES : 2 * LANES, vectors = width / LANES;
  for (size_t t = 0; t < tiles.k_tiles; t++) {
    const uint8_t *tile = tiles.b + (t * tiles.tile_n + n) * tiles.tile_k * bytes;
    for (size_t k = 0; k < tiles.tile_k; k += step, panel += LANES * vectors) {
      for (size_t v = 0; v < vectors; v++) {
        __m256i rows[LANES];
#pragma GCC unroll 8
        for (size_t i = 0; i < LANES; i++) {
          const uint8_t *from = tile + ((v * LANES + i) * tiles.tile_k + k) * bytes;
          rows[i] = halves ? _mm256_castps_si256(load_halves(from)) : load_bytes_wide(from);
        }
        transpose(rows);
#pragma GCC unroll 8
        for (size_t i = 0; i < LANES; i++) _mm256_store_si256(panel + i * vectors + v, rows[i]);
      }
    }
  }
}

/* One row; `depth` k's at a time, and columns, are known when it is compiled, so that the inner loop has no branch. */
INLINE void f16_row(const float *a, sim_tiles tiles, float *c, size_t columns, size_t depth) {
  __m256 sums[SIM_TILE_N_MAX];
  for (size_t n = 0; n < columns; n++) sums[n] = _mm256_setzero_ps();
  for (size_t k = 0; k < tiles.k_tiles * tiles.tile_k; k += depth) {
    const uint8_t *x = tiles.b + (k / tiles.tile_k * tiles.tile_n * tiles.tile_k + k % tiles.tile_k) * 2;
    __m256 y[4];
    for (size_t i = 0; i < depth / 8; i++) y[i] = _mm256_loadu_ps(a + k + 8 * i);
    for (size_t n = 0; n < columns; n++, x += tiles.tile_k * 2) {
      __m256 sum = sums[n];
      for (size_t i = 0; i < depth / 8; i++) sum = _mm256_fmadd_ps(y[i], load_halves(x + 16 * i), sum);
      sums[n] = sum;
    }
  }
  for (size_t n = 0; n < columns; n += 2) {
    float pair[4];
    _mm_storeu_ps(pair, add_lanes_f32(sums[n], sums[n + 1], sums[n], sums[n + 1]));
    c[n] += pair[0];
    c[n + 1] += pair[1];
  }
}

TARGET static void f16_one_row(const float *a, sim_tiles tiles, float *c) {
  const size_t columns = tiles.tile_n;
  if (tiles.tile_k % 32 != 0) f16_row(a, tiles, c, columns, 16);
  else if (columns == 16) f16_row(a, tiles, c, 16, 32);
  else if (columns == 8) f16_row(a, tiles, c, 8, 32);
  else f16_row(a, tiles, c, columns, 32);
}

/* PANEL_ROWS rows, of which `rows` are there. */
INLINE void f16_panel(const float *a, size_t stride, size_t rows, const float *panel, size_t depth, float *c,
                      size_t c_stride, const size_t vectors) {
  __m256 sums[PANEL_ROWS][2];
  const float *row[PANEL_ROWS];
#pragma GCC unroll 6
  for (size_t r = 0; r < PANEL_ROWS; r++) {
    row[r] = a + (r < rows ? r : rows - 1) * stride;
    sums[r][0] = sums[r][1] = _mm256_setzero_ps();
  }
  for (size_t k = 0; k < depth; k++, panel += LANES * vectors) {
    const __m256 x0 = _mm256_load_ps(panel), x1 = _mm256_load_ps(panel + LANES * (vectors - 1));
#pragma GCC unroll 6
    for (size_t r = 0; r < PANEL_ROWS; r++) {
      const __m256 y = _mm256_broadcast_ss(row[r] + k);
      sums[r][0] = _mm256_fmadd_ps(y, x0, sums[r][0]);
      if (vectors > 1) sums[r][1] = _mm256_fmadd_ps(y, x1, sums[r][1]);
    }
  }
#pragma GCC unroll 6
  for (size_t r = 0; r < PANEL_ROWS; r++) {
    if (r == rows) return;
    for (size_t v = 0; v < vectors; v++) {
      float *out = c + r * c_stride + v * LANES;
      _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), sums[r][v]));
    }
  }
}

INLINE void f16_columns(sim_rows a, sim_tiles tiles, size_t n, float *c, size_t c_stride, const size_t vectors) {
  const float *values = a.values;
  arrange(tiles, n, vectors * LANES, true, tiles.spare);
  for (size_t r = 0; r < a.rows; r += PANEL_ROWS) {
    const size_t left = a.rows - r;
    f16_panel(values + r * a.stride, a.stride, left < PANEL_ROWS ? left : PANEL_ROWS, tiles.spare,
              tiles.k_tiles * tiles.tile_k, c + r * c_stride + n, c_stride, vectors);
  }
}

TARGET static void f16(sim_rows a, sim_tiles tiles, float *c, size_t c_stride) {
  const float *values = a.values;
  if (!tiles.spare) {
    for (size_t r = 0; r < a.rows; r++) f16_one_row(values + r * a.stride, tiles, c + r * c_stride);
    return;
  }
  size_t n = 0;
  for (; n + 2 * LANES <= tiles.tile_n; n += 2 * LANES) f16_columns(a, tiles, n, c, c_stride, 2);
  if (n < tiles.tile_n) f16_columns(a, tiles, n, c, c_stride, 1);
}

/* int8 products are widened to int16 and added in pairs by madd: at most 2 * 128 * 128, which int32 holds exactly. */
INLINE void i8_row(const int16_t *a, sim_tiles tiles, int32_t *c, size_t columns, size_t depth) {
  __m256i sums[SIM_TILE_N_MAX];
  for (size_t n = 0; n < columns; n++) sums[n] = _mm256_setzero_si256();
  for (size_t k = 0; k < tiles.k_tiles * tiles.tile_k; k += depth) {
    const uint8_t *x = tiles.b + k / tiles.tile_k * tiles.tile_n * tiles.tile_k + k % tiles.tile_k;
    __m256i y[2];
    for (size_t i = 0; i < depth / 16; i++) {
      y[i] = _mm256_loadu_si256((const __m256i *)(const void *)(a + k + 16 * i));
    }
    for (size_t n = 0; n < columns; n++, x += tiles.tile_k) {
      __m256i sum = sums[n];
      for (size_t i = 0; i < depth / 16; i++) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(y[i], load_bytes_wide(x + 16 * i)));
      }
      sums[n] = sum;
    }
  }
  for (size_t n = 0; n < columns; n += 2) {
    uint32_t pair[4];
    _mm_storeu_si128((__m128i *)(void *)pair, add_lanes_i32(sums[n], sums[n + 1], sums[n], sums[n + 1]));
    c[n] = (int32_t)((uint32_t)c[n] + pair[0]);
    c[n + 1] = (int32_t)((uint32_t)c[n + 1] + pair[1]);
  }
}

TARGET static void i8_one_row(const int16_t *a, sim_tiles tiles, int32_t *c) {
  const size_t columns = tiles.tile_n;
  if (tiles.tile_k % 32 != 0) i8_row(a, tiles, c, columns, 16);
  else if (columns == 32) i8_row(a, tiles, c, 32, 32);
  else if (columns == 64) i8_row(a, tiles, c, 64, 32);
  else i8_row(a, tiles, c, columns, 32);
}

/* The empty asm keeps GCC 12 from spilling the sums of i8_panel: without it half the speed is gone. */
INLINE __m256i add_pairs(__m256i sum, __m256i x, __m256i y) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, y));
  __asm__("" : "+x"(sum));
  return sum;
}

INLINE void i8_panel(const int16_t *a, size_t stride, size_t rows, const __m256i *panel, size_t depth, int32_t *c,
                     size_t c_stride, const size_t vectors) {
  __m256i sums[PANEL_ROWS][2];
  const int16_t *row[PANEL_ROWS];
#pragma GCC unroll 6
  for (size_t r = 0; r < PANEL_ROWS; r++) {
    row[r] = a + (r < rows ? r : rows - 1) * stride;
    sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  }
  for (size_t k = 0; k < depth; k += 2, panel += vectors) {
    const __m256i x0 = _mm256_load_si256(panel), x1 = _mm256_load_si256(panel + vectors - 1);
#pragma GCC unroll 6
    for (size_t r = 0; r < PANEL_ROWS; r++) {
      int32_t pair;
      memcpy(&pair, row[r] + k, sizeof pair);
      const __m256i y = _mm256_set1_epi32(pair);
      sums[r][0] = add_pairs(sums[r][0], y, x0);
      if (vectors > 1) sums[r][1] = add_pairs(sums[r][1], y, x1);
    }
  }
#pragma GCC unroll 6
  for (size_t r = 0; r < PANEL_ROWS; r++) {
    if (r == rows) return;
    for (size_t v = 0; v < vectors; v++) {
      __m256i *out = (__m256i *)(void *)(c + r * c_stride + v * LANES);
      _mm256_storeu_si256(out, _mm256_add_epi32(_mm256_loadu_si256(out), sums[r][v]));
    }
  }
}

INLINE void i8_columns(sim_rows a, sim_tiles tiles, size_t n, int32_t *c, size_t c_stride, const size_t vectors) {
  const int16_t *values = a.values;
  arrange(tiles, n, vectors * LANES, false, tiles.spare);
  for (size_t r = 0; r < a.rows; r += PANEL_ROWS) {
    const size_t left = a.rows - r;
    i8_panel(values + r * a.stride, a.stride, left < PANEL_ROWS ? left : PANEL_ROWS, tiles.spare,
             tiles.k_tiles * tiles.tile_k, c + r * c_stride + n, c_stride, vectors);
  }
}

TARGET static void i8(sim_rows a, sim_tiles tiles, int32_t *c, size_t c_stride) {
  const int16_t *values = a.values;
  if (!tiles.spare) {
    for (size_t r = 0; r < a.rows; r++) i8_one_row(values + r * a.stride, tiles, c + r * c_stride);
    return;
  }
  size_t n = 0;
  for (; n + 2 * LANES <= tiles.tile_n; n += 2 * LANES) i8_columns(a, tiles, n, c, c_stride, 2);
  if (n < tiles.tile_n) i8_columns(a, tiles, n, c, c_stride, 1);
}

TARGET static void ready_ints(const int8_t *in, void *out, size_t count) {
  int16_t *wide = out;
  size_t i = 0;
  for (; i + 16 <= count; i += 16) _mm256_storeu_si256((__m256i *)(void *)(wide + i), load_bytes_wide(in + i));
  for (; i < count; i++) wide[i] = in[i];
}

TARGET static int32_t sum_ints(const int8_t *in, size_t count) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums = _mm256_setzero_si256();
  size_t i = 0;
  for (; i + 16 <= count; i += 16) sums = _mm256_add_epi32(sums, _mm256_madd_epi16(load_bytes_wide(in + i), ones));
  const int32_t sum = _mm_cvtsi128_si32(add_lanes_i32(sums, sums, sums, sums));
  return sum + sim_products_scalar.sum_ints(in + i, count - i);
}

TARGET static void halves_to_floats(const uint8_t *halves, float *out, size_t count) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, load_halves(halves + 2 * i));
  if (i < count) sim_products_scalar.halves_to_floats(halves + 2 * i, out + i, count - i);
}

TARGET static void ints_to_halves(const int8_t *in, int32_t zero_point, uint8_t *halves, size_t count) {
  const __m256i zero = _mm256_set1_epi32(zero_point);
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(in + i)));
    __m256 values = _mm256_cvtepi32_ps(_mm256_sub_epi32(wide, zero));
    _mm_storeu_si128((__m128i *)(void *)(halves + 2 * i), _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
  }
  if (i < count) sim_products_scalar.ints_to_halves(in + i, zero_point, halves + 2 * i, count - i);
}

TARGET static void unpack_pairs(const uint8_t *pairs, bool low_first, int8_t *out, size_t bytes) {
  const __m256i nibbles = _mm256_set1_epi8(15), sign = _mm256_set1_epi8(8);
  size_t i = 0;
  for (; i + 16 <= bytes; i += 16) { /* each pair in the 16 bits that it becomes: 00hl to 0h0l or 0l0h */
    const __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(pairs + i)));
    const __m256i low = low_first ? x : _mm256_srli_epi16(x, 4), high = _mm256_slli_epi16(x, low_first ? 4 : 8);
    const __m256i both = _mm256_and_si256(_mm256_or_si256(low, high), nibbles);
    _mm256_storeu_si256((__m256i *)(void *)(out + 2 * i), _mm256_sub_epi8(_mm256_xor_si256(both, sign), sign));
  }
  if (i < bytes) sim_products_scalar.unpack_pairs(pairs + i, low_first, out + 2 * i, bytes - i);
}

const sim_products sim_products_avx2 = {
    .name = "avx2",
    .blocks_from = BLOCKS_FROM,
    .f16 = f16,
    .i8 = i8,
    .int_bytes = sizeof(int16_t),
    .ready_ints = ready_ints,
    .sum_ints = sum_ints,
    .halves_to_floats = halves_to_floats,
    .ints_to_halves = ints_to_halves,
    .unpack_pairs = unpack_pairs,
};

#else
typedef int sim_products_avx2_is_for_x86_64; /* C asks for something in every file */
#endif
