/* Packing row by row: rows of the source are read along their columns, or gathered first. See pack.h. */
#include <string.h>

#include "pack.h"
#include "tiling.h"

/*
 * Work is done in blocks of BLOCK_ROWS x BLOCK_COLS: a source whose rows are not contiguous is gathered into a block
 * first (in whichever order walks its memory forwards), so each cache line of it is touched once. Where rows are read as
 * they stand and become bytes, WIDE_COLS of them take as much room, and cost a quarter of the calls.
 */
enum { BLOCK_ROWS = 32, BLOCK_COLS = 256, WIDE_COLS = 1024 };

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
  if (element == 1) gather_1(src, row_stride, col_stride, rows, cols, block);
  if (element == 2) gather_2(src, row_stride, col_stride, rows, cols, block);
  if (element == 4) gather_4(src, row_stride, col_stride, rows, cols, block);
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
static int convert(const npumm_row_kernels *rows, const npumm_recipe *how, const npumm_values *values, const void *src,
                   int64_t r, int64_t n, uint8_t *image, uint8_t *low, int32_t *sum) {
  const float scale = values->row_scale ? values->row_scale[r] : 1.0f;
  const int8_t *integers = src; /* whose sum may be wanted */
  int8_t codes[BLOCK_COLS], *quantized = how->kind == NPUMM_QUANTIZED ? (int8_t *)image : codes;
  int finite = 1;
  if (how->levels > 0.0f) {
    const npumm_quantizer quantizer = npumm_quantizer_of(values, how->levels, r);
    finite = rows->quantize(src, quantized, n, &quantizer);
    integers = quantized;
  }
  switch (how->kind) {
    case NPUMM_COPIED:
      memcpy(image, src, (size_t)(n * how->source_bytes));
      break;
    case NPUMM_TO_HALF:
      rows->f32_to_f16(src, (uint16_t *)(void *)image, n, scale);
      break;
    case NPUMM_TO_HALF_HIGH:
      rows->f32_to_f16_high(src, (uint16_t *)(void *)image, n, scale);
      break;
    case NPUMM_TO_HALF_LOW:
      rows->f32_to_f16_low(src, (uint16_t *)(void *)image, n, scale);
      break;
    case NPUMM_QUANTIZED:
      break;
    case NPUMM_INT4_PAIRS:
    case NPUMM_QUANTIZED_PAIRS:
      rows->pairs(integers, image, n, 0, how->high_first);
      break;
    case NPUMM_QUANTIZED_SPLIT:
      rows->pairs(integers, image, n, 1, how->high_first);
      rows->pairs(integers, low, n, 0, how->high_first); /* l = q modulo 16 */
      break;
  }
  if (values->row_sum) *sum = rows->sum(integers, n);
  return finite ? NPUMM_OK : NPUMM_NOT_FINITE;
}

/* What a row has in the next block: pieces are too short for the processor to see that they follow each other. */
static void ask_for_next(const char *row, int64_t at_once, int64_t left, const npumm_recipe *how) {
  const int64_t end = (left < 2 * at_once ? left : 2 * at_once) * how->source_bytes;
  for (int64_t i = at_once * how->source_bytes; i < end; i += 64) __builtin_prefetch(row + i, 0, 2);
}

/* Rows r0 to r0 + rows of the source, whose row 0 is row `first` of the image, over all columns. */
static int pack_block(const npumm_tiling *t, const npumm_values *values, const npumm_recipe *how, const char *src,
                      int64_t row_stride, int64_t col_stride, int64_t first, int64_t r0, int64_t rows, void *dst) {
  const npumm_row_kernels *kernels = npumm_rows();
  uint32_t block[BLOCK_ROWS * BLOCK_COLS]; /* the gathered source, of any element size */
  converted out;
  /* Direct reads need contiguous rows; 4-byte ones are read as floats, so they must be aligned too. */
  const int direct =
      col_stride == how->source_bytes && (how->source_bytes != 4 || ((uintptr_t)src % 4 == 0 && row_stride % 4 == 0));
  const int becomes_bytes = how->kind == NPUMM_QUANTIZED || (how->kind == NPUMM_COPIED && how->bits == 8);
  const int64_t at_once = direct && becomes_bytes ? WIDE_COLS : BLOCK_COLS;
  for (int64_t c0 = 0; c0 < t->padded_cols; c0 += at_once) {
    const int64_t padded = t->padded_cols - c0 < at_once ? t->padded_cols - c0 : at_once;
    const int64_t cols = c0 >= t->cols ? 0 : (t->cols - c0 < padded ? t->cols - c0 : padded);
    /* The corner's address is only formed where there is data: beyond it, it could point outside the source. */
    const char *corner = cols ? src + r0 * row_stride + c0 * col_stride : src;
    if (!direct) gather(how->source_bytes, corner, row_stride, col_stride, rows, cols, block);
    const char *from = direct ? corner : (const char *)block;
    const int64_t stride = direct ? row_stride : BLOCK_COLS * how->source_bytes;
    const int asks = direct && how->past_caches && c0 + at_once < t->cols;
    if (how->kind == NPUMM_COPIED && cols == padded && !values->row_sum) {
      for (int64_t r = 0; asks && r < rows; r++) ask_for_next(from + r * stride, at_once, t->cols - c0, how);
      npumm_lay(t, how->bits, first + r0, rows, c0, padded, from, stride, dst, how->past_caches);
      continue;
    }
    if (cols < padded) memset(&out, 0, sizeof out);
    for (int64_t r = 0; cols > 0 && r < rows; r++) {
      int32_t sum = 0;
      if (asks) ask_for_next(from + r * stride, at_once, t->cols - c0, how);
      const int code = convert(kernels, how, values, from + r * stride, r0 + r, cols, out.image[r], out.low[r], &sum);
      if (code) return code;
      if (values->row_sum) {
        const uint32_t before = c0 ? (uint32_t)values->row_sum[r0 + r] : 0;
        values->row_sum[r0 + r] = (int32_t)(before + (uint32_t)sum);
      }
    }
    npumm_lay(t, how->bits, first + r0, rows, c0, padded, out.image, IMAGE_BYTES, dst, how->past_caches);
    if (how->kind == NPUMM_QUANTIZED_SPLIT) {
      npumm_lay(t, how->bits, t->rows / 2 + first + r0, rows, c0, padded, out.low, LOW_BYTES, dst, how->past_caches);
    }
  }
  return NPUMM_OK;
}

int npumm_pack_across(const npumm_tiling *t, const npumm_values *values, const npumm_recipe *how, const char *src,
                      int64_t row_stride, int64_t col_stride, int64_t first, int64_t rows, void *dst) {
  for (int64_t r0 = 0; r0 < rows; r0 += BLOCK_ROWS) {
    const int64_t count = rows - r0 < BLOCK_ROWS ? rows - r0 : BLOCK_ROWS;
    const int code = pack_block(t, values, how, src, row_stride, col_stride, first, r0, count, dst);
    if (code) return code;
  }
  return NPUMM_OK;
}
