/* Strided memory -> tiles, with conversion: one pass over the source, padding written as zeros. */
#include <string.h>

#include "npumatmul_kernels.h"
#include "rows.h"
#include "tiling.h"
#include "transpose.h"

/*
 * Work is done in blocks of BLOCK_ROWS x BLOCK_COLS: a source whose rows are not contiguous is gathered into a block
 * first (in whichever order walks its memory forwards), so each cache line of it is touched once.
 */
enum { BLOCK_ROWS = 32, BLOCK_COLS = 256, FEW_ROWS = 8 };

typedef enum {
  COPIED,
  INT4_PAIRS,
  TO_HALF,
  TO_HALF_HIGH,
  TO_HALF_LOW,
  QUANTIZED,
  QUANTIZED_PAIRS,
  QUANTIZED_SPLIT
} kind;

/* What a conversion is made of. */
typedef struct {
  kind kind;
  int64_t source_bytes, bits; /* of an element before and after */
  int high_first;
  float levels; /* largest quantized value */
} recipe;

static recipe recipe_of(npumm_conversion conversion) {
  const int64_t bits = npumm_element_bits(conversion);
  const int high_first = conversion == NPUMM_INT4_HIGH_FIRST || conversion == NPUMM_F32_TO_I4_HIGH_FIRST ||
                         conversion == NPUMM_F32_TO_I4_SPLIT_HIGH_FIRST;
  recipe result = {COPIED, 4, bits, high_first, 0.0f};
  switch (conversion) {
    case NPUMM_COPY_8:
    case NPUMM_COPY_16:
    case NPUMM_COPY_32:
      result.source_bytes = bits / 8;
      break;
    case NPUMM_INT4:
    case NPUMM_INT4_HIGH_FIRST:
      result.kind = INT4_PAIRS;
      result.source_bytes = 1;
      break;
    case NPUMM_F32_TO_F16:
      result.kind = TO_HALF;
      break;
    case NPUMM_F32_TO_F16_HIGH:
      result.kind = TO_HALF_HIGH;
      break;
    case NPUMM_F32_TO_F16_LOW:
      result.kind = TO_HALF_LOW;
      break;
    case NPUMM_F32_TO_I8:
      result.kind = QUANTIZED;
      result.levels = 127.0f;
      break;
    case NPUMM_F32_TO_I4:
    case NPUMM_F32_TO_I4_HIGH_FIRST:
      result.kind = QUANTIZED_PAIRS;
      result.levels = 7.0f;
      break;
    case NPUMM_F32_TO_I4_SPLIT:
    case NPUMM_F32_TO_I4_SPLIT_HIGH_FIRST:
      result.kind = QUANTIZED_SPLIT;
      result.levels = 119.0f;
      break;
  }
  return result;
}

int64_t npumm_packed_bytes(const npumm_tiling *tiling, npumm_conversion conversion) {
  const int64_t bits = npumm_element_bits(conversion);
  if (!npumm_tiling_is_valid(tiling) || bits == 0) return -1;
  if (bits == 4 && tiling->tile_cols % 2 != 0) return -1; /* a pair never straddles two tiles */
  if (recipe_of(conversion).kind == QUANTIZED_SPLIT && tiling->rows % 2 != 0) return -1; /* two images of each row */
  return tiling->padded_rows * tiling->padded_cols * bits / 8;
}

/* One element type of the gather: rows x cols of `src` into a dense block with BLOCK_COLS columns. */
#define DEFINE_GATHER(name, type)                                                                                    \
  static void name(const char *src, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols, void *out) { \
    type *block = out;                                                                                               \
    const int64_t row_step = row_stride < 0 ? -row_stride : row_stride;                                              \
    const int64_t col_step = col_stride < 0 ? -col_stride : col_stride;                                              \
    if (row_step < col_step) {                                                                                       \
      for (int64_t c = 0; c < cols; c++)                                                                             \
        for (int64_t r = 0; r < rows; r++)                                                                           \
          memcpy(&block[r * BLOCK_COLS + c], src + r * row_stride + c * col_stride, sizeof(type));                   \
    } else {                                                                                                         \
      for (int64_t r = 0; r < rows; r++)                                                                             \
        for (int64_t c = 0; c < cols; c++)                                                                           \
          memcpy(&block[r * BLOCK_COLS + c], src + r * row_stride + c * col_stride, sizeof(type));                   \
    }                                                                                                                \
  }
