/* Pieces of rows into tiles: whole lines at a time, around the caches where that is wanted. See npumm_pieces in rows.h. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "rows.h"

#define AVX2 __attribute__((always_inline, target("avx2"))) static inline
#define AVX512 __attribute__((always_inline, target("avx512f"))) static inline

enum { LINE = 64 };

/* What is left over: rows from `row` on, or tiles. */
static void rest_of(const npumm_pieces *of, const char *from, char *to, int64_t row, int64_t tile, int64_t tiles) {
  const npumm_pieces rest = {of->bytes, of->rows - row, tiles, of->from_stride, of->to_next};
  npumm_pieces_base(&rest, from + row * of->from_stride + tile * of->bytes, to + tile * of->to_next + row * of->bytes,
                    0);
}

static int is_aligned(const npumm_pieces *of, const char *to, int64_t bytes) {
  return (uintptr_t)to % (uintptr_t)bytes == 0 && of->to_next % bytes == 0;
}

/*
 * How many rows go to their tiles before the next tile is looked at. What is written around the caches is best written tile
 * by tile. But where a source does not begin a line, the end of a piece is in the line of the next one, which should still
 * be in the first cache then: `least` rows.
 */
static inline int64_t rows_at_once(const char *from, int past_caches, int64_t least, int64_t rows) {
  return past_caches && (uintptr_t)from % LINE == 0 ? rows : least;
}

AVX2 void store_32(char *to, __m256i v, const int past_caches) {
  if (past_caches) _mm256_stream_si256((__m256i *)(void *)to, v);
  else _mm256_storeu_si256((__m256i *)(void *)to, v);
}

/* A line of two rows at a time: two lines, or with pieces of 16 bytes four of 32 bytes. */
AVX2 void pieces_avx2(const npumm_pieces *of, const char *from, char *to, const int bytes, const int past_caches) {
  const int64_t at_once = LINE / bytes, tiles = of->tiles / at_once * at_once, rows = of->rows / 2 * 2;
  const int64_t high = rows_at_once(from, past_caches, 2, rows);
  for (int64_t r0 = 0; r0 < rows; r0 += high) {
    for (int64_t tile = 0; tile < tiles; tile += at_once) {
      for (int64_t r = r0; r < r0 + high; r += 2) {
        const char *a = from + r * of->from_stride + tile * bytes, *b = a + of->from_stride;
        char *at = to + tile * of->to_next + r * bytes;
        const __m256i a0 = _mm256_loadu_si256((const __m256i *)(const void *)a);
        const __m256i a1 = _mm256_loadu_si256((const __m256i *)(const void *)(a + 32));
        const __m256i b0 = _mm256_loadu_si256((const __m256i *)(const void *)b);
        const __m256i b1 = _mm256_loadu_si256((const __m256i *)(const void *)(b + 32));
        if (bytes == 64) {
          store_32(at, a0, past_caches), store_32(at + 32, a1, past_caches);
          store_32(at + 64, b0, past_caches), store_32(at + 96, b1, past_caches);
        } else if (bytes == 32) {
          store_32(at, a0, past_caches), store_32(at + 32, b0, past_caches);
          store_32(at + of->to_next, a1, past_caches), store_32(at + of->to_next + 32, b1, past_caches);
        } else {
          store_32(at, _mm256_permute2x128_si256(a0, b0, 0x20), past_caches);
          store_32(at + of->to_next, _mm256_permute2x128_si256(a0, b0, 0x31), past_caches);
          store_32(at + 2 * of->to_next, _mm256_permute2x128_si256(a1, b1, 0x20), past_caches);
          store_32(at + 3 * of->to_next, _mm256_permute2x128_si256(a1, b1, 0x31), past_caches);
        }
      }
    }
  }
  if (rows < of->rows) rest_of(of, from, to, rows, 0, tiles);
  if (tiles < of->tiles) rest_of(of, from, to, 0, tiles, of->tiles - tiles);
}

#define DEFINE_AVX2(name, bytes, past_caches)                                                            \
  __attribute__((target("avx2"))) static void name(const npumm_pieces *of, const char *from, char *to) { \
    pieces_avx2(of, from, to, bytes, past_caches);                                                       \
  }
