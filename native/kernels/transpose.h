/*
 * Blocks of a matrix whose columns are contiguous -> dense rows. Squares go through registers: 16 x 16 bytes, 8 x 8 of
 * two bytes, 4 x 4 of four, with instructions that every x86-64 and every aarch64 has; what is left over at the edges
 * goes through the scalar reference. All give the same bytes.
 */
#ifndef NPUMATMUL_TRANSPOSE_H
#define NPUMATMUL_TRANSPOSE_H

#include <stdint.h>

/*
 * Element (r, c) is read at src + r * element + c * col_stride and written at dst + r * dst_row_stride + c * element,
 * for element sizes of 1, 2 and 4 bytes. Strides are in bytes; nothing has to be aligned. `past_caches`
 * allows to write whole lines around the caches.
 */
void npumm_transpose(const char *src, int64_t col_stride, int64_t rows, int64_t cols, int64_t element, char *dst,
                     int64_t dst_row_stride, int past_caches);

void npumm_transpose_scalar(const char *src, int64_t col_stride, int64_t rows, int64_t cols, int64_t element, char *dst,
                            int64_t dst_row_stride, int past_caches);

#if defined(__x86_64__)
void npumm_transpose_avx2(const char *src, int64_t col_stride, int64_t rows, int64_t cols, int64_t element, char *dst,
                          int64_t dst_row_stride, int past_caches);
void npumm_transpose_avx512(const char *src, int64_t col_stride, int64_t rows, int64_t cols, int64_t element, char *dst,
                            int64_t dst_row_stride, int past_caches);
#endif

#endif
