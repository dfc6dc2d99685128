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
  NPUMM_NO_MEMORY = -103,
  NPUMM_INTERRUPTED = -104, /* the caller wanted the work to end */
  NPUMM_GIVEN_UP = -105     /* ... and did not wait for what was going on */
};

typedef struct {
  int64_t rows, cols;               /* extents of the data; the rest up to the padded extents is zeros */
  int64_t padded_rows, padded_cols; /* multiples of tile_rows and tile_cols */
  int64_t tile_rows, tile_cols;
} npumm_tiling;

/*
 * What happens to a value on its way into a tile. Quantizing ones give
 *
 *     q = clamp(round_half_even(x / row_scale[r]) + row_zero[r])
 *
 * clamped to -levels..levels where row_zero is NULL and to -levels - 1..levels otherwise (facts 5.5), where `levels` is
 * npumm_levels: 127 for I8, 7 for I4 and 119 for I4_SPLIT. An inf or a nan among the source is refused.
 *
 * I4_SPLIT makes two int4 images of an 8-bit value, stacked: of an image of 2 M rows the rows r hold h and the rows
 * M + r hold l, with q = 16 h + l. Let h = floor((q + 8) / 16) and l = q - 16 h: then l is (q + 8) mod 16 - 8, which is
 * in -8..7, and because of -120 <= q <= 119, (q + 8) / 16 is in -7..7.9375, so that h is in -7..7. A magnitude above
 * 119 would need h = 8, which int4 has not; that is why it has fewer levels than I8.
 */
typedef enum {
  NPUMM_COPY_8 = 0,          /* 1-byte elements as they are */
  NPUMM_COPY_16 = 1,         /* 2-byte elements as they are */
  NPUMM_COPY_32 = 2,         /* 4-byte elements as they are */
  NPUMM_INT4 = 3,            /* one int4 per byte <-> two per byte, even element in the low nibble (facts 4.6) */
  NPUMM_F32_TO_F16 = 4,      /* x * row_scale, rounded to nearest even */
  NPUMM_F32_TO_I8 = 5,       /* quantized to int8 */
  NPUMM_INT4_HIGH_FIRST = 6, /* as NPUMM_INT4, even element in the high nibble: runtimes up to 1.6.0 (facts 4.6) */
  NPUMM_F32_TO_I4 = 7,       /* quantized to int4, packed as NPUMM_INT4 */
  NPUMM_F32_TO_I4_HIGH_FIRST = 8,
  NPUMM_F32_TO_I4_SPLIT = 9, /* quantized to 8 bits, which become two images of int4 halves, as above */
  NPUMM_F32_TO_I4_SPLIT_HIGH_FIRST = 10,
  NPUMM_F32_TO_F16_LOW = 11, /* what NPUMM_F32_TO_F16 loses of x * row_scale, as a float16 */
  /*
   * As NPUMM_F32_TO_F16, but 1 or -1 for what is inf or nan in float16. NPUMM_F32_TO_F16_LOW holds that as it is: of the
   * products of two such pairs, high high + high low + low high, exactly those are not finite that are so in float32.
   */
  NPUMM_F32_TO_F16_HIGH = 12
} npumm_conversion;

/* Conversion of a matrix, with what it needs per row of the source and what it tells about each. */
typedef struct {
  npumm_conversion conversion;
  const float *row_scale;  /* NULL for 1; for the conversions from float32 */
  const int32_t *row_zero; /* NULL for symmetric quantization, else within -levels - 1..levels; quantizing ones only */
  int32_t *row_sum;        /* NULL, or receives the sums of rows of integers (of q for I4_SPLIT), modulo 2^32 */
} npumm_values;

/* Bytes that a packed matrix takes, or -1 where tiling or conversion is not valid. */
NPUMM_EXPORT int64_t npumm_packed_bytes(const npumm_tiling *tiling, npumm_conversion conversion);

/*
 * Pack: strided source -> tiles. Strides are in bytes, of either sign or zero. The source has as many rows as the
 * tiling, or half as many for I4_SPLIT, where the tiling's are those of the image. Padding is written as zeros.
 * NPUMM_NOT_FINITE: a value to be quantized is an inf or a nan; the destination's contents are undefined then.
 */
NPUMM_EXPORT int npumm_pack(const npumm_tiling *tiling, const npumm_values *values, const void *src,
                            int64_t src_row_stride, int64_t src_col_stride, void *dst, int64_t dst_bytes);

/*
 * Pack some rows of the source alone, from row `first` on: src and the arrays of `values` start there. Padding columns
 * are written with each row, padding rows with the last one; other rows of the image stay, so several threads may each
 * pack rows of their own.
 */
NPUMM_EXPORT int npumm_pack_rows(const npumm_tiling *tiling, const npumm_values *values, int64_t first, int64_t rows,
                                 const void *src, int64_t src_row_stride, int64_t src_col_stride, void *dst,
                                 int64_t dst_bytes);