DEFINE_AVX2(avx2_16, 16, 0)
DEFINE_AVX2(avx2_32, 32, 0)
DEFINE_AVX2(avx2_64, 64, 0)
DEFINE_AVX2(avx2_16_around, 16, 1)
DEFINE_AVX2(avx2_32_around, 32, 1)
DEFINE_AVX2(avx2_64_around, 64, 1)

void npumm_pieces_avx2(const npumm_pieces *of, const char *from, char *to, int past_caches) {
  const int around = past_caches && is_aligned(of, to, 32);
  if (of->bytes == 16) (around ? avx2_16_around : avx2_16)(of, from, to);
  if (of->bytes == 32) (around ? avx2_32_around : avx2_32)(of, from, to);
  if (of->bytes == 64) (around ? avx2_64_around : avx2_64)(of, from, to);
}

AVX512 void store_64(char *to, __m512i v, const int past_caches) {
  if (past_caches) _mm512_stream_si512((void *)to, v);
  else _mm512_storeu_si512((void *)to, v);
}
AVX512 __m512i even_lanes(__m512i a, __m512i b) { return _mm512_shuffle_i64x2(a, b, 0x88); }
AVX512 __m512i odd_lanes(__m512i a, __m512i b) { return _mm512_shuffle_i64x2(a, b, 0xdd); }

/* A line of as many rows as make a line of a tile: as many lines. */
AVX512 void pieces_avx512(const npumm_pieces *of, const char *from, char *to, const int bytes, const int past_caches) {
  const int64_t at_once = LINE / bytes, tiles = of->tiles / at_once * at_once, rows = of->rows / at_once * at_once;
  const int64_t next = of->to_next;
  const int64_t high = rows_at_once(from, past_caches, at_once, rows);
  for (int64_t r0 = 0; r0 < rows; r0 += high) {
    for (int64_t tile = 0; tile < tiles; tile += at_once) {
      for (int64_t r = r0; r < r0 + high; r += at_once) {
        const char *at = from + r * of->from_stride + tile * bytes;
        char *into = to + tile * next + r * bytes;
        const __m512i a = _mm512_loadu_si512((const void *)at);
        const __m512i b = _mm512_loadu_si512((const void *)(at + of->from_stride));
        if (bytes == 32) {
          store_64(into, _mm512_shuffle_i64x2(a, b, 0x44), past_caches);
          store_64(into + next, _mm512_shuffle_i64x2(a, b, 0xee), past_caches);
          continue;
        }
        const __m512i c = _mm512_loadu_si512((const void *)(at + 2 * of->from_stride));
        const __m512i d = _mm512_loadu_si512((const void *)(at + 3 * of->from_stride));
        const __m512i ab_even = even_lanes(a, b), ab_odd = odd_lanes(a, b);
        const __m512i cd_even = even_lanes(c, d), cd_odd = odd_lanes(c, d);
        store_64(into, even_lanes(ab_even, cd_even), past_caches);
        store_64(into + next, even_lanes(ab_odd, cd_odd), past_caches);
        store_64(into + 2 * next, odd_lanes(ab_even, cd_even), past_caches);
        store_64(into + 3 * next, odd_lanes(ab_odd, cd_odd), past_caches);
      }
    }
  }
  if (rows < of->rows) rest_of(of, from, to, rows, 0, tiles);
  if (tiles < of->tiles) rest_of(of, from, to, 0, tiles, of->tiles - tiles);
}

#define DEFINE_AVX512(name, bytes, past_caches)                                                             \
  __attribute__((target("avx512f"))) static void name(const npumm_pieces *of, const char *from, char *to) { \
    pieces_avx512(of, from, to, bytes, past_caches);                                                        \
  }
DEFINE_AVX512(avx512_16, 16, 0)
DEFINE_AVX512(avx512_32, 32, 0)
DEFINE_AVX512(avx512_16_around, 16, 1)
DEFINE_AVX512(avx512_32_around, 32, 1)

void npumm_pieces_avx512(const npumm_pieces *of, const char *from, char *to, int past_caches) {
  const int around = past_caches && is_aligned(of, to, LINE);
  /* nothing changes places; and of loads of 32 bytes only each second one may be in two lines */
  if (of->bytes == 64) npumm_pieces_avx2(of, from, to, past_caches);
  if (of->bytes == 16) (around ? avx512_16_around : avx512_16)(of, from, to);
  if (of->bytes == 32) (around ? avx512_32_around : avx512_32)(of, from, to);
}
#else
typedef int npumm_pieces_x86_is_empty_here;
#endif
