/* What is done to a piece of a row of the result before it is written. */
#ifndef NPUMATMUL_EPILOGUE_H
#define NPUMATMUL_EPILOGUE_H

#include "finish.h"
#include "npumatmul_store.h"

/* 1 where all fields are sensible. */
int npumm_epilogue_is_valid(const npumm_epilogue *epilogue);

/* Where matrices of 16-bit floats are widened to. */
typedef struct {
  float factor[NPUMM_BLOCK], summand[NPUMM_BLOCK];
} npumm_widened;

/* All but the scales, for n <= NPUMM_BLOCK values of row `row` from column `col` on; `steps` without any of it before. */
void npumm_epilogue_steps(const npumm_epilogue *epilogue, int64_t row, int64_t col, int64_t n, npumm_widened *room,
                          npumm_steps *steps);

/* dst[i] = function(values[i]) * factor[i]; without `factor` function(values[i]). dst may be `values`. */
void npumm_function_apply(npumm_function function, const float *values, const float *factor, int64_t n, float *dst);

/* float32 -> another float type, to nearest even. */
void npumm_cast(const float *values, int64_t n, npumm_element type, void *dst);

/* Bytes of an element, 0 for a type that is none. */
int64_t npumm_bytes_of(npumm_element type);

#endif
