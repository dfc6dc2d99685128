/* Scales of rows of `a`, and their packed images. See activation.h. */
#include "activation.h"

#include <stddef.h>
#include <stdlib.h>

int npumm_activation_is_valid(const npumm_activation *how) {
  switch (how->scaling) {
    case NPUMM_ROWS_UNSCALED:
      return 1;
    case NPUMM_ROWS_POWER_OF_TWO:
      return how->conversion == NPUMM_F32_TO_F16;
    case NPUMM_ROWS_ABSMAX:
      return how->conversion == NPUMM_F32_TO_I8 && how->levels > 0.0f && how->clip > 0.0f;
    case NPUMM_ROWS_STATIC:
      return how->conversion == NPUMM_F32_TO_I8 && how->static_scale > 0.0f && how->static_zero == 0;
    case NPUMM_ROWS_MINMAX:
      return 0;
  }
  return 0;
}

int npumm_rows_open(npumm_rows_of_a *rows, const npumm_activation *how, int64_t longest) {
  rows->how = how;
  if (how->scaling == NPUMM_ROWS_UNSCALED || longest == 0) return 0;
  rows->scale = malloc((size_t)longest * sizeof *rows->scale);
  rows->factor_store = malloc((size_t)longest * sizeof *rows->factor_store);
  return rows->scale && rows->factor_store ? 0 : NPUMM_NO_MEMORY;
}

void npumm_rows_close(npumm_rows_of_a *rows) {
  free(rows->scale);
  free(rows->factor_store);
}

static int measure_absmax(npumm_rows_of_a *rows, const float *first, const npumm_range *m, int64_t *bad) {
  const int code = npumm_absmax_rows(first, m->length, rows->cols, rows->row_stride, rows->col_stride, rows->scale);
  if (code) return code;
  for (int64_t r = 0; r < m->length; r++) {
    if (rows->scale[r] < 0.0f) {
      *bad = m->start + r;
      return NPUMM_NOT_FINITE;
    }
    const float scale = rows->scale[r] * rows->how->clip / rows->how->levels;
    rows->scale[r] = scale > 0.0f ? scale : 1.0f; /* a row of zeros (or of the tiniest subnormals) becomes zeros */
    rows->factor_store[r] = (double)rows->scale[r];
  }
  rows->factor = rows->factor_store;
  return 0;
}

int npumm_rows_measure(npumm_rows_of_a *rows, const npumm_range *m, int64_t *bad) {
  const float *first = (const float *)(const void *)(rows->a + m->start * rows->row_stride);
  rows->factor = NULL;
  switch (rows->how->scaling) {
    case NPUMM_ROWS_UNSCALED:
      return 0;
    case NPUMM_ROWS_POWER_OF_TWO: {
      const int code =
          npumm_power_of_two_scales(first, m->length, rows->cols, rows->row_stride, rows->col_stride, rows->scale);
      for (int64_t r = 0; !code && r < m->length; r++) {
        rows->factor_store[r] = 1.0 / (double)rows->scale[r];
        if (rows->scale[r] != 1.0f) rows->factor = rows->factor_store;
      }
      return code;
    }
    case NPUMM_ROWS_ABSMAX:
      return measure_absmax(rows, first, m, bad);
    case NPUMM_ROWS_STATIC:
      for (int64_t r = 0; r < m->length; r++) {
        rows->scale[r] = rows->how->static_scale;
        rows->factor_store[r] = (double)rows->how->static_scale;
      }
      rows->factor = rows->factor_store;
      return 0;
    case NPUMM_ROWS_MINMAX:
      break;
  }
  return NPUMM_BAD_ARGUMENT;
}

int npumm_rows_pack(const npumm_rows_of_a *rows, const npumm_range *m, const npumm_range *k, int32_t part,
                    const npumm_shape *shape, void *dst, int64_t dst_bytes, int32_t *row_sum) {
  if (part > 1 || row_sum || rows->row_images != 1) return NPUMM_BAD_ARGUMENT;
  const int64_t padded_k = shape->padded_k;
  const npumm_tiling tiling = {m->length, k->length,        shape->padded_m,
                               padded_k,  shape->padded_m, shape->a_group ? shape->a_group : padded_k};
  return npumm_pack(&tiling, rows->how->conversion, rows->a + m->start * rows->row_stride + k->start * rows->col_stride,
                    rows->row_stride, rows->col_stride, rows->scale, dst, dst_bytes);
}
