/* Measured, quantized and packed: rows or blocks of them, so that the second look finds them in the cache. */
#include <stddef.h>
#include <stdlib.h>

#include "npumatmul_kernels.h"
#include "pack.h"
#include "tiling.h"

/* A block of rows stays in a core's second cache; rows of a block make whole lines of tiles, and columns of it streams. */
enum { BLOCK_BYTES = 1 << 18, LEAST_ACROSS = 16, LEAST_DOWN = 4096 };
/* Rotated rows whose codes are packed together: enough of 16 bytes each to make whole lines. */
enum { TOGETHER = 4, LINE = 64 };

static const float *row_at(const float *src, int64_t r, int64_t stride) {
  return (const float *)(const void *)((const char *)src + r * stride);
}

static npumm_values values_from(npumm_conversion conversion, const float *scale, int32_t *row_sum, int64_t r) {
  return (npumm_values){conversion, scale ? scale + r : NULL, NULL, row_sum ? row_sum + r : NULL};
}

static int in_blocks(const npumm_tiling *tiling, npumm_conversion conversion, int32_t levels, float clip, int64_t first,
                     int64_t rows, const float *src, int64_t src_row_stride, int64_t src_col_stride, void *dst,
                     int64_t dst_bytes, float *scale, int32_t *row_sum) {
  const int64_t row_bytes = (tiling->cols + 1) * (int64_t)sizeof *src;
  const int64_t least = src_row_stride == (int64_t)sizeof *src ? LEAST_DOWN : LEAST_ACROSS;
  const int64_t fit = BLOCK_BYTES / row_bytes / least * least, block = fit > least ? fit : least;
  int64_t done = 0;
  do { /* also where there are no rows: padding is written then */
    const int64_t count = rows - done < block ? rows - done : block;
    const float *from = count ? row_at(src, done, src_row_stride) : src;
    int code = npumm_symmetric_scales(from, count, tiling->cols, src_row_stride, src_col_stride, levels, clip,
                                      count ? scale + done : scale);
    for (int64_t r = done; !code && r < done + count; r++) {
      if (scale[r] < 0.0f) code = NPUMM_NOT_FINITE;
    }
    const npumm_values values = values_from(conversion, count ? scale : NULL, row_sum, done);
    if (!code) {
      code =
          npumm_pack_rows(tiling, &values, first + done, count, from, src_row_stride, src_col_stride, dst, dst_bytes);
    }
    if (code) return code;
    done += count;
  } while (done < rows);
  return NPUMM_OK;
}

/* What packs codes as they are. */
static npumm_conversion of_codes(npumm_conversion conversion) {
  return conversion == NPUMM_F32_TO_I8   ? NPUMM_COPY_8
         : conversion == NPUMM_F32_TO_I4 ? NPUMM_INT4
                                         : NPUMM_INT4_HIGH_FIRST;
}

/* One row rotated into `rotated`, its scale, and its codes, all while it is in the first cache. */
static int rotate_row(const npumm_row_kernels *kernels, const npumm_hadamard *rotation, float most, int32_t levels,
                      float clip, const float *src, int64_t col_stride, float *rotated, int8_t *codes, float *scale) {
  const int64_t n = rotation->features;
  const int code = npumm_hadamard_rows(rotation, src, 1, 0, col_stride, rotated, 0);
  if (code) return code;
  int finite = 1;
  const float largest = kernels->absmax(rotated, n, &finite);
  *scale = finite ? npumm_symmetric_scale(largest, levels, clip) : -1.0f;
  if (!finite) return NPUMM_NOT_FINITE;
  const npumm_quantizer how = {*scale, -most, most, 0};
  kernels->quantize(rotated, codes, n, &how);
  return NPUMM_OK;
}

/* Row by row, with room for one and for the codes of some. */
static int row_by_row(const npumm_hadamard *rotation, const npumm_tiling *tiling, npumm_conversion conversion,
                      int32_t levels, float clip, int64_t first, int64_t rows, const float *src, int64_t src_row_stride,
                      int64_t src_col_stride, void *dst, int64_t dst_bytes, float *scale, int32_t *row_sum) {
  const int64_t n = tiling->cols;
  const size_t lines = ((size_t)n * (sizeof(float) + TOGETHER) + LINE - 1) / LINE;
  float *rotated = aligned_alloc(LINE, lines * LINE); /* so that no vector lies in two lines */
  if (!rotated) return NPUMM_NO_MEMORY;
  int8_t *codes = (int8_t *)(rotated + n);
  const float most = (float)npumm_levels(conversion);
  int code = NPUMM_OK;
  for (int64_t done = 0; !code && done < rows; done += TOGETHER) {
    const int64_t count = rows - done < TOGETHER ? rows - done : TOGETHER;
    for (int64_t r = 0; !code && r < count; r++) {
      code = rotate_row(npumm_rows(), rotation, most, levels, clip, row_at(src, done + r, src_row_stride),
                        src_col_stride, rotated, codes + r * n, &scale[done + r]);
    }
    const npumm_values values = values_from(of_codes(conversion), NULL, row_sum, done);
    if (!code) code = npumm_pack_rows(tiling, &values, first + done, count, codes, n, 1, dst, dst_bytes);
  }
  free(rotated);
  return code;
}

int npumm_quantize_rows(const npumm_hadamard *rotation, const npumm_tiling *tiling, npumm_conversion conversion,
                        int32_t levels, float clip, int64_t first, int64_t rows, const float *src,
                        int64_t src_row_stride, int64_t src_col_stride, void *dst, int64_t dst_bytes, float *scale,
                        int32_t *row_sum) {
  const npumm_recipe_kind kind = npumm_recipe_of(conversion).kind;
  if (levels < 1 || levels > npumm_levels(conversion) || rows < 0 || npumm_packed_bytes(tiling, conversion) < 0 ||
      (!scale && rows > 0)) {
    return NPUMM_BAD_ARGUMENT;
  }
  if (!rotation || rows == 0) {
    return in_blocks(tiling, conversion, levels, clip, first, rows, src, src_row_stride, src_col_stride, dst, dst_bytes,
                     scale, row_sum);
  }
  if (!(clip > 0.0f && clip <= 1.0f) || kind == NPUMM_QUANTIZED_SPLIT || tiling->cols != rotation->features || !src) {
    return NPUMM_BAD_ARGUMENT;
  }
  return row_by_row(rotation, tiling, conversion, levels, clip, first, rows, src, src_row_stride, src_col_stride, dst,
                    dst_bytes, scale, row_sum);
}

int npumm_quantize(const npumm_tiling *tiling, npumm_conversion conversion, float clip, const float *src,
                   int64_t src_row_stride, int64_t src_col_stride, void *dst, int64_t dst_bytes, float *scale,
                   int32_t *row_sum) {
  if (!tiling) return NPUMM_BAD_ARGUMENT;
  const int is_split = npumm_recipe_of(conversion).kind == NPUMM_QUANTIZED_SPLIT;
  return npumm_quantize_rows(NULL, tiling, conversion, npumm_levels(conversion), clip, 0,
                             tiling->rows / (is_split ? 2 : 1), src, src_row_stride, src_col_stride, dst, dst_bytes,
                             scale, row_sum);
}
