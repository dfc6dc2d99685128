/*
 * What stands between the products of a model, on float32 rows: norms, rotations, gates, sums. Each function does what
 * its layer in npumatmul.nn says; the order of all sums is fixed, so that every instruction set gives the same bits, and
 * a row's result does not depend on the rows beside it.
 */
#ifndef NPUMATMUL_LAYERS_H
#define NPUMATMUL_LAYERS_H

#include <stdint.h>

#include "npumatmul_kernels.h"
#include "npumatmul_store.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows of `width` float32 that stand next to each other: `outer` times `inner` of them, such as heads and tokens. */
typedef struct {
  int64_t outer, inner, width;
} npumm_rows_shape;

/* Where they stand; strides in bytes. */
typedef struct {
  const float *data;
  int64_t outer_stride, inner_stride;
} npumm_rows_from;

typedef struct {
  float *data;
  int64_t outer_stride, inner_stride;
} npumm_rows_to;

/* Rows first to stop of all, counted with `inner` running fastest: so threads share them. */
typedef struct {
  int64_t first, stop;
} npumm_rows_part;

/* out = x / sqrt(sum(x^2) * share + eps) * factor; factor may be NULL for 1. out may be x. */
NPUMM_EXPORT int npumm_rms_norm(const npumm_rows_shape *shape, const npumm_rows_part *part, const npumm_rows_from *x,
                                const float *factor, float share, float eps, const npumm_rows_to *out);

/* d = x - sum(x) * share; out = d / sqrt(sum(d^2) * share + eps) * weight + bias; bias may be NULL. out may be x. */
NPUMM_EXPORT int npumm_layer_norm(const npumm_rows_shape *shape, const npumm_rows_part *part, const npumm_rows_from *x,
                                  const float *weight, const float *bias, float share, float eps,
                                  const npumm_rows_to *out);

/* Cosines and sines of positions 0 to count, `half` of each in a row: the first `half` pairs of values turn by them. */
typedef struct {
  const float *cos, *sin;
  int64_t count, half;
  int32_t interleaved; /* whether pairs stand next to each other, or `half` values apart */
} npumm_rotation;

/* Rotate row i of `inner` by position + i; what lies beyond 2 * half is copied. out is not x. NPUMM_BAD_ARGUMENT where
 * the table has no such position. */
NPUMM_EXPORT int npumm_rotate(const npumm_rows_shape *shape, const npumm_rows_part *part, const npumm_rows_from *x,
                              const npumm_rotation *rotation, int64_t position, const npumm_rows_to *out);

/* out = function(x) * up; up may be NULL. out may be x. */
NPUMM_EXPORT int npumm_gate(const npumm_rows_shape *shape, const npumm_rows_part *part, const npumm_rows_from *x,
                            npumm_function function, const npumm_rows_from *up, const npumm_rows_to *out);

/* out = x + y, or x + y * scale where scale is not 1. out may be x or y. */
NPUMM_EXPORT int npumm_add_rows(const npumm_rows_shape *shape, const npumm_rows_part *part, const npumm_rows_from *x,
                                const npumm_rows_from *y, float scale, const npumm_rows_to *out);

/* out = x * scale. out may be x. */
NPUMM_EXPORT int npumm_scale_rows(const npumm_rows_shape *shape, const npumm_rows_part *part, const npumm_rows_from *x,
                                  float scale, const npumm_rows_to *out);

/* The k-th largest of values that are no nans, for k up to NPUMM_TOP_K_MOST, in one pass. */
NPUMM_EXPORT int npumm_kth_largest(const float *values, int64_t count, int64_t k, float *kth);

#define NPUMM_TOP_K_MOST 256

#ifdef __cplusplus
}
#endif
#endif