DEFINE_GATHER(gather_1, uint8_t)
DEFINE_GATHER(gather_2, uint16_t)
DEFINE_GATHER(gather_4, uint32_t)

static void gather(int64_t element, const char *src, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols,
                   void *block) {
  if (row_stride == element) {
    npumm_transpose(src, col_stride, rows, cols, element, block, BLOCK_COLS * element);
    return;
  }
  if (element == 1) gather_1(src, row_stride, col_stride, rows, cols, block);
  if (element == 2) gather_2(src, row_stride, col_stride, rows, cols, block);
  if (element == 4) gather_4(src, row_stride, col_stride, rows, cols, block);
}

static npumm_quantizer quantizer_of(const npumm_values *values, float levels, int64_t r) {
  const int32_t zero = values->row_zero ? values->row_zero[r] : 0;
  const float least = values->row_zero ? -levels - 1.0f : -levels;
  const npumm_quantizer result = {values->row_scale ? values->row_scale[r] : 1.0f, least - (float)zero,
                                  levels - (float)zero, zero};
  return result;
}

/*
 * The converted rows of a block: elements, or the high halves of a split with the low ones beside them. Rows stand a
 * cache line further apart than they are long, so that those of a column do not fall into the same few cache sets.
 */
enum { IMAGE_BYTES = BLOCK_COLS * 4 + 64, LOW_BYTES = BLOCK_COLS / 2 + 64 };
typedef struct {
  _Alignas(64) uint8_t image[BLOCK_ROWS][IMAGE_BYTES];
  _Alignas(64) uint8_t low[BLOCK_ROWS][LOW_BYTES];
} converted;

/* n contiguous elements of row r; *sum is that of integers, where it is wanted. Returns 0, or NPUMM_NOT_FINITE. */
static int convert(const npumm_row_kernels *rows, const recipe *how, const npumm_values *values, const void *src,
                   int64_t r, int64_t n, uint8_t *image, uint8_t *low, int32_t *sum) {
  const float scale = values->row_scale ? values->row_scale[r] : 1.0f;
  const int8_t *integers = src; /* whose sum may be wanted */
  int8_t codes[BLOCK_COLS], *quantized = how->kind == QUANTIZED ? (int8_t *)image : codes;
  int finite = 1;
  if (how->levels > 0.0f) {
    const npumm_quantizer quantizer = quantizer_of(values, how->levels, r);
    finite = rows->quantize(src, quantized, n, &quantizer);
    integers = quantized;
  }
  switch (how->kind) {
    case COPIED:
      memcpy(image, src, (size_t)(n * how->source_bytes));
      break;
    case TO_HALF:
      rows->f32_to_f16(src, (uint16_t *)(void *)image, n, scale);
      break;
    case TO_HALF_HIGH:
      rows->f32_to_f16_high(src, (uint16_t *)(void *)image, n, scale);
      break;
    case TO_HALF_LOW:
      rows->f32_to_f16_low(src, (uint16_t *)(void *)image, n, scale);
      break;
    case QUANTIZED:
      break;
    case INT4_PAIRS:
    case QUANTIZED_PAIRS:
      rows->pairs(integers, image, n, 0, how->high_first);
      break;
    case QUANTIZED_SPLIT:
      rows->pairs(integers, image, n, 1, how->high_first);
      rows->pairs(integers, low, n, 0, how->high_first); /* l = q modulo 16 */
      break;
  }
  if (values->row_sum) *sum = rows->sum(integers, n);
  return finite ? NPUMM_OK : NPUMM_NOT_FINITE;
}

