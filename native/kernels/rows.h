/*
 * The inner loops of the host kernels: one contiguous row at a time. Each has a scalar reference and a version per
 * instruction set; npumm_rows() gives the table that suits the machine. All versions give the same bits.
 */
#ifndef NPUMATMUL_ROWS_H
#define NPUMATMUL_ROWS_H

#include <stdint.h>

#include "transpose.h"

/* Quantization of a row: clamp(round_half_even(x / scale), low, high) + zero, all integers, the sum within int8. */
typedef struct {
  float scale;
  float low, high; /* of the quotient, before `zero` is added */
  int32_t zero;
} npumm_quantizer;

/*
 * Quotients are integers in the end, and nearly always x * (1 / scale) tells which: only where it is as near to a half as
 * its error allows is x divided. That error is below 2^-14 for quotients up to 256 and usual scales.
 */
#define NPUMM_SURE (0.5f - 0x1p-13f)
static inline int npumm_is_usual_scale(float scale) { return scale >= 0x1p-100f && scale <= 0x1p100f; }

/* The same for a row whose elements have steps of their own; arrays of the row's length. */
typedef struct {
  const float *scale, *reciprocal, *low, *high;
  const int32_t *zero;
  int usual; /* whether all scales are */
  int alike; /* whether low, high and zero are the same in all */
} npumm_quantizers;

/*
 * Rows of neighbouring pieces -> tiles of them: piece t of row r goes from r * from_stride + t * bytes to
 * t * to_next + r * bytes.
 */
typedef struct {
  int64_t bytes; /* of a piece: 16, 32 or 64 */
  int64_t rows, tiles;
  int64_t from_stride, to_next;
} npumm_pieces;

/*
 * Some bytes of columns that stand `stride` apart, and what is read after them, `ahead` further on: as many bytes of as
 * many columns, or fewer, are asked for into the second cache.
 */
typedef struct {
  int64_t stride, bytes, cols;
  int64_t ahead, ahead_bytes, ahead_cols;
} npumm_columns;

static inline void npumm_ask_ahead(const npumm_columns *of, const char *column, int64_t c) {
  if (c >= of->ahead_cols) return;
  for (int64_t i = 0; i < of->ahead_bytes; i += 64) __builtin_prefetch(column + of->ahead + i, 0, 2);
}

typedef struct {
  const char *name;
  /* dst[i] = float16(src[i] * scale) */
  void (*f32_to_f16)(const float *src, uint16_t *dst, int64_t n, float scale);
  /* the same, but 1 or -1, by the sign, where that is inf or nan */
  void (*f32_to_f16_high)(const float *src, uint16_t *dst, int64_t n, float scale);
  /* dst[i] = float16(src[i] * scale - float16(src[i] * scale)), or the inner one where it is inf or nan */
  void (*f32_to_f16_low)(const float *src, uint16_t *dst, int64_t n, float scale);
  /* Returns whether every src[i] is finite; what becomes of others, and of quotients that are nan, is `low`. */
  int (*quantize)(const float *src, int8_t *dst, int64_t n, const npumm_quantizer *how);
  int (*quantize_columns)(const float *src, int8_t *dst, int64_t n, const npumm_quantizers *how);
  /* Two values per byte: the low nibbles of (src[i] + 8) >> 4 with `high`, else of src[i]; an odd one at the end has a
     zero beside it. The even element goes into the low nibble, or with `high_first` into the high one. */
  void (*pairs)(const int8_t *src, uint8_t *dst, int64_t n, int high, int high_first);
  /* the same of two columns: of even[i] and odd[i] */
  void (*pair_columns)(const int8_t *even, const int8_t *odd, uint8_t *dst, int64_t n, int high, int high_first);
  /* sum of src[i], modulo 2^32 */
  int32_t (*sum)(const int8_t *src, int64_t n);
  /* largest finite |src[i]|; *finite is cleared where an inf or nan was met */
  float (*absmax)(const float *src, int64_t n, int *finite);
  /* range[0] and range[1] are lowered and raised to the least and the largest finite src[i]; *finite as above */
  void (*minmax)(const float *src, int64_t n, float range[2], int *finite);
  /* largest[i] is raised to the bits of |src[i]|, which grow with it: to those of inf and above by infs and nans */
  void (*absmax_columns)(const float *src, int64_t n, uint32_t *largest);
  /* dst[c * pitch + i] = src[c * stride + i], of columns that npumm_columns describes */
  void (*copy_columns)(const npumm_columns *of, const char *src, char *dst, int64_t pitch);
  /* as npumm_transpose of transpose.h; with `past_caches` whole cache lines may be written around them */
  void (*transpose)(const npumm_transposed *of, const char *src, char *dst, int past_caches);
  /* pieces as npumm_pieces says; with `past_caches` likewise */
  void (*pieces)(const npumm_pieces *of, const char *from, char *to, int past_caches);
} npumm_row_kernels;

extern const npumm_row_kernels npumm_rows_scalar;
#if defined(__x86_64__)
extern const npumm_row_kernels npumm_rows_avx2;
extern const npumm_row_kernels npumm_rows_avx512;
#elif defined(__aarch64__)
extern const npumm_row_kernels npumm_rows_neon;
#endif

void npumm_copy_columns_base(const npumm_columns *of, const char *src, char *dst, int64_t pitch);
void npumm_pieces_base(const npumm_pieces *of, const char *from, char *to, int past_caches);
#if defined(__x86_64__)
void npumm_copy_columns_avx2(const npumm_columns *of, const char *src, char *dst, int64_t pitch);
void npumm_pieces_avx2(const npumm_pieces *of, const char *from, char *to, int past_caches);
void npumm_pieces_avx512(const npumm_pieces *of, const char *from, char *to, int past_caches);
#elif defined(__aarch64__)
void npumm_pieces_neon(const npumm_pieces *of, const char *from, char *to, int past_caches);
#endif

/* Those that this machine can run, by number: 0 is the scalar reference, the last one is the best. NULL beyond it. */
const npumm_row_kernels *npumm_rows_at(int index);

const npumm_row_kernels *npumm_rows(void);

#endif
