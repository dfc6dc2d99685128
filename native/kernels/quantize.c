/* Measured, quantized and packed: block of rows by block, so that the second look finds them in the cache. */
#include <stddef.h>

#include "npumatmul_kernels.h"
#include "tiling.h"

/* A block of rows stays in a core's second cache; rows of a block make whole lines of tiles, and columns of it streams. */
enum { BLOCK_BYTES = 1 << 18, LEAST_ACROSS = 16, LEAST_DOWN = 4096 };

int npumm_quantize_rows(const npumm_tiling *tiling, npumm_conversion conversion, float clip, int64_t first,
                        int64_t rows, const float *src, int64_t src_row_stride, int64_t src_col_stride, void *dst,
                        int64_t dst_bytes, float *scale, int32_t *row_sum) {
  const int32_t levels = npumm_levels(conversion);
  if (levels == 0 || rows < 0 || npumm_packed_bytes(tiling, conversion) < 0 || (!scale && rows > 0)) {
    return NPUMM_BAD_ARGUMENT;
  }
  const int64_t row_bytes = (tiling->cols + 1) * (int64_t)sizeof *src;
  const int64_t least = src_row_stride == (int64_t)sizeof *src ? LEAST_DOWN : LEAST_ACROSS;
  const int64_t fit = BLOCK_BYTES / row_bytes / least * least, block = fit > least ? fit : least;
  int64_t done = 0;
  do { /* also where there are no rows: padding is written then */
    const int64_t count = rows - done < block ? rows - done : block;
    const float *from = count ? (const float *)(const void *)((const char *)src + done * src_row_stride) : src;
    int code = npumm_symmetric_scales(from, count, tiling->cols, src_row_stride, src_col_stride, levels, clip,
                                      count ? scale + done : scale);
    for (int64_t r = done; !code && r < done + count; r++) {
      if (scale[r] < 0.0f) code = NPUMM_NOT_FINITE;
    }
    const npumm_values values = {conversion, count ? scale + done : scale, NULL, row_sum ? row_sum + done : NULL};
    if (!code) {
      code =
          npumm_pack_rows(tiling, &values, first + done, count, from, src_row_stride, src_col_stride, dst, dst_bytes);
    }
    if (code) return code;
    done += count;
  } while (done < rows);
  return NPUMM_OK;
}

int npumm_quantize(const npumm_tiling *tiling, npumm_conversion conversion, float clip, const float *src,
                   int64_t src_row_stride, int64_t src_col_stride, void *dst, int64_t dst_bytes, float *scale,
                   int32_t *row_sum) {
  if (!tiling) return NPUMM_BAD_ARGUMENT;
  const int is_split = conversion == NPUMM_F32_TO_I4_SPLIT || conversion == NPUMM_F32_TO_I4_SPLIT_HIGH_FIRST;
  return npumm_quantize_rows(tiling, conversion, clip, 0, tiling->rows / (is_split ? 2 : 1), src, src_row_stride,
                             src_col_stride, dst, dst_bytes, scale, row_sum);
}
