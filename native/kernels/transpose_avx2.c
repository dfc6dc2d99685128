/* Transposes blocks with AVX2: two squares of 16 bytes in a register. See transpose.h. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "transpose.h"

#define TARGET target("avx2")
#define INLINE __attribute__((always_inline, TARGET)) static inline

typedef __m256i vector;
INLINE vector load(const char *from) { return _mm256_loadu_si256((const __m256i *)(const void *)from); }
INLINE vector load_two(const char *from, const char *upper) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)from)),
                                 _mm_loadu_si128((const __m128i *)(const void *)upper), 1);
}
INLINE void store(char *to, vector v, const int past_caches) {
  if (past_caches) _mm256_stream_si256((__m256i *)(void *)to, v);
  else _mm256_storeu_si256((__m256i *)(void *)to, v);
}
INLINE vector low_of(const int element, vector a, vector b) {
  if (element == 1) return _mm256_unpacklo_epi8(a, b);
  return element == 2 ? _mm256_unpacklo_epi16(a, b) : _mm256_unpacklo_epi32(a, b);
}
INLINE vector high_of(const int element, vector a, vector b) {
  if (element == 1) return _mm256_unpackhi_epi8(a, b);
  return element == 2 ? _mm256_unpackhi_epi16(a, b) : _mm256_unpackhi_epi32(a, b);
}

/* The square in each lane of 16 / element registers is transposed; see transpose.c for why interleaving does that. */
INLINE void transpose_lanes(const int element, vector *x) {
  const int side = 16 / element;
  vector y[16];
#pragma GCC unroll 4
  for (int done = 1; done < side; done *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < side / 2; i++) {
      y[2 * i] = low_of(element, x[i], x[i + side / 2]);
      y[2 * i + 1] = high_of(element, x[i], x[i + side / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < side; i++) x[i] = y[i];
  }
}

/* 32 bytes in each of 16 / element columns -> twice as many rows of 16 bytes, anywhere. */
INLINE void squares(const int element, const char *src, int64_t col_stride, char *dst, int64_t step) {
  const int side = 16 / element;
  vector x[16];
#pragma GCC unroll 16
  for (int i = 0; i < side; i++) x[i] = load(src + i * col_stride);
  transpose_lanes(element, x);
#pragma GCC unroll 16
  for (int i = 0; i < side; i++) {
    _mm_storeu_si128((__m128i *)(void *)(dst + i * step), _mm256_castsi256_si128(x[i]));
    _mm_storeu_si128((__m128i *)(void *)(dst + (i + side) * step), _mm256_extracti128_si256(x[i], 1));
  }
}
#define DEFINE_SQUARES(name, element)                                                                      \
  __attribute__((TARGET)) static void name(const char *src, int64_t col_stride, char *dst, int64_t step) { \
    squares(element, src, col_stride, dst, step);                                                          \
  }
DEFINE_SQUARES(squares_1, 1)
DEFINE_SQUARES(squares_2, 2)
DEFINE_SQUARES(squares_4, 4)

/* 16 bytes in each of 32 columns -> 16 rows of 32 bytes that follow each other. */
INLINE void bytes_32(const char *src, int64_t col_stride, char *dst, const int past_caches) {
  vector x[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) x[i] = load_two(src + i * col_stride, src + (16 + i) * col_stride);
  transpose_lanes(1, x);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) store(dst + 32 * i, x[i], past_caches);
}

/* 32 bytes in each of 16 columns -> 32 rows of 16 bytes that follow each other. */
INLINE void bytes_16(const char *src, int64_t col_stride, char *dst, const int past_caches) {
  vector x[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) x[i] = load(src + i * col_stride);
  transpose_lanes(1, x);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) store(dst + 16 * i, _mm256_permute2x128_si256(x[i], x[i + 1], 0x20), past_caches);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    store(dst + 16 * (16 + i), _mm256_permute2x128_si256(x[i], x[i + 1], 0x31), past_caches);
  }
}

