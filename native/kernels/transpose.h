/*
 * Blocks of a matrix whose columns are contiguous -> dense rows. Squares go through registers: 16 x 16 bytes, 8 x 8 of
 * two bytes, 4 x 4 of four, with instructions that every x86-64 and every aarch64 has; what is left over at the edges
 * goes through the scalar reference. All give the same bytes.
 */
#ifndef NPUMATMUL_TRANSPOSE_H
#define NPUMATMUL_TRANSPOSE_H

#include <stdint.h>

/* How far npumm_pack's columns stand apart: a few lines, and one more so that they do not fall into the same cache sets. */
enum { NPUMM_COLUMN_BYTES = 512, NPUMM_PITCH = NPUMM_COLUMN_BYTES + 64 };

/*
 * Element (r, c) is read at src + r * element + c * col_stride, and written into the tile r / tile_rows, the tiles being
 * `to_next` apart: at its row r % tile_rows, rows being `row_stride` apart, and there at c * element. Elements have 1, 2
 * or 4 bytes. Strides are in bytes; nothing has to be aligned. `past_caches` allows to write whole lines around the caches.
 */
typedef struct {
  int64_t rows, cols, element;
  int64_t col_stride;
  int64_t tile_rows, row_stride, to_next;
} npumm_transposed;

void npumm_transpose(const npumm_transposed *of, const char *src, char *dst, int past_caches);
void npumm_transpose_scalar(const npumm_transposed *of, const char *src, char *dst, int past_caches);
#if defined(__x86_64__)
void npumm_transpose_avx2(const npumm_transposed *of, const char *src, char *dst, int past_caches);
void npumm_transpose_avx512(const npumm_transposed *of, const char *src, char *dst, int past_caches);
#endif

/* Tile by tile, of which the last may be a part of one. */
#define NPUMM_EACH_TILE(of, r, count)                                                                      \
  for (int64_t r = 0, count = (of)->tile_rows < (of)->rows ? (of)->tile_rows : (of)->rows; r < (of)->rows; \
       r += count, count = count < (of)->rows - r ? count : (of)->rows - r)

#endif
