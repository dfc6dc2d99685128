/* Transform and scales of rows of `a`, and their packed images. See activation.h. */
#include "activation.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

int npumm_reads_float32(const npumm_activation *how) {
  return npumm_levels(how->conversion) > 0 || how->conversion == NPUMM_F32_TO_F16;
}

static int splits_rows(npumm_conversion conversion) {
  return conversion == NPUMM_F32_TO_I4_SPLIT || conversion == NPUMM_F32_TO_I4_SPLIT_HIGH_FIRST;
}

int npumm_has_zero_points(const npumm_activation *how) {
  switch (how->scaling) {
    case NPUMM_ROWS_MINMAX:
    case NPUMM_ROWS_MINMAX_GROUPS:
      return 1;
    case NPUMM_ROWS_UNSCALED:
    case NPUMM_ROWS_STATIC:
      return how->static_zero != 0;
    default:
      return 0;
  }
}

int npumm_activation_is_valid(const npumm_placed_matmul *p) {
  const npumm_activation *how = &p->activation;
  const int32_t levels = npumm_levels(how->conversion);
  if (p->row_images != (splits_rows(how->conversion) ? 2 : 1)) return 0;
  switch (how->scaling) {
    case NPUMM_ROWS_UNSCALED:
      if (how->static_zero < INT8_MIN || how->static_zero > INT8_MAX) return 0;
      if (how->static_zero != 0 && how->conversion != NPUMM_COPY_8) return 0;
      break;
    case NPUMM_ROWS_POWER_OF_TWO:
    case NPUMM_ROWS_POWER_OF_TWO_HIGH:
      if (how->conversion != NPUMM_F32_TO_F16) return 0;
      break;
    case NPUMM_ROWS_MINMAX:
    case NPUMM_ROWS_MINMAX_GROUPS:
    case NPUMM_ROWS_ABSMAX:
    case NPUMM_ROWS_ABSMAX_GROUPS:
      if (how->levels < 1 || how->levels > levels || !(how->clip > 0.0f && how->clip <= 1.0f)) return 0;
      break;
    case NPUMM_ROWS_STATIC:
      if (levels == 0 || !(how->static_scale > 0.0f && isfinite(how->static_scale)) || how->static_zero < -levels - 1 ||
          how->static_zero > levels) {
        return 0;
      }
      break;
    default:
      return 0;
  }
  int64_t cols = 0;
  for (int32_t i = 0; i < p->slice_count; i++) {
    const npumm_slice *slice = &p->slices[i];
    if (slice->k.start + slice->k.length > cols) cols = slice->k.start + slice->k.length;
    if (npumm_has_zero_points(how) && !slice->column_sums) return 0;
    if (slice->column_zero && levels == 0 && how->conversion != NPUMM_COPY_8 && how->conversion != NPUMM_INT4 &&
        how->conversion != NPUMM_INT4_HIGH_FIRST) {
      return 0; /* only integers have sums of rows */
    }
    if (slice->part < 0 || slice->part > 2 || (slice->part > 0 && how->conversion != NPUMM_F32_TO_F16)) return 0;
  }
  for (int32_t i = 0; npumm_scales_groups(how) && i < p->slice_count; i++) {
    const npumm_range *k = &p->slices[i].k, *group = &p->slices[i].group;
    if (group->start < 0 || group->start > k->start || group->start + group->length < k->start + k->length ||
        group->start + group->length > cols) {
      return 0;
    }
  }
  if (!how->transform) return 1;
  return npumm_reads_float32(how) && how->transform->features == cols &&
         npumm_hadamard_rows(how->transform, NULL, 0, 0, 0, NULL, 0) == NPUMM_OK; /* no rows: it is only checked */
}

int npumm_packs_at_once(const npumm_placed_matmul *p) {
  const npumm_activation *how = &p->activation;
  if (how->scaling != NPUMM_ROWS_ABSMAX || (how->transform && splits_rows(how->conversion))) return 0;
  int64_t cols = 0;
  for (int32_t i = 0; i < p->slice_count; i++) {
    const npumm_range *k = &p->slices[i].k;
    if (k->start != 0 || (i > 0 && k->length != cols)) return 0;
    cols = k->length;
  }
  return 1;
}

