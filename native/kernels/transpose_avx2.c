/* Transposes blocks with AVX2: two squares of 16 bytes side by side. See transpose.h. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "transpose.h"

#define AVX2 __attribute__((target("avx2")))
#define INLINE __attribute__((always_inline, target("avx2"))) static inline

typedef __m256i vector;
INLINE vector low_1(vector a, vector b) { return _mm256_unpacklo_epi8(a, b); }
INLINE vector high_1(vector a, vector b) { return _mm256_unpackhi_epi8(a, b); }
INLINE vector low_2(vector a, vector b) { return _mm256_unpacklo_epi16(a, b); }
INLINE vector high_2(vector a, vector b) { return _mm256_unpackhi_epi16(a, b); }
INLINE vector low_4(vector a, vector b) { return _mm256_unpacklo_epi32(a, b); }
INLINE vector high_4(vector a, vector b) { return _mm256_unpackhi_epi32(a, b); }

/* Each lane holds a square; see transpose.c for why interleaving transposes it. */
#define DEFINE_SQUARES(name, side, low, high)                                                               \
  AVX2 static void name(const char *src, int64_t col_stride, char *dst, int64_t step) {                     \
    vector even[side], odd[side];                                                                           \
    _Pragma("GCC unroll 16") for (int i = 0; i < side; i++) {                                               \
      even[i] = _mm256_loadu_si256((const __m256i *)(const void *)(src + i * col_stride));                  \
    }                                                                                                       \
    _Pragma("GCC unroll 4") for (int done = 1; done < side; done *= 2) {                                    \
      _Pragma("GCC unroll 8") for (int i = 0; i < side / 2; i++) {                                          \
        odd[2 * i] = low(even[i], even[i + side / 2]);                                                      \
        odd[2 * i + 1] = high(even[i], even[i + side / 2]);                                                 \
      }                                                                                                     \
      _Pragma("GCC unroll 16") for (int i = 0; i < side; i++) even[i] = odd[i];                             \
    }                                                                                                       \
    _Pragma("GCC unroll 16") for (int i = 0; i < side; i++) {                                               \
      _mm_storeu_si128((__m128i *)(void *)(dst + i * step), _mm256_castsi256_si128(even[i]));               \
      _mm_storeu_si128((__m128i *)(void *)(dst + (i + side) * step), _mm256_extracti128_si256(even[i], 1)); \
    }                                                                                                       \
  }
DEFINE_SQUARES(squares_1, 16, low_1, high_1)
DEFINE_SQUARES(squares_2, 8, low_2, high_2)
DEFINE_SQUARES(squares_4, 4, low_4, high_4)

void npumm_transpose_avx2(const char *src, int64_t col_stride, int64_t rows, int64_t cols, int64_t element, char *dst,
                          int64_t dst_row_stride, int past_caches) {
  (void)past_caches;
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
    npumm_transpose(src + whole_rows * element, col_stride, rows - whole_rows, whole_cols, element,
                    dst + whole_rows * dst_row_stride, dst_row_stride, 0);
  }
  if (cols > whole_cols) {
    npumm_transpose(src + whole_cols * col_stride, col_stride, rows, cols - whole_cols, element,
                    dst + whole_cols * element, dst_row_stride, 0);
  }
}
#else
typedef int npumm_transpose_avx2_is_empty_here;
#endif
