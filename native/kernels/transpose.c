/* Transposes blocks for npumm_pack. See transpose.h. */
#include "transpose.h"

#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define DEFINE_SCALAR(name, type)                                                                              \
  static void name(const char *src, int64_t col_stride, int64_t rows, int64_t cols, char *dst, int64_t step) { \
    for (int64_t c = 0; c < cols; c++) {                                                                       \
      for (int64_t r = 0; r < rows; r++) {                                                                     \
        memcpy(dst + r * step + c * (int64_t)sizeof(type), src + c * col_stride + r * (int64_t)sizeof(type),   \
               sizeof(type));                                                                                  \
      }                                                                                                        \
    }                                                                                                          \
  }
DEFINE_SCALAR(scalar_1, uint8_t)
DEFINE_SCALAR(scalar_2, uint16_t)
DEFINE_SCALAR(scalar_4, uint32_t)

static void any_rows_scalar(const char *src, int64_t col_stride, int64_t rows, int64_t cols, int64_t element, char *dst,
                            int64_t step) {
  if (element == 1) scalar_1(src, col_stride, rows, cols, dst, step);
  if (element == 2) scalar_2(src, col_stride, rows, cols, dst, step);
  if (element == 4) scalar_4(src, col_stride, rows, cols, dst, step);
}

void npumm_transpose_scalar(const npumm_transposed *of, const char *src, char *dst, int past_caches) {
  (void)past_caches;
  NPUMM_EACH_TILE(of, r, count) {
    any_rows_scalar(src + r * of->element, of->col_stride, count, of->cols, of->element,
                    dst + r / of->tile_rows * of->to_next, of->row_stride);
  }
}

#if defined(__x86_64__) || defined(__aarch64__)

#if defined(__x86_64__)
typedef __m128i vector;
static inline vector load(const char *from) { return _mm_loadu_si128((const __m128i *)(const void *)from); }
static inline void store(char *to, vector v) { _mm_storeu_si128((__m128i *)(void *)to, v); }
static inline vector low_1(vector a, vector b) { return _mm_unpacklo_epi8(a, b); }
static inline vector high_1(vector a, vector b) { return _mm_unpackhi_epi8(a, b); }
static inline vector low_2(vector a, vector b) { return _mm_unpacklo_epi16(a, b); }
static inline vector high_2(vector a, vector b) { return _mm_unpackhi_epi16(a, b); }
static inline vector low_4(vector a, vector b) { return _mm_unpacklo_epi32(a, b); }
static inline vector high_4(vector a, vector b) { return _mm_unpackhi_epi32(a, b); }
#else
typedef uint8x16_t vector;
static inline vector load(const char *from) { return vld1q_u8((const uint8_t *)from); }
static inline void store(char *to, vector v) { vst1q_u8((uint8_t *)to, v); }
static inline vector low_1(vector a, vector b) { return vzip1q_u8(a, b); }
static inline vector high_1(vector a, vector b) { return vzip2q_u8(a, b); }
#define U16(v) vreinterpretq_u16_u8(v)
#define U32(v) vreinterpretq_u32_u8(v)
static inline vector low_2(vector a, vector b) { return vreinterpretq_u8_u16(vzip1q_u16(U16(a), U16(b))); }
static inline vector high_2(vector a, vector b) { return vreinterpretq_u8_u16(vzip2q_u16(U16(a), U16(b))); }
static inline vector low_4(vector a, vector b) { return vreinterpretq_u8_u32(vzip1q_u32(U32(a), U32(b))); }
static inline vector high_4(vector a, vector b) { return vreinterpretq_u8_u32(vzip2q_u32(U32(a), U32(b))); }
#endif

/*
 * A square of 16 bytes by 16 / element: interleaving row i with row i + side/2, log2(side) times, transposes it, since
 * each time moves the highest bit of the row number to the lowest place of the element's number.
 */
#define DEFINE_SQUARE(name, side, low, high)                                       \
  static void name(const char *src, int64_t col_stride, char *dst, int64_t step) { \
    vector even[side], odd[side];                                                  \
    for (int i = 0; i < side; i++) even[i] = load(src + i * col_stride);           \
    for (int done = 1; done < side; done *= 2) {                                   \
      for (int i = 0; i < side / 2; i++) {                                         \
        odd[2 * i] = low(even[i], even[i + side / 2]);                             \
        odd[2 * i + 1] = high(even[i], even[i + side / 2]);                        \
      }                                                                            \
      for (int i = 0; i < side; i++) even[i] = odd[i];                             \
    }                                                                              \
    for (int i = 0; i < side; i++) store(dst + i * step, even[i]);                 \
  }
DEFINE_SQUARE(square_1, 16, low_1, high_1)
DEFINE_SQUARE(square_2, 8, low_2, high_2)
DEFINE_SQUARE(square_4, 4, low_4, high_4)

static void any_rows(const char *src, int64_t col_stride, int64_t rows, int64_t cols, int64_t element, char *dst,
                     int64_t step) {
  const int64_t side = 16 / element;
  const int64_t whole_rows = rows / side * side, whole_cols = cols / side * side;
  for (int64_t c = 0; c < whole_cols; c += side) {
    for (int64_t r = 0; r < whole_rows; r += side) {
      const char *from = src + r * element + c * col_stride;
      char *to = dst + r * step + c * element;
      if (element == 1) square_1(from, col_stride, to, step);
      if (element == 2) square_2(from, col_stride, to, step);
      if (element == 4) square_4(from, col_stride, to, step);
    }
  }
  any_rows_scalar(src + whole_rows * element, col_stride, rows - whole_rows, whole_cols, element,
                  dst + whole_rows * step, step);
  any_rows_scalar(src + whole_cols * col_stride, col_stride, rows, cols - whole_cols, element,
                  dst + whole_cols * element, step);
}

void npumm_transpose(const npumm_transposed *of, const char *src, char *dst, int past_caches) {
  (void)past_caches;
  NPUMM_EACH_TILE(of, r, count) {
    any_rows(src + r * of->element, of->col_stride, count, of->cols, of->element, dst + r / of->tile_rows * of->to_next,
             of->row_stride);
  }
}

#else

void npumm_transpose(const npumm_transposed *of, const char *src, char *dst, int past_caches) {
  npumm_transpose_scalar(of, src, dst, past_caches);
}

#endif