int npumm_scales_groups(const npumm_activation *how) {
  return how->scaling == NPUMM_ROWS_ABSMAX_GROUPS || how->scaling == NPUMM_ROWS_MINMAX_GROUPS;
}

int npumm_rows_open(npumm_rows_of_a *rows, const npumm_activation *how, int64_t longest, int32_t buffers) {
  rows->how = how;
  rows->longest = longest;
  if (how->transform && rows->a && longest > 0 && !rows->at_once) { /* others are transformed where they stand */
    rows->transformed = malloc((size_t)longest * (size_t)rows->cols * sizeof *rows->transformed);
    if (!rows->transformed) return NPUMM_NO_MEMORY;
  }
  if (longest == 0 || (how->scaling == NPUMM_ROWS_UNSCALED && how->static_zero == 0)) return 0;
  if (how->scaling == NPUMM_ROWS_UNSCALED) {
    rows->zero = rows->zero_store = malloc((size_t)longest * sizeof *rows->zero_store);
    for (int64_t r = 0; rows->zero && r < longest; r++) rows->zero[r] = how->static_zero;
    return rows->zero ? 0 : NPUMM_NO_MEMORY;
  }
  const size_t count = (size_t)longest * (npumm_scales_groups(how) ? (size_t)buffers : 1);
  rows->scale = malloc(count * sizeof *rows->scale);
  rows->factor_store = malloc(count * sizeof *rows->factor_store);
  rows->zero_store = malloc(count * sizeof *rows->zero_store);
  return rows->scale && rows->factor_store && rows->zero_store ? 0 : NPUMM_NO_MEMORY;
}

void npumm_rows_close(npumm_rows_of_a *rows) {
  free(rows->transformed);
  free(rows->scale);
  free(rows->factor_store);
  free(rows->zero_store);
}

/* Scales of rows over the columns k, by which they are divided; the result is multiplied by the same. */
static int measure_quantized(npumm_rows_of_a *rows, const npumm_range *m, const npumm_range *k, int64_t at,
                             int64_t *bad) {
  const float *first = (const float *)(const void *)(rows->first + k->start * rows->col_stride);
  const npumm_activation *how = rows->how;
  float *scale = rows->scale + at;
  int code = 0;
  rows->zero = NULL;
  if (how->scaling == NPUMM_ROWS_ABSMAX || how->scaling == NPUMM_ROWS_ABSMAX_GROUPS) {
    code = npumm_symmetric_scales(first, m->length, k->length, rows->row_stride, rows->col_stride, how->levels,
                                  how->clip, scale);
  } else if (how->scaling == NPUMM_ROWS_MINMAX || how->scaling == NPUMM_ROWS_MINMAX_GROUPS) {
    rows->zero = rows->zero_store;
    code = npumm_asymmetric_scales(first, m->length, k->length, rows->row_stride, rows->col_stride, how->levels,
                                   how->clip, scale, rows->zero + at);
  } else {
    if (how->static_zero != 0) rows->zero = rows->zero_store;
    for (int64_t r = 0; r < m->length; r++) {
      scale[r] = how->static_scale;
      rows->zero_store[r] = how->static_zero;
    }
  }
  for (int64_t r = 0; !code && r < m->length; r++) {
    if (scale[r] < 0.0f) {
      *bad = m->start + r;
      return NPUMM_NOT_FINITE;
    }
    rows->factor_store[at + r] = (double)scale[r];
  }
  rows->factor = rows->factor_store;
  return code;
}

/* Let `first` and the strides say where the rows of the range are. */
static int transform(npumm_rows_of_a *rows, const npumm_range *m) {
  rows->first = rows->a + m->start * rows->a_row_stride;
  rows->row_stride = rows->a_row_stride;
  rows->col_stride = rows->a_col_stride;
  if (!rows->how->transform || rows->at_once) return 0;
  const int64_t unit = (int64_t)sizeof *rows->transformed;
  const int code = npumm_hadamard_rows(rows->how->transform, rows->first, m->length, rows->row_stride, rows->col_stride,
                                       rows->transformed, rows->cols * unit);
  rows->first = (const char *)rows->transformed;
  rows->row_stride = rows->cols * unit;
  rows->col_stride = unit;
  return code;
}

