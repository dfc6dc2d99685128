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

#define DEFINE_BOTH(name)                                                                                    \
  __attribute__((TARGET)) static void name##_around(const char *s, int64_t c, char *d) { name(s, c, d, 1); } \
  __attribute__((TARGET)) static void name##_into(const char *s, int64_t c, char *d) { name(s, c, d, 0); }
DEFINE_BOTH(bytes_32)
DEFINE_BOTH(bytes_16)
DEFINE_BOTH(halves_32)

/* The usual rows of tiles; everything else is npumm_transpose_avx2's. */
void npumm_transpose_avx512(const char *src, int64_t col_stride, int64_t rows, int64_t cols, int64_t element, char *dst,
                            int64_t dst_row_stride, int past_caches) {
  const int64_t step = cols * element;
  const int64_t at_once = element == 1 && step == 32 ? 32 : element == 1 && step == 16 ? 64 : 16;
  const int is_usual = element <= 2 && (step == 32 || step == 16 || step == 64) && (element == 1) != (step == 64);
  int64_t r = 0;
  if (is_usual && dst_row_stride == step) {
    const int around = past_caches && (uintptr_t)dst % 64 == 0;
    for (; r + at_once <= rows; r += at_once) {
      const char *from = src + r * element;
      char *to = dst + r * step;
      if (step == 32) (around ? bytes_32_around : bytes_32_into)(from, col_stride, to);
      if (step == 16) (around ? bytes_16_around : bytes_16_into)(from, col_stride, to);
      if (step == 64) (around ? halves_32_around : halves_32_into)(from, col_stride, to);
    }
  }
  if (r < rows) {
    npumm_transpose_avx2(src + r * element, col_stride, rows - r, cols, element, dst + r * dst_row_stride,
                         dst_row_stride, 0);
  }
}
#else
typedef int npumm_transpose_avx512_is_empty_here;
#endif
