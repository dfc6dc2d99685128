/* The tile formula and its checks, shared by pack, unpack and store. See npumatmul_kernels.h for the algebra. */
#ifndef NPUMATMUL_TILING_H
#define NPUMATMUL_TILING_H

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

/* Whether two elements share a byte. */
static inline int npumm_is_int4(npumm_conversion conversion) {
  return conversion == NPUMM_INT4 || conversion == NPUMM_INT4_HIGH_FIRST;
}

/* Bytes of `count` packed elements; int4 counts are even. */
static inline int64_t npumm_element_bytes(npumm_conversion conversion, int64_t count) {
  switch (conversion) {
    case NPUMM_COPY_8:
    case NPUMM_F32_TO_I8:
      return count;
    case NPUMM_COPY_16:
    case NPUMM_F32_TO_F16:
      return 2 * count;
    case NPUMM_COPY_32:
      return 4 * count;
    case NPUMM_INT4:
    case NPUMM_INT4_HIGH_FIRST:
      return count / 2;
  }
  return -1;
}

#endif
