/*
 * Host kernels of libnpumm.so: move matrices between plain strided memory and the NPU's tiled layouts, converting
 * values on the way in one pass. None of them allocates, keeps state or knows about the NPU runtime.
 *
 * Tile algebra. Every layout of the matmul API is one formula. A matrix of padded_rows x padded_cols is cut into tiles
 * of tile_rows x tile_cols; tiles follow each other along the columns first; inside a tile the column index is the
 * fastest. The element (r, c) stands at
 *
 *     ((r / tile_rows * (padded_cols / tile_cols) + c / tile_cols) * tile_rows + r % tile_rows) * tile_cols + c % tile_cols
 *
 * (facts 4.3). With rows and columns as below this gives every layout:
 *
 *     matrix          rows  cols  tile_rows  tile_cols
 *     A native        M     K     M          group (16 bytes; 8 on RK3566/68)
 *     B native        N     K     16, 32..   16, 32          one segment of K
 *     C native        M     N     M          group (16 bytes)
 *     A, C normal     M     K, N  M          K, N
 *     B normal        K     N     K          N
 *     B transposed    N     K     N          K
 */
#ifndef NPUMATMUL_KERNELS_H
#define NPUMATMUL_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NPUMM_EXPORT __attribute__((visibility("default")))

enum {
  NPUMM_OK = 0,
  NPUMM_BAD_ARGUMENT = -100, /* a null pointer, or extents and tiles that do not fit together */
  NPUMM_BUFFER_TOO_SMALL = -101,
  NPUMM_NOT_FINITE = -102, /* an inf or nan where a quantized value is wanted */
  NPUMM_NO_MEMORY = -103
};

typedef struct {
  int64_t rows, cols;               /* extents of the data; the rest up to the padded extents is zeros */
  int64_t padded_rows, padded_cols; /* multiples of tile_rows and tile_cols */
  int64_t tile_rows, tile_cols;
} npumm_tiling;

typedef enum {
  NPUMM_COPY_8 = 0,      /* 1-byte elements as they are */
  NPUMM_COPY_16 = 1,     /* 2-byte elements as they are */
  NPUMM_COPY_32 = 2,     /* 4-byte elements as they are */
  NPUMM_INT4 = 3,        /* one int4 per byte <-> two per byte, even element in the low nibble (facts 4.6) */
  NPUMM_F32_TO_F16 = 4,  /* x * row_scale, rounded to nearest even */
  NPUMM_F32_TO_I8 = 5,   /* x / row_scale, rounded to nearest even, clamped to -127..127 */
  NPUMM_INT4_HIGH_FIRST = 6 /* as NPUMM_INT4, even element in the high nibble: runtimes up to 1.6.0 (facts 4.6) */
} npumm_conversion;

/* Bytes that a packed matrix takes, or -1 where tiling or conversion is not valid. */
NPUMM_EXPORT int64_t npumm_packed_bytes(const npumm_tiling *tiling, npumm_conversion conversion);

/*
 * Pack: strided source -> tiles. Strides are in bytes, of either sign or zero. row_scale has `rows` entries, or is
 * NULL for 1. Padding is written as zeros.
 */
NPUMM_EXPORT int npumm_pack(const npumm_tiling *tiling, npumm_conversion conversion, const void *src,
                            int64_t src_row_stride, int64_t src_col_stride, const float *row_scale, void *dst,
                            int64_t dst_bytes);

/* Unpack: tiles -> strided destination, without conversion (NPUMM_COPY_* and NPUMM_INT4* only). */
NPUMM_EXPORT int npumm_unpack(const npumm_tiling *tiling, npumm_conversion conversion, const void *src,
                              int64_t src_bytes, void *dst, int64_t dst_row_stride, int64_t dst_col_stride);

/* Largest |x| of each row; -1 in place of it where the row holds an inf or a nan. */
NPUMM_EXPORT int npumm_absmax_rows(const float *src, int64_t rows, int64_t cols, int64_t row_stride,
                                   int64_t col_stride, float *absmax);

/*
 * Power of two per row that brings the largest finite |x| into [1, 2) when it lies outside [2^-2, 2^15), else 1:
 * multiplying by it neither overflows float16 nor loses small rows, and is exact. Infs and nans stay what they are.
 */
NPUMM_EXPORT int npumm_power_of_two_scales(const float *src, int64_t rows, int64_t cols, int64_t row_stride,
                                           int64_t col_stride, float *scale);

/* Name of the instruction set that the kernels chose on this machine: "scalar", "avx2" or "neon". */
NPUMM_EXPORT const char *npumm_instruction_set(void);

#ifdef __cplusplus
}
#endif
#endif
