/* The tile formula and its checks, shared by pack, unpack and store. See npumatmul_kernels.h for the algebra. */
#ifndef NPUMATMUL_TILING_H
#define NPUMATMUL_TILING_H

#include <string.h>

#include "npumatmul_kernels.h"

/* Extents above this are refused, so that no product of two of them and an element size overflows int64. */
#define NPUMM_MAX_EXTENT ((int64_t)1 << 30)

static inline int npumm_tiling_is_valid(const npumm_tiling *t) {
  return t && t->rows >= 0 && t->cols >= 0 && t->rows <= t->padded_rows && t->cols <= t->padded_cols &&
         t->padded_rows <= NPUMM_MAX_EXTENT && t->padded_cols <= NPUMM_MAX_EXTENT && t->tile_rows > 0 &&
         t->tile_cols > 0 && t->padded_rows % t->tile_rows == 0 && t->padded_cols % t->tile_cols == 0;
}

/* Offset, in elements, of element (r, c). */
static inline int64_t npumm_tiling_offset(const npumm_tiling *t, int64_t r, int64_t c) {
  const int64_t tiles_across = t->padded_cols / t->tile_cols;
  return ((r / t->tile_rows * tiles_across + c / t->tile_cols) * t->tile_rows + r % t->tile_rows) * t->tile_cols +
         c % t->tile_cols;
}

/* How many columns from c on stand side by side in memory, at most `limit`. */
static inline int64_t npumm_tiling_run(const npumm_tiling *t, int64_t c, int64_t limit) {
  const int64_t in_tile = t->tile_cols - c % t->tile_cols;
  return in_tile < limit ? in_tile : limit;
}

/*
 * A walk along one row: pieces of columns that stand side by side in memory, one tile after the other. The divisions of
 * the tile formula are done once; from tile to tile the offset grows by a constant.
 */
typedef struct {
  int64_t offset; /* in elements, of the piece at hand */
  int64_t length; /* of the piece at hand; 0 at the end */
  int64_t left;   /* columns that the walk has still to cover, this piece included */
  int64_t to_next_tile;
  int64_t tile_cols;
} npumm_walk;

static inline npumm_walk npumm_walk_row(const npumm_tiling *t, int64_t r, int64_t c, int64_t cols) {
  const int64_t in_tile = t->tile_cols - c % t->tile_cols;
  npumm_walk walk = {npumm_tiling_offset(t, r, c), npumm_tiling_run(t, c, cols), cols,
                     (t->tile_rows - 1) * t->tile_cols + in_tile, t->tile_cols};
  return walk;
}

static inline void npumm_walk_on(npumm_walk *walk) {
  walk->left -= walk->length;
  walk->offset += walk->to_next_tile;
  walk->to_next_tile = walk->to_next_tile - walk->length + walk->tile_cols; /* from the second piece on, whole tiles */
  walk->length = walk->left < walk->tile_cols ? walk->left : walk->tile_cols;
}

/* memcpy; the usual sizes of native groups and rows of tiles are a few moves instead of a call. */
static inline void npumm_copy(void *dst, const void *src, int64_t bytes) {
  if (bytes == 16) {
    memcpy(dst, src, 16);
  } else if (bytes == 32) {
    memcpy(dst, src, 32);
  } else if (bytes == 64) {
    memcpy(dst, src, 64);
  } else {
    memcpy(dst, src, (size_t)bytes);
  }
}

/* Bits of a packed element, or 0 for what is no conversion. */
static inline int64_t npumm_element_bits(npumm_conversion conversion) {
  switch (conversion) {
    case NPUMM_INT4:
    case NPUMM_INT4_HIGH_FIRST:
    case NPUMM_F32_TO_I4:
    case NPUMM_F32_TO_I4_HIGH_FIRST:
    case NPUMM_F32_TO_I4_SPLIT:
    case NPUMM_F32_TO_I4_SPLIT_HIGH_FIRST:
      return 4;
    case NPUMM_COPY_8:
    case NPUMM_F32_TO_I8:
      return 8;
    case NPUMM_COPY_16:
    case NPUMM_F32_TO_F16:
    case NPUMM_F32_TO_F16_LOW:
    case NPUMM_F32_TO_F16_HIGH:
      return 16;
    case NPUMM_COPY_32:
      return 32;
  }
  return 0;
}

#endif
