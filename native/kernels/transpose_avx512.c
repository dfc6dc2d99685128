/* Transposes blocks with AVX-512: four squares of 16 bytes in a register. See transpose.h. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "transpose.h"

#define TARGET target("avx512f,avx512bw")
#define INLINE __attribute__((always_inline, TARGET)) static inline

typedef __m512i vector;
INLINE vector load(const char *from) { return _mm512_loadu_si512((const void *)from); }
INLINE vector load_two(const char *from, const char *upper) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)from)),
                            _mm256_loadu_si256((const __m256i *)(const void *)upper), 1);
}
INLINE void store(char *to, vector line, const int past_caches) {
  if (past_caches) _mm512_stream_si512((void *)to, line);
  else _mm512_storeu_si512((void *)to, line);
}

/* Lanes 0 and 2 of both, or 1 and 3. */
INLINE vector even_lanes(vector a, vector b) { return _mm512_shuffle_i64x2(a, b, 0x88); }
INLINE vector odd_lanes(vector a, vector b) { return _mm512_shuffle_i64x2(a, b, 0xdd); }

/* One step of transposing the square in each lane; see transpose.c. `element` is 1 or 2. */
INLINE void interleave(const int element, const int side, const vector *from, vector *to) {
#pragma GCC unroll 8
  for (int i = 0; i < side / 2; i++) {
    const vector a = from[i], b = from[i + side / 2];
    to[2 * i] = element == 1 ? _mm512_unpacklo_epi8(a, b) : _mm512_unpacklo_epi16(a, b);
    to[2 * i + 1] = element == 1 ? _mm512_unpackhi_epi8(a, b) : _mm512_unpackhi_epi16(a, b);
  }
}

/* 32 bytes in each of 32 columns -> 32 rows of 32 bytes that follow each other. */
INLINE void bytes_32(const char *src, int64_t col_stride, char *dst, const int past_caches) {
  vector x[16], y[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) x[i] = load_two(src + i * col_stride, src + (16 + i) * col_stride);
  interleave(1, 16, x, y), interleave(1, 16, y, x), interleave(1, 16, x, y), interleave(1, 16, y, x);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    store(dst + 32 * i, even_lanes(x[i], x[i + 1]), past_caches);
    store(dst + 32 * (16 + i), odd_lanes(x[i], x[i + 1]), past_caches);
  }
}

/* 64 bytes in each of 16 columns -> 64 rows of 16 bytes that follow each other. */
INLINE void bytes_16(const char *src, int64_t col_stride, char *dst, const int past_caches) {
  vector x[16], y[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) x[i] = load(src + i * col_stride);
  interleave(1, 16, x, y), interleave(1, 16, y, x), interleave(1, 16, x, y), interleave(1, 16, y, x);
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) { /* the lanes of a register are rows 16 apart: those of four rows change places */
    const vector even = even_lanes(x[i], x[i + 1]), odd = odd_lanes(x[i], x[i + 1]);
    const vector even_2 = even_lanes(x[i + 2], x[i + 3]), odd_2 = odd_lanes(x[i + 2], x[i + 3]);
    store(dst + 16 * i, even_lanes(even, even_2), past_caches);
    store(dst + 16 * (16 + i), even_lanes(odd, odd_2), past_caches);
    store(dst + 16 * (32 + i), odd_lanes(even, even_2), past_caches);
    store(dst + 16 * (48 + i), odd_lanes(odd, odd_2), past_caches);
  }
}

/* 16 halves in each of 32 columns -> 16 rows of 64 bytes that follow each other. */
INLINE void halves_32(const char *src, int64_t col_stride, char *dst, const int past_caches) {
  vector x[16], y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    x[i] = load_two(src + i * col_stride, src + (8 + i) * col_stride);
    x[8 + i] = load_two(src + (16 + i) * col_stride, src + (24 + i) * col_stride);
  }
#pragma GCC unroll 2
  for (int part = 0; part < 16; part += 8) {
    interleave(2, 8, x + part, y + part), interleave(2, 8, y + part, x + part), interleave(2, 8, x + part, y + part);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    store(dst + 64 * i, even_lanes(y[i], y[8 + i]), past_caches);
    store(dst + 64 * (8 + i), odd_lanes(y[i], y[8 + i]), past_caches);
  }
}

/* The usual tiles, each of which is transposed at once. */
#define DEFINE_TILES(name, past_caches)                                                                              \
  __attribute__((TARGET)) static void name##_##past_caches(const npumm_transposed *of, const char *src, char *dst) { \
    const int64_t tiles = of->rows / of->tile_rows, next = of->tile_rows * of->element, to_next = of->to_next;       \
    for (int64_t tile = 0; tile < tiles; tile++) {                                                                   \
      name(src + tile * next, NPUMM_PITCH, dst + tile * to_next, past_caches);                                       \
    }                                                                                                                \
  }
DEFINE_TILES(bytes_32, 0)
DEFINE_TILES(bytes_16, 0)
DEFINE_TILES(halves_32, 0)
DEFINE_TILES(bytes_32, 1)
DEFINE_TILES(bytes_16, 1)
DEFINE_TILES(halves_32, 1)

/* Everything else is npumm_transpose_avx2's. */
void npumm_transpose_avx512(const npumm_transposed *of, const char *src, char *dst, int past_caches) {
  const int64_t step = of->cols * of->element, tile = of->tile_rows;
  const int is_dense = of->row_stride == step && of->rows >= tile && of->col_stride == NPUMM_PITCH;
  const int around = past_caches && ((uintptr_t)dst | (uintptr_t)of->to_next) % 64 == 0;
  int64_t done = of->rows / tile * tile;
  if (is_dense && of->element == 1 && step == 32 && tile == 32) {
    (around ? bytes_32_1 : bytes_32_0)(of, src, dst);
  } else if (is_dense && of->element == 1 && step == 16 && tile == 64) {
    (around ? bytes_16_1 : bytes_16_0)(of, src, dst);
  } else if (is_dense && of->element == 2 && step == 64 && tile == 16) {
    (around ? halves_32_1 : halves_32_0)(of, src, dst);
  } else {
    done = 0;
  }
  if (done < of->rows) {
    npumm_transposed rest = *of;
    rest.rows -= done;
    npumm_transpose_avx2(&rest, src + done * of->element, dst + done / tile * of->to_next, past_caches);
  }
}
#else
typedef int npumm_transpose_avx512_is_empty_here;
#endif
