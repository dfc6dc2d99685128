/* Strided memory -> tiles, with conversion: one pass over the source, padding written as zeros. */
#include <string.h>

#include "npumatmul_kernels.h"
#include "rows.h"
#include "tiling.h"

/*
 * Work is done in blocks of BLOCK_ROWS x BLOCK_COLS: a source whose rows are not contiguous is gathered into a block
 * first (in whichever order walks its memory forwards), so each cache line of it is touched once.
 */
enum { BLOCK_ROWS = 32, BLOCK_COLS = 256 };

static int64_t source_bytes(npumm_conversion conversion) {
  switch (conversion) {
    case NPUMM_COPY_8:
    case NPUMM_INT4:
    case NPUMM_INT4_HIGH_FIRST:
      return 1;
    case NPUMM_COPY_16:
      return 2;
    default:
      return 4;
  }
}

int64_t npumm_packed_bytes(const npumm_tiling *tiling, npumm_conversion conversion) {
  if (!npumm_tiling_is_valid(tiling)) return -1;
  const int64_t elements = tiling->padded_rows * tiling->padded_cols;
  if (npumm_is_int4(conversion) && tiling->tile_cols % 2 != 0) return -1; /* a pair never straddles two tiles */
  return npumm_element_bytes(conversion, elements);
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

static void gather(int64_t element, const char *src, int64_t row_stride, int64_t col_stride, int64_t rows,
                   int64_t cols, void *block) {
  if (element == 1) gather_1(src, row_stride, col_stride, rows, cols, block);
  if (element == 2) gather_2(src, row_stride, col_stride, rows, cols, block);
  if (element == 4) gather_4(src, row_stride, col_stride, rows, cols, block);
}

/* Two values per byte, shifted by so many bits; an odd one at the end has a zero beside it. */
static void pack_pairs(const uint8_t *values, int64_t n, int even_shift, int odd_shift, uint8_t *bytes) {
  for (int64_t i = 0; i < n; i += 2) {
    const int odd = i + 1 < n ? values[i + 1] & 0x0f : 0;
    bytes[i / 2] = (uint8_t)((values[i] & 0x0f) << even_shift | odd << odd_shift);
  }
}

static void convert_row(const npumm_row_kernels *rows, npumm_conversion conversion, const void *src, int64_t n,
                        float scale, void *dst) {
  switch (conversion) {
    case NPUMM_COPY_8:
      memcpy(dst, src, (size_t)n);
      return;
    case NPUMM_COPY_16:
      memcpy(dst, src, (size_t)n * 2);
      return;
    case NPUMM_COPY_32:
      memcpy(dst, src, (size_t)n * 4);
      return;
    case NPUMM_INT4:
      pack_pairs(src, n, 0, 4, dst);
      return;
    case NPUMM_INT4_HIGH_FIRST:
      pack_pairs(src, n, 4, 0, dst);
      return;
    case NPUMM_F32_TO_F16:
      rows->f32_to_f16(src, dst, n, scale);
      return;
    case NPUMM_F32_TO_I8:
      rows->f32_to_i8(src, dst, n, scale);
      return;
  }
}

/* Lays `padded` converted elements of row r, starting at column c, into their tiles. */
static void scatter_row(const npumm_tiling *t, npumm_conversion conversion, int64_t r, int64_t c, int64_t padded,
                        const uint8_t *row, uint8_t *dst) {
  for (int64_t done = 0; done < padded;) {
    const int64_t run = npumm_tiling_run(t, c + done, padded - done);
    memcpy(dst + npumm_element_bytes(conversion, npumm_tiling_offset(t, r, c + done)),
           row + npumm_element_bytes(conversion, done), (size_t)npumm_element_bytes(conversion, run));
    done += run;
  }
}

int npumm_pack(const npumm_tiling *tiling, npumm_conversion conversion, const void *src, int64_t src_row_stride,
               int64_t src_col_stride, const float *row_scale, void *dst, int64_t dst_bytes) {
  const int64_t needed = npumm_packed_bytes(tiling, conversion);
  if (needed < 0 || !dst) return NPUMM_BAD_ARGUMENT;
  if (dst_bytes < needed) return NPUMM_BUFFER_TOO_SMALL;
  const npumm_tiling t = *tiling;
  if (t.rows == 0 || t.cols == 0) {
    memset(dst, 0, (size_t)needed);
    return NPUMM_OK;
  }
  if (!src) return NPUMM_BAD_ARGUMENT;

  const npumm_row_kernels *kernels = npumm_rows();
  const int64_t element = source_bytes(conversion);
  uint32_t block[BLOCK_ROWS * BLOCK_COLS]; /* the gathered source, of any element size */
  uint32_t row[BLOCK_COLS];                /* one converted row of the block, of any element size */
  for (int64_t r0 = 0; r0 < t.padded_rows; r0 += BLOCK_ROWS) {
    const int64_t padded_rows = t.padded_rows - r0 < BLOCK_ROWS ? t.padded_rows - r0 : BLOCK_ROWS;
    const int64_t rows = r0 >= t.rows ? 0 : (t.rows - r0 < padded_rows ? t.rows - r0 : padded_rows);
    for (int64_t c0 = 0; c0 < t.padded_cols; c0 += BLOCK_COLS) {
      const int64_t padded_cols = t.padded_cols - c0 < BLOCK_COLS ? t.padded_cols - c0 : BLOCK_COLS;
      const int64_t cols = c0 >= t.cols ? 0 : (t.cols - c0 < padded_cols ? t.cols - c0 : padded_cols);
      /* The corner's address is only formed where there is data: beyond it, it could point outside the source. */
      const char *corner =
          rows && cols ? (const char *)src + r0 * src_row_stride + c0 * src_col_stride : (const char *)src;
      /* Direct reads need contiguous rows; 4-byte ones are read as floats, so they must be aligned too. */
      const int direct = src_col_stride == element &&
                         (element != 4 || ((uintptr_t)corner % 4 == 0 && src_row_stride % 4 == 0));
      if (!direct) gather(element, corner, src_row_stride, src_col_stride, rows, cols, block);
      for (int64_t r = 0; r < padded_rows; r++) {
        if (r >= rows || cols < padded_cols) memset(row, 0, (size_t)padded_cols * 4);
        if (r < rows && cols > 0) {
          const void *from = direct ? (const void *)(corner + r * src_row_stride)
                                    : (const void *)((const char *)block + r * BLOCK_COLS * element);
          convert_row(kernels, conversion, from, cols, row_scale ? row_scale[r0 + r] : 1.0f, row);
        }
        scatter_row(&t, conversion, r0 + r, c0, padded_cols, (const uint8_t *)row, dst);
      }
    }
  }
  return NPUMM_OK;
}
