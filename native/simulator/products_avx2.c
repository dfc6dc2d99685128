/*
 * AVX2 with FMA and F16C. The functions carry the target themselves, so that the file needs no compiler flags and the
 * library still loads on a CPU without them.
 *
 * Two shapes of loop:
 *   - four rows of A by two columns of B in eight registers of partial sums (dot product form: B's k is already the
 *     fastest index, so nothing is transposed), for as many rows as there are fours;
 *   - one row by all columns of the tile, for the rest. B is then read strictly in the order in which it lies in
 *     memory, which for M = 1 is what the memory's speed asks for; the partial sums stay in the L1 cache. The CPU asks
 *     for what comes next by itself: asking for it here, at any distance, made a B that comes from DRAM a third slower.
 */
#if defined(__x86_64__)

#include <immintrin.h>

#include "products.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE __attribute__((always_inline, target("avx2,fma,f16c"))) static inline

/* With four rows B is read in strips of two columns: ask for the next strip. A third faster at M = 4 with a B that
 * comes from DRAM, no difference when it is in the cache. Asking beyond the end of B is harmless. */
#define PREFETCH_COLUMNS 2

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

TARGET static void f16_four_rows(const float *a, size_t a_stride, sim_tiles tiles, float *c, size_t c_stride) {
  const float *a0 = a, *a1 = a + a_stride, *a2 = a + 2 * a_stride, *a3 = a + 3 * a_stride;
  size_t tile_bytes = tiles.tile_n * tiles.tile_k * 2;
  for (size_t n = 0; n < tiles.tile_n; n += 2) {
    __m256 s00 = _mm256_setzero_ps(), s01 = s00, s10 = s00, s11 = s00, s20 = s00, s21 = s00, s30 = s00, s31 = s00;
    const uint8_t *column = tiles.b + n * tiles.tile_k * 2;
    size_t k = 0;
    for (size_t t = 0; t < tiles.k_tiles; t++, column += tile_bytes) {
      const uint8_t *b0 = column, *b1 = column + tiles.tile_k * 2;
      _mm_prefetch((const char *)(b0 + PREFETCH_COLUMNS * tiles.tile_k * 2), _MM_HINT_T0);
      _mm_prefetch((const char *)(b1 + PREFETCH_COLUMNS * tiles.tile_k * 2), _MM_HINT_T0);
#pragma GCC unroll 2
      for (size_t step = 0; step < tiles.tile_k; step += 8, k += 8) {
        __m256 x0 = load_halves(b0 + step * 2), x1 = load_halves(b1 + step * 2), y;
        y = _mm256_loadu_ps(a0 + k);
        s00 = _mm256_fmadd_ps(y, x0, s00);
        s01 = _mm256_fmadd_ps(y, x1, s01);
        y = _mm256_loadu_ps(a1 + k);
        s10 = _mm256_fmadd_ps(y, x0, s10);
        s11 = _mm256_fmadd_ps(y, x1, s11);
        y = _mm256_loadu_ps(a2 + k);
        s20 = _mm256_fmadd_ps(y, x0, s20);
        s21 = _mm256_fmadd_ps(y, x1, s21);
        y = _mm256_loadu_ps(a3 + k);
        s30 = _mm256_fmadd_ps(y, x0, s30);
        s31 = _mm256_fmadd_ps(y, x1, s31);
      }
    }
    float low[4], high[4];
    _mm_storeu_ps(low, add_lanes_f32(s00, s01, s10, s11));
    _mm_storeu_ps(high, add_lanes_f32(s20, s21, s30, s31));
    for (size_t r = 0; r < 2; r++) {
      c[r * c_stride + n] += low[2 * r];
      c[r * c_stride + n + 1] += low[2 * r + 1];
      c[(r + 2) * c_stride + n] += high[2 * r];
      c[(r + 2) * c_stride + n + 1] += high[2 * r + 1];
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

static void f16(const float *a, size_t a_stride, size_t rows, sim_tiles tiles, float *c, size_t c_stride) {
  size_t r = 0;
  for (; r + 4 <= rows; r += 4) f16_four_rows(a + r * a_stride, a_stride, tiles, c + r * c_stride, c_stride);
  for (; r < rows; r++) f16_one_row(a + r * a_stride, tiles, c + r * c_stride);
}

/* int8 products are widened to int16 and added in pairs by madd: at most 2 * 128 * 128, which int32 holds exactly. */
TARGET static void i8_four_rows(const int8_t *a, size_t a_stride, sim_tiles tiles, int32_t *c, size_t c_stride) {
  const int8_t *a0 = a, *a1 = a + a_stride, *a2 = a + 2 * a_stride, *a3 = a + 3 * a_stride;
  size_t tile_bytes = tiles.tile_n * tiles.tile_k;
  for (size_t n = 0; n < tiles.tile_n; n += 2) {
    __m256i s00 = _mm256_setzero_si256(), s01 = s00, s10 = s00, s11 = s00, s20 = s00, s21 = s00, s30 = s00, s31 = s00;
    const uint8_t *column = tiles.b + n * tiles.tile_k;
    size_t k = 0;
    for (size_t t = 0; t < tiles.k_tiles; t++, column += tile_bytes) {
      const uint8_t *b0 = column, *b1 = column + tiles.tile_k;
      _mm_prefetch((const char *)(b0 + PREFETCH_COLUMNS * tiles.tile_k), _MM_HINT_T0);
#pragma GCC unroll 2
      for (size_t step = 0; step < tiles.tile_k; step += 16, k += 16) {
        __m256i x0 = load_bytes_wide(b0 + step), x1 = load_bytes_wide(b1 + step), y;
        y = load_bytes_wide(a0 + k);
        s00 = _mm256_add_epi32(s00, _mm256_madd_epi16(y, x0));
        s01 = _mm256_add_epi32(s01, _mm256_madd_epi16(y, x1));
        y = load_bytes_wide(a1 + k);
        s10 = _mm256_add_epi32(s10, _mm256_madd_epi16(y, x0));
        s11 = _mm256_add_epi32(s11, _mm256_madd_epi16(y, x1));
        y = load_bytes_wide(a2 + k);
        s20 = _mm256_add_epi32(s20, _mm256_madd_epi16(y, x0));
        s21 = _mm256_add_epi32(s21, _mm256_madd_epi16(y, x1));
        y = load_bytes_wide(a3 + k);
        s30 = _mm256_add_epi32(s30, _mm256_madd_epi16(y, x0));
        s31 = _mm256_add_epi32(s31, _mm256_madd_epi16(y, x1));
      }
    }
    uint32_t sums[8];
    _mm_storeu_si128((__m128i *)(void *)sums, add_lanes_i32(s00, s01, s10, s11));
    _mm_storeu_si128((__m128i *)(void *)(sums + 4), add_lanes_i32(s20, s21, s30, s31));
    for (size_t r = 0; r < 4; r++) {
      int32_t *out = c + r * c_stride + n;
      out[0] = (int32_t)((uint32_t)out[0] + sums[2 * r]);
      out[1] = (int32_t)((uint32_t)out[1] + sums[2 * r + 1]);
    }
  }
}

INLINE void i8_row(const int8_t *a, sim_tiles tiles, int32_t *c, size_t columns, size_t depth) {
  __m256i sums[SIM_TILE_N_MAX];
  for (size_t n = 0; n < columns; n++) sums[n] = _mm256_setzero_si256();
  for (size_t k = 0; k < tiles.k_tiles * tiles.tile_k; k += depth) {
    const uint8_t *x = tiles.b + k / tiles.tile_k * tiles.tile_n * tiles.tile_k + k % tiles.tile_k;
    __m256i y[2];
    for (size_t i = 0; i < depth / 16; i++) y[i] = load_bytes_wide(a + k + 16 * i);
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

TARGET static void i8_one_row(const int8_t *a, sim_tiles tiles, int32_t *c) {
  const size_t columns = tiles.tile_n;
  if (tiles.tile_k % 32 != 0) i8_row(a, tiles, c, columns, 16);
  else if (columns == 32) i8_row(a, tiles, c, 32, 32);
  else if (columns == 64) i8_row(a, tiles, c, 64, 32);
  else i8_row(a, tiles, c, columns, 32);
}

static void i8(const int8_t *a, size_t a_stride, size_t rows, sim_tiles tiles, int32_t *c, size_t c_stride) {
  size_t r = 0;
  for (; r + 4 <= rows; r += 4) i8_four_rows(a + r * a_stride, a_stride, tiles, c + r * c_stride, c_stride);
  for (; r < rows; r++) i8_one_row(a + r * a_stride, tiles, c + r * c_stride);
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

TARGET static void unpack_low_first(const uint8_t *pairs, int8_t *out, size_t bytes) {
  const __m128i nibble = _mm_set1_epi8(15), sign = _mm_set1_epi8(8);
  size_t i = 0;
  for (; i + 16 <= bytes; i += 16) {
    __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(pairs + i));
    __m128i even = _mm_and_si128(x, nibble), odd = _mm_and_si128(_mm_srli_epi16(x, 4), nibble);
    even = _mm_sub_epi8(_mm_xor_si128(even, sign), sign);
    odd = _mm_sub_epi8(_mm_xor_si128(odd, sign), sign);
    _mm_storeu_si128((__m128i *)(void *)(out + 2 * i), _mm_unpacklo_epi8(even, odd));
    _mm_storeu_si128((__m128i *)(void *)(out + 2 * i + 16), _mm_unpackhi_epi8(even, odd));
  }
  if (i < bytes) sim_products_scalar.unpack_low_first(pairs + i, out + 2 * i, bytes - i);
}

const sim_products sim_products_avx2 = {
    .name = "avx2",
    .f16 = f16,
    .i8 = i8,
    .halves_to_floats = halves_to_floats,
    .ints_to_halves = ints_to_halves,
    .unpack_low_first = unpack_low_first,
};

#else
typedef int sim_products_avx2_is_for_x86_64; /* C asks for something in every file */
#endif