/*
 * Lays rows of `padded` elements each, those from row r and column c on, into their tiles: piece by piece of the columns,
 * since pieces of rows that follow each other in a tile stand side by side there.
 */
static void scatter(const npumm_tiling *t, int64_t bits, int64_t r, int64_t rows, int64_t c, int64_t padded,
                    const void *from, int64_t from_stride, void *dst) {
  while (rows > 0) {
    const int64_t in_tile = t->tile_rows - r % t->tile_rows, count = in_tile < rows ? in_tile : rows;
    const int64_t step = t->tile_cols * bits / 8;
    const char *piece = from;
    for (npumm_walk walk = npumm_walk_row(t, r, c, padded); walk.length > 0; npumm_walk_on(&walk)) {
      const int64_t bytes = walk.length * bits / 8;
      char *to = (char *)dst + walk.offset * bits / 8;
      for (int64_t i = 0; i < count; i++) npumm_copy(to + i * step, piece + i * from_stride, bytes);
      piece += bytes;
    }
    from = (const char *)from + count * from_stride;
    r += count;
    rows -= count;
  }
}

/* Whether what is given beside the values belongs to the conversion, and zero points lie where they can. */
static int values_are_valid(const npumm_values *values, const recipe *how, int64_t rows) {
  const int integers = how->levels > 0.0f || how->kind == INT4_PAIRS || values->conversion == NPUMM_COPY_8;
  if (values->row_sum && !integers) return 0;
  if (!values->row_zero) return 1;
  if (how->levels <= 0.0f) return 0;
  const int32_t levels = (int32_t)how->levels;
  for (int64_t r = 0; r < rows; r++) {
    if (values->row_zero[r] < -levels - 1 || values->row_zero[r] > levels) return 0;
  }
  return 1;
}

/* Rows r0 to r0 + rows of the source, whose row 0 is row `first` of the image, over all columns. */
static int pack_block(const npumm_tiling *t, const npumm_values *values, const recipe *how, const char *src,
                      int64_t row_stride, int64_t col_stride, int64_t first, int64_t r0, int64_t rows, void *dst) {
  const npumm_row_kernels *kernels = npumm_rows();
  uint32_t block[BLOCK_ROWS * BLOCK_COLS]; /* the gathered source, of any element size */
  converted out;
  for (int64_t c0 = 0; c0 < t->padded_cols; c0 += BLOCK_COLS) {
    const int64_t padded = t->padded_cols - c0 < BLOCK_COLS ? t->padded_cols - c0 : BLOCK_COLS;
    const int64_t cols = c0 >= t->cols ? 0 : (t->cols - c0 < padded ? t->cols - c0 : padded);
    /* The corner's address is only formed where there is data: beyond it, it could point outside the source. */
    const char *corner = cols ? src + r0 * row_stride + c0 * col_stride : src;
    /* Direct reads need contiguous rows; 4-byte ones are read as floats, so they must be aligned too. */
    const int direct = col_stride == how->source_bytes &&
                       (how->source_bytes != 4 || ((uintptr_t)corner % 4 == 0 && row_stride % 4 == 0));
    if (!direct) gather(how->source_bytes, corner, row_stride, col_stride, rows, cols, block);
    const char *from = direct ? corner : (const char *)block;
    const int64_t stride = direct ? row_stride : BLOCK_COLS * how->source_bytes;
    if (how->kind == COPIED && cols == padded && !values->row_sum) {
      /* A few rows at a time: rows of the source may stand a power of two apart and push each other out of the cache. */
      for (int64_t r = 0; r < rows; r += FEW_ROWS) {
        scatter(t, how->bits, first + r0 + r, rows - r < FEW_ROWS ? rows - r : FEW_ROWS, c0, padded, from + r * stride,
                stride, dst);
      }
      continue;
    }
    if (cols < padded) memset(&out, 0, sizeof out);
    for (int64_t r = 0; cols > 0 && r < rows; r++) {
      int32_t sum = 0;
      const int code = convert(kernels, how, values, from + r * stride, r0 + r, cols, out.image[r], out.low[r], &sum);
      if (code) return code;
      if (values->row_sum) {
        const uint32_t before = c0 ? (uint32_t)values->row_sum[r0 + r] : 0;
        values->row_sum[r0 + r] = (int32_t)(before + (uint32_t)sum);
      }
    }
    scatter(t, how->bits, first + r0, rows, c0, padded, out.image, IMAGE_BYTES, dst);
    if (how->kind == QUANTIZED_SPLIT) {
      scatter(t, how->bits, t->rows / 2 + first + r0, rows, c0, padded, out.low, LOW_BYTES, dst);
    }
  }
  return NPUMM_OK;
}