/* 8 halves in each of 32 columns -> 8 rows of 64 bytes that follow each other. */
INLINE void halves_32(const char *src, int64_t col_stride, char *dst, const int past_caches) {
  vector x[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    x[i] = load_two(src + i * col_stride, src + (8 + i) * col_stride);
    x[8 + i] = load_two(src + (16 + i) * col_stride, src + (24 + i) * col_stride);
  }
  transpose_lanes(2, x), transpose_lanes(2, x + 8);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) store(dst + 64 * i, x[i], past_caches), store(dst + 64 * i + 32, x[8 + i], past_caches);
}

#define DEFINE_BOTH(name)                                                                                    \
  __attribute__((TARGET)) static void name##_around(const char *s, int64_t c, char *d) { name(s, c, d, 1); } \
  __attribute__((TARGET)) static void name##_into(const char *s, int64_t c, char *d) { name(s, c, d, 0); }
DEFINE_BOTH(bytes_32)
DEFINE_BOTH(bytes_16)
DEFINE_BOTH(halves_32)

/* Rows and columns of any number. */
static void any_rows(const char *src, int64_t col_stride, int64_t rows, int64_t cols, int64_t element, char *dst,
                     int64_t dst_row_stride) {
  const int64_t side = 16 / element;
  const int64_t whole_rows = rows / (2 * side) * 2 * side, whole_cols = cols / side * side;
  for (int64_t r = 0; r < whole_rows; r += 2 * side) {
    for (int64_t c = 0; c < whole_cols; c += side) {
      const char *from = src + r * element + c * col_stride;
      char *to = dst + r * dst_row_stride + c * element;
      if (element == 1) squares_1(from, col_stride, to, dst_row_stride);
      if (element == 2) squares_2(from, col_stride, to, dst_row_stride);
      if (element == 4) squares_4(from, col_stride, to, dst_row_stride);
    }
  }
  if (rows > whole_rows) {
    const npumm_transposed rest = {rows - whole_rows, whole_cols, element, col_stride, rows, dst_row_stride, 0};
    npumm_transpose(&rest, src + whole_rows * element, dst + whole_rows * dst_row_stride, 0);
  }
  if (cols > whole_cols) {
    const npumm_transposed rest = {rows, cols - whole_cols, element, col_stride, rows, dst_row_stride, 0};
    npumm_transpose(&rest, src + whole_cols * col_stride, dst + whole_cols * element, 0);
  }
}

static void one_tile(const char *src, int64_t col_stride, int64_t rows, int64_t cols, int64_t element, char *dst,
                     int64_t dst_row_stride, int past_caches) {
  const int64_t step = cols * element;
  const int is_usual = (element == 1 && (step == 32 || step == 16)) || (element == 2 && step == 64);
  int64_t r = 0;
  if (is_usual && dst_row_stride == step) { /* the usual rows of tiles: whole lines, one after the other */
    const int64_t at_once = 512 / step;
    const int around = past_caches && (uintptr_t)dst % 64 == 0;
    for (; r + at_once <= rows; r += at_once) {
      const char *from = src + r * element;
      char *to = dst + r * step;
      if (step == 32) (around ? bytes_32_around : bytes_32_into)(from, col_stride, to);
      if (step == 16) (around ? bytes_16_around : bytes_16_into)(from, col_stride, to);
      if (step == 64) (around ? halves_32_around : halves_32_into)(from, col_stride, to);
    }
  }
  if (r < rows)
    any_rows(src + r * element, col_stride, rows - r, cols, element, dst + r * dst_row_stride, dst_row_stride);
}

void npumm_transpose_avx2(const npumm_transposed *of, const char *src, char *dst, int past_caches) {
  NPUMM_EACH_TILE(of, r, count) {
    one_tile(src + r * of->element, of->col_stride, count, of->cols, of->element, dst + r / of->tile_rows * of->to_next,
             of->row_stride, past_caches);
  }
}
#else
typedef int npumm_transpose_avx2_is_empty_here;
#endif
