/* Scales of rows of `a`, and their packed images. See activation.h. */
#include "activation.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

static int quantizes(npumm_conversion conversion) {
  return conversion == NPUMM_F32_TO_I8 || conversion == NPUMM_F32_TO_I4 || conversion == NPUMM_F32_TO_I4_HIGH_FIRST ||
         conversion == NPUMM_F32_TO_I4_SPLIT || conversion == NPUMM_F32_TO_I4_SPLIT_HIGH_FIRST;
}

int npumm_activation_is_valid(const npumm_activation *how) {
  switch (how->scaling) {
    case NPUMM_ROWS_UNSCALED:
      return !quantizes(how->conversion);
    case NPUMM_ROWS_POWER_OF_TWO:
      return how->conversion == NPUMM_F32_TO_F16;
    case NPUMM_ROWS_ABSMAX:
    case NPUMM_ROWS_MINMAX:
      return quantizes(how->conversion) && how->levels > 0 && how->clip > 0.0f && how->clip <= 1.0f;
    case NPUMM_ROWS_STATIC:
      return quantizes(how->conversion) && how->static_scale > 0.0f && isfinite(how->static_scale);
  }
  return 0;
}

int npumm_rows_open(npumm_rows_of_a *rows, const npumm_activation *how, int64_t longest) {
  rows->how = how;
  if (how->scaling == NPUMM_ROWS_UNSCALED || longest == 0) return 0;
  rows->scale = malloc((size_t)longest * sizeof *rows->scale);
  rows->factor_store = malloc((size_t)longest * sizeof *rows->factor_store);
  const int has_zeros =
      how->scaling == NPUMM_ROWS_MINMAX || (how->scaling == NPUMM_ROWS_STATIC && how->static_zero != 0);
  if (has_zeros) rows->zero = malloc((size_t)longest * sizeof *rows->zero);
  return rows->scale && rows->factor_store && (rows->zero || !has_zeros) ? 0 : NPUMM_NO_MEMORY;
}

void npumm_rows_close(npumm_rows_of_a *rows) {
  free(rows->scale);
  free(rows->factor_store);
  free(rows->zero);
}

static const float *first_of(const npumm_rows_of_a *rows, const npumm_range *m) {
  return (const float *)(const void *)(rows->a + m->start * rows->row_stride);
}

/* The factors of quantized rows; a negative scale marks a row that cannot be quantized. */
static int take_factors(npumm_rows_of_a *rows, const npumm_range *m, int64_t *bad) {
  for (int64_t r = 0; r < m->length; r++) {
    if (rows->scale[r] < 0.0f) {
      *bad = m->start + r;
      return NPUMM_NOT_FINITE;
    }
    rows->factor_store[r] = (double)rows->scale[r];
  }
  rows->factor = rows->factor_store;
  return 0;
}

static int measure_power_of_two(npumm_rows_of_a *rows, const npumm_range *m) {
  const int code = npumm_power_of_two_scales(first_of(rows, m), m->length, rows->cols, rows->row_stride,
                                             rows->col_stride, rows->scale);
  for (int64_t r = 0; !code && r < m->length; r++) {
    rows->factor_store[r] = 1.0 / (double)rows->scale[r];
    if (rows->scale[r] != 1.0f) rows->factor = rows->factor_store;
  }
  return code;
}

int npumm_rows_measure(npumm_rows_of_a *rows, const npumm_range *m, int64_t *bad) {
  const npumm_activation *how = rows->how;
  int code = 0;
  rows->factor = NULL;
  switch (how->scaling) {
    case NPUMM_ROWS_UNSCALED:
      return 0;
    case NPUMM_ROWS_POWER_OF_TWO:
      return measure_power_of_two(rows, m);
    case NPUMM_ROWS_ABSMAX:
      code = npumm_symmetric_scales(first_of(rows, m), m->length, rows->cols, rows->row_stride, rows->col_stride,
                                    how->levels, how->clip, rows->scale);
      return code ? code : take_factors(rows, m, bad);
    case NPUMM_ROWS_MINMAX:
      code = npumm_asymmetric_scales(first_of(rows, m), m->length, rows->cols, rows->row_stride, rows->col_stride,
                                     how->levels, how->clip, rows->scale, rows->zero);
      return code ? code : take_factors(rows, m, bad);
    case NPUMM_ROWS_STATIC:
      for (int64_t r = 0; r < m->length; r++) {
        rows->scale[r] = how->static_scale;
        if (rows->zero) rows->zero[r] = how->static_zero;
      }
      return take_factors(rows, m, bad);
  }
  return NPUMM_BAD_ARGUMENT;
}

int npumm_rows_pack(const npumm_rows_of_a *rows, const npumm_range *m, const npumm_range *k, int32_t part,
                    const npumm_shape *shape, void *dst, int64_t dst_bytes, int32_t *row_sum, int64_t *bad) {
  const npumm_conversion conversion = rows->how->conversion;
  if (part != 0 && conversion != NPUMM_F32_TO_F16) return NPUMM_BAD_ARGUMENT; /* only these have a low part */
  const int64_t padded_m = shape->padded_m, padded_k = shape->padded_k;
  const npumm_tiling tiling = {m->length * rows->row_images, k->length, padded_m, padded_k, padded_m,
                               shape->a_group ? shape->a_group : padded_k};
  const npumm_values values = {.conversion = part == 2 ? NPUMM_F32_TO_F16_LOW : conversion,
                               .row_scale = rows->scale,
                               .row_zero = rows->zero,
                               .row_sum = row_sum};
  const char *first = rows->a + m->start * rows->row_stride + k->start * rows->col_stride;
  const int code = npumm_pack(&tiling, &values, first, rows->row_stride, rows->col_stride, dst, dst_bytes);
  for (int64_t r = 0; code == NPUMM_NOT_FINITE && r < m->length; r++) { /* static scales: nobody looked before */
    float largest = 0.0f;
    const int looked = npumm_absmax_rows((const float *)(const void *)(first + r * rows->row_stride), 1, k->length,
                                         rows->row_stride, rows->col_stride, &largest);
    if (looked == 0 && largest < 0.0f) {
      *bad = m->start + r;
      break;
    }
  }
  return code;
}
