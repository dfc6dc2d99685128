/*
 * Results of libnpumm.so: from tiles of C, one per slice of K, to the caller's matrix, in one pass per tile.
 *
 * A slice is one run A[:, k] x B. The result is the sum over the slices of
 *
 *     row_factor * column_scale * (C - row_zero * column_sums - column_zero * row_sum)
 *
 * (zero points of A per row and of B per column; the sums are those of the packed integers), then the epilogue. Where
 * all slices have the same row_factor and column_scale these are applied once, at the end: sums of integers are then
 * exact until there.
 */
#ifndef NPUMATMUL_STORE_H
#define NPUMATMUL_STORE_H

#include "npumatmul_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Element types of C. */
typedef enum {
  NPUMM_C_INT32 = 0,
  NPUMM_C_FLOAT32 = 1,
  NPUMM_C_INT16 = 2,
  NPUMM_C_FLOAT16 = 3,
  NPUMM_C_INT8 = 4
} npumm_result_type;

/* Element types of the caller's matrices. */
typedef enum {
  NPUMM_FLOAT32 = 0,
  NPUMM_FLOAT16 = 1,
  NPUMM_BFLOAT16 = 2,
  NPUMM_INT32 = 3,
  NPUMM_INT8 = 4 /* of results alone: C of int8 as it is */
} npumm_element;

typedef enum {
  NPUMM_IDENTITY = 0,
  NPUMM_RELU = 1,      /* max(x, 0) */
  NPUMM_GELU = 2,      /* x (1 + erf(x / sqrt 2)) / 2 */
  NPUMM_GELU_TANH = 3, /* x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 */
  NPUMM_SILU = 4,      /* x / (1 + exp(-x)) */
  NPUMM_RELU2 = 5,     /* max(x, 0)^2 */
  NPUMM_SIGMOID = 6    /* 1 / (1 + exp(-x)) */
} npumm_function;

/* A matrix of the result's shape; adjacent along the columns, row_stride in bytes. */
typedef struct {
  const void *data; /* NULL for none */
  int64_t row_stride;
  npumm_element type; /* one of the floats */
} npumm_matrix;

/*
 * What is done to the result, in the order of the fields, in float32; `scale` joins the other scales in float64 before
 * the first rounding. Of the exact function of their float32 argument, GELU is within 6 ulp, GELU_TANH, SILU and SIGMOID
 * within 4 (plus 2^-149 where results are subnormal).
 */
typedef struct {
  double scale;
  const float *bias; /* one per column, or NULL */
  npumm_function function;
  npumm_matrix multiply, residual;
  float low, high; /* -inf and inf for no limits; nan stays nan */
} npumm_epilogue;

/* What a tile of C stands for. The arrays start at the tile's first row and column; those that are NULL count as 0. */
typedef struct {
  npumm_result_type type;
  int32_t row_images; /* 2: the tile has twice the rows, and the value of row r is 16 C[r] + C[rows + r]; else 1 */
  const int32_t *row_zero, *column_sums;
  const int32_t *row_sum, *column_zero;
  const float *column_scale; /* of this slice alone, or NULL for 1; sums are float32 where it is given */
  const double *row_factor;  /* the same, one per row of the result */
} npumm_term;

/* Sums over the slices so far: int32 or float32 in rows of row_stride bytes. It may be the result's own memory. */
typedef struct {
  void *data;
  int64_t row_stride;
  int add;      /* whether there is anything yet */
  int as_float; /* float32 sums of integers too: slices with scales of their own */
} npumm_partial;

/* Where the finished sums go. */
typedef struct {
  void *data; /* the tile's first element */
  int64_t row_stride;
  npumm_element type;             /* NPUMM_INT32 for sums of integers without factors, scales and epilogue; NPUMM_INT8
                                    for one slice of NPUMM_C_INT8 without zero points and any of these */
  const double *row_factor;       /* one per row of the tile, or NULL for 1 */
  const float *column_scale;      /* one per column of the tile, common to all slices, or NULL for 1 */
  const npumm_epilogue *epilogue; /* or NULL */
  int64_t row, column;            /* of the tile's first element, in the epilogue's arrays */
  int32_t widen;                  /* whether FLOAT16 and BFLOAT16 are rounded to, but written as float32 */
} npumm_result;

/*
 * Add a tile of C to the sums. `partial` may be NULL where nothing is there yet and the result is given; `result` is
 * NULL as long as slices are to follow. int32 sums wrap modulo 2^32; products with factors are made in float64 and
 * rounded once, to float32; float16 and bfloat16 results are rounded from that, to nearest even.
 */
NPUMM_EXPORT int npumm_store(const npumm_tiling *tiling, const npumm_term *term, const void *src, int64_t src_bytes,
                             const npumm_partial *partial, const npumm_result *result);

/*
 * The same for `count` rows of the tile from row `first` on. result->data is where the first of them goes; all other
 * arrays start at the tile's first row.
 */
NPUMM_EXPORT int npumm_store_rows(const npumm_tiling *tiling, const npumm_term *term, const void *src,
                                  int64_t src_bytes, int64_t first, int64_t count, const npumm_partial *partial,
                                  const npumm_result *result);

#ifdef __cplusplus
}
#endif
#endif
