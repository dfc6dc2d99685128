/* Tiles of results -> rows of the caller's matrix: partial sums over K, then scales, in one pass. */
#include <string.h>

#include "npumatmul_kernels.h"
#include "tiling.h"

/* int32 sums wrap as the accumulator of the hardware and numpy do; unsigned arithmetic makes that defined in C. */
static void store_int32(const uint32_t *src, int64_t n, int first, uint32_t *dst) {
  if (first) {
    memcpy(dst, src, (size_t)n * sizeof *src);
  } else {
    for (int64_t i = 0; i < n; i++) dst[i] += src[i];
  }
}

static void store_float32(const float *src, int64_t n, int first, float *dst) {
  if (first) {
    memcpy(dst, src, (size_t)n * sizeof *src);
  } else {
    for (int64_t i = 0; i < n; i++) dst[i] += src[i];
  }
}

/* The destination holds a partial sum in the result's own type and receives a float32 of the same size. */
static void store_int32_scaled(const uint32_t *src, int64_t n, int first, double row, const float *col, float *dst) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t sum = src[i], before;
    memcpy(&before, &dst[i], sizeof before);
    if (!first) sum += before;
    dst[i] = (float)((double)(int32_t)sum * row * (col ? (double)col[i] : 1.0));
  }
}

static void store_float32_scaled(const float *src, int64_t n, int first, double row, const float *col, float *dst) {
  for (int64_t i = 0; i < n; i++) {
    const float sum = first ? src[i] : src[i] + dst[i];
    dst[i] = (float)((double)sum * row * (col ? (double)col[i] : 1.0));
  }
}

/* Columns c to c + n of a row, gathered from their tiles and widened to 4 bytes. */
static void gather(const npumm_tiling *t, npumm_result_type type, const void *src, int64_t r, int64_t c, int64_t n,
                   uint32_t *block) {
  for (npumm_walk walk = npumm_walk_row(t, r, c, n); walk.length > 0; npumm_walk_on(&walk)) {
    uint32_t *to = block + (n - walk.left);
    if (type == NPUMM_C_INT16) {
      const int16_t *values = (const int16_t *)src + walk.offset;
      for (int64_t i = 0; i < walk.length; i++) to[i] = (uint32_t)(int32_t)values[i];
    } else {
      npumm_copy(to, (const uint32_t *)src + walk.offset, walk.length * 4);
    }
  }
}

int npumm_store(const npumm_tiling *tiling, npumm_result_type type, const void *src, int64_t src_bytes, int first,
                const double *row_scale, const float *col_scale, void *dst, int64_t dst_row_stride) {
  const int64_t needed = npumm_packed_bytes(tiling, type == NPUMM_C_INT16 ? NPUMM_COPY_16 : NPUMM_COPY_32);
  if (needed < 0 || !src) return NPUMM_BAD_ARGUMENT;
  if (src_bytes < needed) return NPUMM_BUFFER_TOO_SMALL;
  if (tiling->rows == 0 || tiling->cols == 0) return NPUMM_OK;
  if (!dst || (uintptr_t)dst % 4 != 0 || dst_row_stride % 4 != 0) return NPUMM_BAD_ARGUMENT;
  const int scaled = row_scale || col_scale;
  enum { BLOCK = 256 };
  uint32_t block[BLOCK]; /* columns gathered from their tiles, so that the loops above run over long rows */
  for (int64_t r = 0; r < tiling->rows; r++) {
    for (int64_t c0 = 0; c0 < tiling->cols; c0 += BLOCK) {
      const int64_t n = tiling->cols - c0 < BLOCK ? tiling->cols - c0 : BLOCK;
      gather(tiling, type, src, r, c0, n, block);
      void *to = (char *)dst + r * dst_row_stride + c0 * 4;
      const double row = row_scale ? row_scale[r] : 1.0;
      const float *col = col_scale ? col_scale + c0 : NULL;
      if (type != NPUMM_C_FLOAT32) {
        if (scaled) store_int32_scaled(block, n, first, row, col, to);
        else store_int32(block, n, first, to);
      } else {
        float values[BLOCK];
        memcpy(values, block, (size_t)n * 4);
        if (scaled) store_float32_scaled(values, n, first, row, col, to);
        else store_float32(values, n, first, to);
      }
    }
  }
  return NPUMM_OK;
}
