/* Rows of `a` on their way into A: their transform, their scales, and the packed images of slices of K. */
#ifndef NPUMATMUL_ACTIVATION_H
#define NPUMATMUL_ACTIVATION_H

#include "npumatmul_executor.h"

/* What is known of the rows of the range at work. Entries of the arrays are relative to its first row. */
typedef struct {
  const npumm_activation *how;
  const char *a;                            /* NULL where they are no rows of the caller's */
  int64_t a_row_stride, a_col_stride, cols; /* strides in bytes */
  int32_t row_images;
  int32_t
      at_once; /* there is one image, which npumm_rows_pack transforms rows for and finds their scales, row by row */
  float *transformed; /* rows of the range after the transform; NULL where there is none */
  const char *first;  /* the first row of the range, transformed if need be */
  int64_t row_stride, col_stride;
  int64_t image_rows, image_first; /* rows of the whole image that npumm_rows_pack packs into, and the first of these */
  int64_t longest;                 /* rows of the longest range */
  float *scale;   /* by which a row is multiplied (float16) or divided (integers); NULL where rows are unscaled */
  double *factor; /* by which the row of the result is multiplied; NULL where all are 1 */
  double *factor_store;
  int32_t *zero; /* zero points of rows, or NULL */
  int32_t *zero_store;
} npumm_rows_of_a; /* of rows that are scaled in groups, scale, factor and zero are [buffers of A][longest] */

/* Whether activation, images of rows and slices fit together. */
int npumm_activation_is_valid(const npumm_placed_matmul *placed);

/* Whether values are read as float32. */
int npumm_reads_float32(const npumm_activation *how);

/* Whether its rows can have zero points. */
int npumm_has_zero_points(const npumm_activation *how);

/* Whether rows are quantized for one image of all their columns, by their largest magnitudes. */
int npumm_packs_at_once(const npumm_placed_matmul *placed);

/* Whether each image of A has scales of rows of its own. */
int npumm_scales_groups(const npumm_activation *how);

/*
 * Prepare for ranges of up to `longest` rows and for `buffers` images at once, with `a`, `cols` and `at_once` set; returns 0
 * or NPUMM_NO_MEMORY.
 * npumm_rows_close in any case.
 */
int npumm_rows_open(npumm_rows_of_a *rows, const npumm_activation *how, int64_t longest, int32_t buffers);
void npumm_rows_close(npumm_rows_of_a *rows);

/*
 * Transform a range of rows and find their scales, over the whole of K so that all slices of a row share them, unless
 * rows are scaled in groups; or, with `at_once`, leave both to npumm_rows_pack. On NPUMM_NOT_FINITE, *bad is the row, in the logical matrix, that holds an inf or nan.
 */
int npumm_rows_begin(npumm_rows_of_a *rows, const npumm_range *m, int64_t *bad);

/*
 * Pack the image of a slice, for a range of rows, into the given buffer of A, at dst; where rows are scaled in groups,
 * find the scales of its group before. row_sum, where it is not NULL, gets the sum of the packed values of each row.
 * *bad as in npumm_rows_begin.
 */
int npumm_rows_pack(npumm_rows_of_a *rows, const npumm_range *m, const npumm_slice *slice, const npumm_shape *shape,
                    int32_t buffer, void *dst, int64_t dst_bytes, int32_t *row_sum, int64_t *bad);

/* Of rows that are scaled in groups: where what belongs to a buffer begins in scale, factor and zero. */
int64_t npumm_rows_of_buffer(const npumm_rows_of_a *rows, int32_t buffer);

#endif
