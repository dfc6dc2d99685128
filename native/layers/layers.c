/* Norms, rotations, gates and sums over rows. See npumatmul_layers.h. */
#include "npumatmul_layers.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "../kernels/epilogue.h"
#include "../kernels/finish.h"
#include "loops.h"

/* Whether there are such rows, and each begins at a multiple of four bytes. */
static int rows_are_valid(const npumm_rows_shape *shape, const npumm_rows_part *part) {
  return shape && part && shape->outer >= 0 && shape->inner >= 0 && shape->width >= 0 && part->first >= 0 &&
         part->first <= part->stop && (part->first == part->stop || part->stop <= shape->outer * shape->inner);
}

static int from_is_valid(const npumm_rows_from *x) {
  return x && x->data && (uintptr_t)x->data % sizeof(float) == 0 && x->outer_stride % (int64_t)sizeof(float) == 0 &&
         x->inner_stride % (int64_t)sizeof(float) == 0;
}

static int to_is_valid(const npumm_rows_to *x) {
  const npumm_rows_from same = x ? (npumm_rows_from){x->data, x->outer_stride, x->inner_stride} : (npumm_rows_from){0};
  return from_is_valid(&same);
}

static const float *row_from(const npumm_rows_from *x, const npumm_rows_shape *shape, int64_t row) {
  const char *at = (const char *)x->data;
  return (const float *)(const void *)(at + row / shape->inner * x->outer_stride +
                                       row % shape->inner * x->inner_stride);
}

static float *row_to(const npumm_rows_to *x, const npumm_rows_shape *shape, int64_t row) {
  char *at = (char *)x->data;
  return (float *)(void *)(at + row / shape->inner * x->outer_stride + row % shape->inner * x->inner_stride);
}

int npumm_rms_norm(const npumm_rows_shape *shape, const npumm_rows_part *part, const npumm_rows_from *x,
                   const float *factor, float share, float eps, const npumm_rows_to *out) {
  if (!rows_are_valid(shape, part) || !from_is_valid(x) || !to_is_valid(out)) return NPUMM_BAD_ARGUMENT;
  const npumm_layer_loops *loops = npumm_layers();
  for (int64_t r = part->first; r < part->stop; r++) {
    const float *row = row_from(x, shape, r);
    const float divisor = sqrtf(loops->sum_of_squares(row, shape->width) * share + eps);
    loops->divide(row, divisor, factor, row_to(out, shape, r), shape->width);
  }
  return 0;
}

int npumm_layer_norm(const npumm_rows_shape *shape, const npumm_rows_part *part, const npumm_rows_from *x,
                     const float *weight, const float *bias, float share, float eps, const npumm_rows_to *out) {
  if (!rows_are_valid(shape, part) || !from_is_valid(x) || !to_is_valid(out) || !weight) return NPUMM_BAD_ARGUMENT;
  const npumm_layer_loops *loops = npumm_layers();
  for (int64_t r = part->first; r < part->stop; r++) {
    const float *row = row_from(x, shape, r);
    float *to = row_to(out, shape, r);
    const float mean = loops->sum(row, shape->width) * share;
    const float divisor = sqrtf(loops->subtract(row, mean, to, shape->width) * share + eps);
    loops->divide(to, divisor, weight, to, shape->width);
    if (bias) loops->add(to, bias, to, shape->width);
  }
  return 0;
}

int npumm_rotate(const npumm_rows_shape *shape, const npumm_rows_part *part, const npumm_rows_from *x,
                 const npumm_rotation *rotation, int64_t position, const npumm_rows_to *out) {
  if (!rows_are_valid(shape, part) || !from_is_valid(x) || !to_is_valid(out)) return NPUMM_BAD_ARGUMENT;
  if (!rotation || !rotation->cos || !rotation->sin || rotation->half < 1 || 2 * rotation->half > shape->width ||
      position < 0 || position > rotation->count - shape->inner) {
    return NPUMM_BAD_ARGUMENT;
  }
  const npumm_layer_loops *loops = npumm_layers();
  const int64_t half = rotation->half, rest = shape->width - 2 * half;
  for (int64_t r = part->first; r < part->stop; r++) {
    const float *row = row_from(x, shape, r);
    float *to = row_to(out, shape, r);
    const int64_t at = (position + r % shape->inner) * half;
    (rotation->interleaved ? loops->turn_pairs : loops->turn)(row, rotation->cos + at, rotation->sin + at, to, half);
    if (rest) memcpy(to + 2 * half, row + 2 * half, (size_t)rest * sizeof *to);
  }
  return 0;
}

int npumm_gate(const npumm_rows_shape *shape, const npumm_rows_part *part, const npumm_rows_from *x,
               npumm_function function, const npumm_rows_from *up, const npumm_rows_to *out) {
  if (!rows_are_valid(shape, part) || !from_is_valid(x) || !to_is_valid(out)) return NPUMM_BAD_ARGUMENT;
  if (function < NPUMM_IDENTITY || function > NPUMM_SIGMOID || (up && !from_is_valid(up))) return NPUMM_BAD_ARGUMENT;
  enum { PIECE = 1024 }; /* values that stay in the nearest cache between the passes */
  for (int64_t r = part->first; r < part->stop; r++) {
    const float *row = row_from(x, shape, r), *other = up ? row_from(up, shape, r) : NULL;
    float *to = row_to(out, shape, r);
    for (int64_t i = 0; i < shape->width; i += PIECE) {
      const int64_t n = shape->width - i < PIECE ? shape->width - i : PIECE;
      if (to != row) memcpy(to + i, row + i, (size_t)n * sizeof *to);
      npumm_function_apply(function, to + i, n);
      if (other) npumm_finish()->multiply(to + i, other + i, n);
    }
  }
  return 0;
}

int npumm_add_rows(const npumm_rows_shape *shape, const npumm_rows_part *part, const npumm_rows_from *x,
                   const npumm_rows_from *y, float scale, const npumm_rows_to *out) {
  if (!rows_are_valid(shape, part) || !from_is_valid(x) || !from_is_valid(y) || !to_is_valid(out)) {
    return NPUMM_BAD_ARGUMENT;
  }
  const npumm_layer_loops *loops = npumm_layers();
  for (int64_t r = part->first; r < part->stop; r++) {
    const float *row = row_from(x, shape, r), *other = row_from(y, shape, r);
    if (scale == 1.0f) {
      loops->add(row, other, row_to(out, shape, r), shape->width);
    } else {
      loops->add_scaled(row, other, scale, row_to(out, shape, r), shape->width);
    }
  }
  return 0;
}

int npumm_scale_rows(const npumm_rows_shape *shape, const npumm_rows_part *part, const npumm_rows_from *x, float scale,
                     const npumm_rows_to *out) {
  if (!rows_are_valid(shape, part) || !from_is_valid(x) || !to_is_valid(out)) return NPUMM_BAD_ARGUMENT;
  const npumm_layer_loops *loops = npumm_layers();
  for (int64_t r = part->first; r < part->stop; r++) {
    loops->scale(row_from(x, shape, r), scale, row_to(out, shape, r), shape->width);
  }
  return 0;
}