int npumm_rows_begin(npumm_rows_of_a *rows, const npumm_range *m, int64_t *bad) {
  rows->factor = NULL;
  int code = transform(rows, m);
  if (code || rows->at_once) return code;
  if (rows->how->scaling == NPUMM_ROWS_UNSCALED || npumm_scales_groups(rows->how)) return 0;
  if (rows->how->scaling != NPUMM_ROWS_POWER_OF_TWO && rows->how->scaling != NPUMM_ROWS_POWER_OF_TWO_HIGH) {
    const npumm_range all = {0, rows->cols};
    return measure_quantized(rows, m, &all, 0, bad);
  }
  code = npumm_power_of_two_scales((const float *)(const void *)rows->first, m->length, rows->cols, rows->row_stride,
                                   rows->col_stride, rows->how->scaling == NPUMM_ROWS_POWER_OF_TWO_HIGH, rows->scale);
  for (int64_t r = 0; !code && r < m->length; r++) {
    rows->factor_store[r] = 1.0 / (double)rows->scale[r];
    if (rows->scale[r] != 1.0f) rows->factor = rows->factor_store;
  }
  return code;
}

int64_t npumm_rows_of_buffer(const npumm_rows_of_a *rows, int32_t buffer) {
  return npumm_scales_groups(rows->how) ? buffer * rows->longest : 0;
}

static int pack_at_once(npumm_rows_of_a *rows, const npumm_range *m, const npumm_tiling *tiling, void *dst,
                        int64_t dst_bytes, int32_t *row_sum, int64_t *bad) {
  const npumm_activation *how = rows->how;
  const int code = npumm_quantize_rows(how->transform, tiling, how->conversion, how->levels, how->clip,
                                       rows->image_first, m->length, (const float *)(const void *)rows->first,
                                       rows->row_stride, rows->col_stride, dst, dst_bytes, rows->scale, row_sum);
  for (int64_t r = 0; r < m->length && (!code || code == NPUMM_NOT_FINITE); r++) {
    rows->factor_store[r] = (double)rows->scale[r];
    if (rows->scale[r] < 0.0f) {
      *bad = m->start + r;
      break; /* what follows is not measured */
    }
  }
  rows->zero = NULL;
  rows->factor = rows->factor_store;
  return code;
}

int npumm_rows_pack(npumm_rows_of_a *rows, const npumm_range *m, const npumm_slice *slice, const npumm_shape *shape,
                    int32_t buffer, void *dst, int64_t dst_bytes, int32_t *row_sum, int64_t *bad) {
  const int64_t padded_k = shape->padded_k, at = npumm_rows_of_buffer(rows, buffer);
  const npumm_range *k = &slice->k;
  if (npumm_scales_groups(rows->how)) {
    const int code = measure_quantized(rows, m, &slice->group, at, bad);
    if (code) return code;
  }
  const npumm_tiling tiling = {
      rows->image_rows * rows->row_images,       k->length, shape->padded_m, padded_k, shape->padded_m,
      shape->a_group ? shape->a_group : padded_k};
  if (rows->at_once) return pack_at_once(rows, m, &tiling, dst, dst_bytes, row_sum, bad);
  /* static values have the whole range of codes, with a zero point of 0 too; codes that are there have theirs */
  const int32_t *zero = rows->how->scaling == NPUMM_ROWS_STATIC     ? rows->zero_store
                        : rows->how->scaling == NPUMM_ROWS_UNSCALED ? NULL
                                                                    : rows->zero;
  const npumm_conversion conversion = slice->part == 1   ? NPUMM_F32_TO_F16_HIGH
                                      : slice->part == 2 ? NPUMM_F32_TO_F16_LOW
                                                         : rows->how->conversion;
  const npumm_values values = {conversion, rows->scale ? rows->scale + at : NULL, zero ? zero + at : NULL, row_sum};
  const char *first = rows->first + k->start * rows->col_stride;
  const int code = npumm_pack_rows(&tiling, &values, rows->image_first, m->length, first, rows->row_stride,
                                   rows->col_stride, dst, dst_bytes);
  for (int64_t r = 0; code == NPUMM_NOT_FINITE && r < m->length; r++) { /* only static scales are not measured */
    float largest;
    const float *row = (const float *)(const void *)(first + r * rows->row_stride);
    npumm_absmax_rows(row, 1, k->length, rows->row_stride, rows->col_stride, &largest);
    if (largest < 0.0f) {
      *bad = m->start + r;
      break;
    }
  }
  return code;
}