/* Unpack: tiles -> strided destination, without conversion (NPUMM_COPY_* and NPUMM_INT4* only). */
NPUMM_EXPORT int npumm_unpack(const npumm_tiling *tiling, npumm_conversion conversion, const void *src,
                              int64_t src_bytes, void *dst, int64_t dst_row_stride, int64_t dst_col_stride);

/* Largest magnitude that a conversion quantizes to; 0 where it does not quantize. */
NPUMM_EXPORT int32_t npumm_levels(npumm_conversion conversion);

/* Largest |x| of each row; -1 in place of it where the row holds an inf or a nan. */
NPUMM_EXPORT int npumm_absmax_rows(const float *src, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                                   float *absmax);

/*
 * Scales of symmetric quantization: clip * absmax / levels per row, 1 where that is zero (a row of zeros, or of the
 * tiniest subnormals, which become zeros), and -1 where the row holds an inf or a nan. levels is at least 1 and clip
 * within (0, 1]: values beyond clip * absmax are clamped when they are quantized.
 */
NPUMM_EXPORT int npumm_symmetric_scales(const float *src, int64_t rows, int64_t cols, int64_t row_stride,
                                        int64_t col_stride, int32_t levels, float clip, float *scale);

/*
 * Scales and zero points of asymmetric quantization (facts 5.5): the range from the row's least to its largest value,
 * widened to hold 0 and shrunk by clip, onto -levels - 1..levels. So 0 is represented exactly. The scale is 1 where it
 * would be zero and -1 where the row holds an inf or a nan.
 */
NPUMM_EXPORT int npumm_asymmetric_scales(const float *src, int64_t rows, int64_t cols, int64_t row_stride,
                                         int64_t col_stride, int32_t levels, float clip, float *scale, int32_t *zero);

/*
 * What rounding costs: for each candidate c and row r, with s and z of scale[c * rows + r] and zero (candidates, rows),
 * q = values / s rounded half to even and clamped to qmin - z..qmax - z, sums[3 * (c * rows + r)] and the two after it
 * become the sums over the row of weights (values - s q)^2, weights values q and weights q^2. Rows of values are
 * contiguous, weights are per column; all are finite, scales positive, zero points within qmin..qmax.
 */
NPUMM_EXPORT int npumm_rounding_sums(const float *values, int64_t rows, int64_t cols, const float *weights,
                                     int64_t candidates, const float *scale, const int32_t *zero, int32_t qmin,
                                     int32_t qmax, double *sums);

/*
 * Power of two per row that brings the largest finite |x| into [1, 2) when it lies outside [2^-2, 2^15), else 1:
 * multiplying by it neither overflows float16 nor loses small rows, and is exact. Infs and nans stay what they are.
 * With `high` it is always brought into [2^14, 2^15), so that what float16 loses of a value is a normal float16 itself
 * unless the value is below 2^-17 of the row's largest.
 */
NPUMM_EXPORT int npumm_power_of_two_scales(const float *src, int64_t rows, int64_t cols, int64_t row_stride,
                                           int64_t col_stride, int32_t high, float *scale);

/*
 * Randomized Hadamard transform of rows, ahead of packing. A row of `features` floats is divided by divisor, multiplied by
 * prescale and cut into blocks of order[0] * order[1] * ... * power, each of which is multiplied by the Kronecker product
 * of the dense matrices and Sylvester's matrix of order `power`. With blocks of 1 only the first two remain.
 */
enum { NPUMM_HADAMARD_DENSE = 3, NPUMM_HADAMARD_ORDER = 256 };
typedef struct {
  int64_t features;
  int64_t power;                              /* a power of two, 1 or more */
  int32_t dense_count;                        /* 0..3 */
  int32_t order[NPUMM_HADAMARD_DENSE];        /* multiples of 4 up to 256 */
  const uint8_t *codes[NPUMM_HADAMARD_DENSE]; /* a byte for 4 entries, row by row: bit 4 + j where entry j is -1 */
  const float *prescale;                      /* per feature: signs, and what makes the product orthonormal; or NULL */
  const float *divisor;                       /* per feature: scales that the weight was multiplied by; or NULL */
} npumm_hadamard;

/*
 * Strides in bytes. The destination's elements are adjacent; its rows do not overlap each other. It may be the source
 * itself, with the same strides, and must not overlap it otherwise. Infs and nans spread over their block.
 */
NPUMM_EXPORT int npumm_hadamard_rows(const npumm_hadamard *how, const void *src, int64_t rows, int64_t src_row_stride,
                                     int64_t src_col_stride, float *dst, int64_t dst_row_stride);

