/* What is done to a piece of a row of the result before it is written. */
#ifndef NPUMATMUL_EPILOGUE_H
#define NPUMATMUL_EPILOGUE_H

#include "npumatmul_store.h"

/* Longest piece of a row that is worked on at once. */
enum { NPUMM_BLOCK = 256 };

/* 1 where all fields are sensible. */
int npumm_epilogue_is_valid(const npumm_epilogue *epilogue);

/* All but the scale, to n <= NPUMM_BLOCK values of row `row` from column `col` on. */
void npumm_epilogue_apply(const npumm_epilogue *epilogue, int64_t row, int64_t col, float *values, int64_t n);

/* function(values), in their place. */
void npumm_function_apply(npumm_function function, float *values, int64_t n);

/* float32 -> another float type, to nearest even. */
void npumm_cast(const float *values, int64_t n, npumm_element type, void *dst);

/* Bytes of an element, 0 for a type that is none. */
int64_t npumm_bytes_of(npumm_element type);

#endif