/* Zeros below the rows of the image. */
static void pad_rows(const npumm_tiling *t, int64_t bits, void *dst) {
  const uint32_t zeros[BLOCK_COLS] = {0};
  for (int64_t c0 = 0; c0 < t->padded_cols; c0 += BLOCK_COLS) {
    const int64_t padded = t->padded_cols - c0 < BLOCK_COLS ? t->padded_cols - c0 : BLOCK_COLS;
    scatter(t, bits, t->rows, t->padded_rows - t->rows, c0, padded, zeros, 0, dst);
  }
}

int npumm_pack_rows(const npumm_tiling *tiling, const npumm_values *values, int64_t first, int64_t rows,
                    const void *src, int64_t src_row_stride, int64_t src_col_stride, void *dst, int64_t dst_bytes) {
  const int64_t needed = values ? npumm_packed_bytes(tiling, values->conversion) : -1;
  if (needed < 0 || !dst) return NPUMM_BAD_ARGUMENT;
  if (dst_bytes < needed) return NPUMM_BUFFER_TOO_SMALL;
  const npumm_tiling t = *tiling;
  const recipe how = recipe_of(values->conversion);
  const int64_t source_rows = how.kind == QUANTIZED_SPLIT ? t.rows / 2 : t.rows;
  if (first < 0 || rows < 0 || first > source_rows - rows || !values_are_valid(values, &how, rows)) {
    return NPUMM_BAD_ARGUMENT;
  }
  const int last = first + rows == source_rows;
  if (t.cols == 0 && values->row_sum) memset(values->row_sum, 0, (size_t)rows * sizeof *values->row_sum);
  if (source_rows == 0 || t.cols == 0) {
    if (last) memset(dst, 0, (size_t)needed);
    return NPUMM_OK;
  }
  if (!src && rows > 0) return NPUMM_BAD_ARGUMENT;
  for (int64_t r0 = 0; r0 < rows; r0 += BLOCK_ROWS) {
    const int64_t count = rows - r0 < BLOCK_ROWS ? rows - r0 : BLOCK_ROWS;
    const int code = pack_block(&t, values, &how, src, src_row_stride, src_col_stride, first, r0, count, dst);
    if (code) return code;
  }
  if (last) pad_rows(&t, how.bits, dst);
  return NPUMM_OK;
}

int npumm_pack(const npumm_tiling *tiling, const npumm_values *values, const void *src, int64_t src_row_stride,
               int64_t src_col_stride, void *dst, int64_t dst_bytes) {
  if (!tiling || !values) return NPUMM_BAD_ARGUMENT;
  const int64_t rows = recipe_of(values->conversion).kind == QUANTIZED_SPLIT ? tiling->rows / 2 : tiling->rows;
  return npumm_pack_rows(tiling, values, 0, rows, src, src_row_stride, src_col_stride, dst, dst_bytes);
}