/*
 * npumm_symmetric_scales with these levels, at most the conversion's, and npumm_pack_rows with these scales, in one pass:
 * `scale` and row_sum (or NULL) receive what they give, for `rows` rows of the source from row `first` of the image on.
 * With a rotation (or NULL) of as many features as columns, rows go through npumm_hadamard_rows before, one at a time;
 * that is not for NPUMM_F32_TO_I4_SPLIT*. NPUMM_NOT_FINITE: a row holds an inf or a nan; its scale is -1, the
 * destination's contents are undefined, and so are scales after it. With a rotation NPUMM_NO_MEMORY may be returned.
 */
NPUMM_EXPORT int npumm_quantize_rows(const npumm_hadamard *rotation, const npumm_tiling *tiling,
                                     npumm_conversion conversion, int32_t levels, float clip, int64_t first,
                                     int64_t rows, const float *src, int64_t src_row_stride, int64_t src_col_stride,
                                     void *dst, int64_t dst_bytes, float *scale, int32_t *row_sum);

/* The same for all rows and levels, as they are. */
NPUMM_EXPORT int npumm_quantize(const npumm_tiling *tiling, npumm_conversion conversion, float clip, const float *src,
                                int64_t src_row_stride, int64_t src_col_stride, void *dst, int64_t dst_bytes,
                                float *scale, int32_t *row_sum);

/*
 * Products on the CPU with a native B, as it lies in NPU memory, so that one copy of a weight serves NPU and CPU. A and C
 * are row-major. Integers are added modulo 2^32. Floats are added as float32, each element of C in an order of its own that
 * depends on nothing but K: neither on the number of rows nor on the instruction set.
 */
typedef enum {
  NPUMM_I8_I8 = 0, /* elements of A and of B; C is int32 */
  NPUMM_I8_I4 = 1,
  NPUMM_I4_I4 = 2,
  NPUMM_F16_F16 = 3, /* C is float32 from here on */
  NPUMM_F16_I8 = 4,
  NPUMM_F16_I4 = 5
} npumm_operands;

/*
 * B is a native tile of [n / tile_n][k / tile_k][tile_n][tile_k] elements. tile_n is a multiple of 8 and tile_k of 16, with
 * integers in A of 16 and 32, with int4 in B tile_k of 32.
 */
typedef struct {
  npumm_operands operands;
  int32_t high_first; /* whether the even one of two int4 in a byte is its high half, in A and in B */
  int64_t k, n;       /* multiples of the tile's */
  int64_t tile_n, tile_k;
} npumm_native_b;

/*
 * C = A x B. Strides in bytes; a row of A holds k elements, and one of C n.
 *
 * Returns NPUMM_OK, NPUMM_BAD_ARGUMENT or NPUMM_NO_MEMORY.
 */
NPUMM_EXPORT int npumm_multiply(const npumm_native_b *of, int64_t rows, const void *a, int64_t a_row_stride,
                                const void *b, void *c, int64_t c_row_stride);

/*
 * The same by one of the instruction sets that this machine has, to compare them: 0 is the scalar reference. Beyond the
 * last one it is NPUMM_BAD_ARGUMENT.
 */
NPUMM_EXPORT int npumm_multiply_by(int32_t set, const npumm_native_b *of, int64_t rows, const void *a,
                                   int64_t a_row_stride, const void *b, void *c, int64_t c_row_stride);

/* Name of an instruction set of npumm_multiply_by, the last of which npumm_multiply takes; NULL beyond it. */
NPUMM_EXPORT const char *npumm_multiply_set(int32_t set);

/*
 * CRC-32 as zlib has it, by one of the ways that this machine has, the fastest last: 0 is plain C, slower than zlib.
 * Continues from *checksum, which is 0 in the beginning.
 */
NPUMM_EXPORT int npumm_crc32_by(int32_t set, const void *data, int64_t bytes, uint32_t *checksum);

/* Name of a way of npumm_crc32_by; NULL beyond the last one. */
NPUMM_EXPORT const char *npumm_crc32_set(int32_t set);

/*
 * Read a file from `offset` on into memory, and the checksum of that as npumm_crc32_by does. Up to `threads` threads, 16 at
 * most, share pieces of 256 KiB; those beside the caller's have ended when it returns.
 *
 * Returns how many bytes there were before anything failed. Where those are not all, the checksum is left as it is, bytes
 * behind them may be written, and *error is errno of what failed, or 0 where the file ended there. NPUMM_BAD_ARGUMENT too.
 */
NPUMM_EXPORT int64_t npumm_read_summed(int32_t set, int fd, int64_t offset, void *memory, int64_t bytes,
                                       int32_t threads, uint32_t *checksum, int *error);

/* Name of the instruction set that the kernels chose on this machine: "scalar", "avx2", "avx512" or "neon". */
NPUMM_EXPORT const char *npumm_instruction_set(void);

#ifdef __cplusplus
}
#endif
#endif
