/* The parts of npumm_pack: what a conversion is made of, and the two ways through a matrix. */
#ifndef NPUMATMUL_PACK_H
#define NPUMATMUL_PACK_H

#include "npumatmul_kernels.h"
#include "rows.h"

typedef enum {
  NPUMM_COPIED,
  NPUMM_INT4_PAIRS,
  NPUMM_TO_HALF,
  NPUMM_TO_HALF_HIGH,
  NPUMM_TO_HALF_LOW,
  NPUMM_QUANTIZED,
  NPUMM_QUANTIZED_PAIRS,
  NPUMM_QUANTIZED_SPLIT
} npumm_recipe_kind;

typedef struct {
  npumm_recipe_kind kind;
  int64_t source_bytes, bits; /* of an element before and after */
  int high_first;
  float levels;    /* largest quantized value */
  int past_caches; /* the image is so large that it is written around the caches */
} npumm_recipe;

npumm_recipe npumm_recipe_of(npumm_conversion conversion);

/* Of npumm_symmetric_scales, for a row with this largest magnitude. */
float npumm_symmetric_scale(float largest, int32_t levels, float clip);

npumm_quantizer npumm_quantizer_of(const npumm_values *values, float levels, int64_t r);

/*
 * Rows of the source, whose row 0 is row `first` of the image, over all columns: row by row, whatever the strides are, or
 * column by column where those are contiguous. Return NPUMM_OK or NPUMM_NOT_FINITE.
 */
int npumm_pack_across(const npumm_tiling *t, const npumm_values *values, const npumm_recipe *how, const char *src,
                      int64_t row_stride, int64_t col_stride, int64_t first, int64_t rows, void *dst);
int npumm_pack_down(const npumm_tiling *t, const npumm_values *values, const npumm_recipe *how, const char *src,
                    int64_t col_stride, int64_t first, int64_t rows, void *dst);

/* Rows of `padded` elements each, those from row r and column c on, into their tiles. */
void npumm_lay(const npumm_tiling *t, int64_t bits, int64_t r, int64_t rows, int64_t c, int64_t padded,
               const void *from, int64_t from_stride, void *dst, int past_caches);

#endif
