/* Strided memory -> tiles, with conversion: one pass over the source, padding written as zeros. */
#include <string.h>

#include "npumatmul_kernels.h"
#include "pack.h"
#include "tiling.h"

/*
 * Where the source and the image take more than a third cache has for a core or two, lines that are only written are not
 * read before. Smaller ones are written into that cache, which is faster than the memory.
 */
enum { PAST_CACHES_BYTES = 12 << 20 };

int64_t npumm_packed_bytes(const npumm_tiling *tiling, npumm_conversion conversion) {
  const int64_t bits = npumm_element_bits(conversion);
  if (!npumm_tiling_is_valid(tiling) || bits == 0) return -1;
  if (bits == 4 && tiling->tile_cols % 2 != 0) return -1; /* a pair never straddles two tiles */
  if (npumm_recipe_of(conversion).kind == NPUMM_QUANTIZED_SPLIT && tiling->rows % 2 != 0)
    return -1; /* two images of each row */
  return tiling->padded_rows * tiling->padded_cols * bits / 8;
}

/* Whether what is given beside the values belongs to the conversion, and zero points lie where they can. */
static int values_are_valid(const npumm_values *values, const npumm_recipe *how, int64_t rows) {
  const int integers = how->levels > 0.0f || how->kind == NPUMM_INT4_PAIRS || values->conversion == NPUMM_COPY_8;
  if (values->row_sum && !integers) return 0;
  if (!values->row_zero) return 1;
  if (how->levels <= 0.0f) return 0;
  const int32_t levels = (int32_t)how->levels;
  for (int64_t r = 0; r < rows; r++) {
    if (values->row_zero[r] < -levels - 1 || values->row_zero[r] > levels) return 0;
  }
  return 1;
}

/* Zeros below the rows of the image. */
static void pad_rows(const npumm_tiling *t, int64_t bits, void *dst) {
  enum { COLS = 256 };
  const uint32_t zeros[COLS] = {0};
  for (int64_t c0 = 0; t->rows < t->padded_rows && c0 < t->padded_cols; c0 += COLS) {
    const int64_t padded = t->padded_cols - c0 < COLS ? t->padded_cols - c0 : COLS;
    npumm_lay(t, bits, t->rows, t->padded_rows - t->rows, c0, padded, zeros, 0, dst, 0);
  }
}

int npumm_pack_rows(const npumm_tiling *tiling, const npumm_values *values, int64_t first, int64_t rows,
                    const void *src, int64_t src_row_stride, int64_t src_col_stride, void *dst, int64_t dst_bytes) {
  const int64_t needed = values ? npumm_packed_bytes(tiling, values->conversion) : -1;
  if (needed < 0 || !dst) return NPUMM_BAD_ARGUMENT;
  if (dst_bytes < needed) return NPUMM_BUFFER_TOO_SMALL;
  const npumm_tiling t = *tiling;
  npumm_recipe how = npumm_recipe_of(values->conversion);
  how.past_caches = t.rows * t.cols * how.source_bytes + needed >= PAST_CACHES_BYTES;
  const int64_t source_rows = how.kind == NPUMM_QUANTIZED_SPLIT ? t.rows / 2 : t.rows;
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
  /* floats of columns are read as such, so they must be aligned */
  const int is_aligned = how.source_bytes != 4 || ((uintptr_t)src % 4 == 0 && src_col_stride % 4 == 0);
  const int down = src_row_stride == how.source_bytes && src_col_stride != how.source_bytes && is_aligned;
  const int code = down ? npumm_pack_down(&t, values, &how, src, src_col_stride, first, rows, dst)
                        : npumm_pack_across(&t, values, &how, src, src_row_stride, src_col_stride, first, rows, dst);
#if defined(__x86_64__)
  if (how.past_caches) __builtin_ia32_sfence(); /* such stores have no order of their own */
#endif
  if (code) return code;
  if (last) pad_rows(&t, how.bits, dst);
  return NPUMM_OK;
}

int npumm_pack(const npumm_tiling *tiling, const npumm_values *values, const void *src, int64_t src_row_stride,
               int64_t src_col_stride, void *dst, int64_t dst_bytes) {
  if (!tiling || !values) return NPUMM_BAD_ARGUMENT;
  const int64_t rows =
      npumm_recipe_of(values->conversion).kind == NPUMM_QUANTIZED_SPLIT ? tiling->rows / 2 : tiling->rows;
  return npumm_pack_rows(tiling, values, 0, rows, src, src_row_stride, src_col_stride, dst, dst_bytes);
}
