/*
 * The inner loops on finished sums: scales, functions and casts, over one row of values at a time. There is one source,
 * finish_loops.h, compiled for the base instruction set (NEON on aarch64), AVX2 and
 * AVX-512: all give the same bits.
 */
#ifndef NPUMATMUL_FINISH_H
#define NPUMATMUL_FINISH_H

#include <stdint.h>

#include "npumatmul_store.h"

/* Longest piece of a row that is worked on at once, and rows whose groups are. */
enum { NPUMM_BLOCK = 256, NPUMM_GROUP_ROWS = 4 };

/*
 * What is done to sums, in this order: products with scales, made in float64 and rounded once; a bias; a
 * function; a factor; a summand; limits, -inf and inf for none. Arrays have an element for each value.
 */
typedef struct {
  double row;
  const double *columns;                /* NULL, for float32 alone: no scales, `row` neither */
  const float *bias, *factor, *summand; /* none; bias; or all of them, as with any function but the identity */
  npumm_function function;
  float low, high;
} npumm_steps;

/* What changes no value: 1, 1 and -0, NPUMM_BLOCK times. */
extern const double npumm_no_scales[NPUMM_BLOCK];
extern const float npumm_no_factors[NPUMM_BLOCK], npumm_no_summands[NPUMM_BLOCK];

typedef struct {
  const char *name;
  /* dst may be src */
  void (*finish_int32)(const int32_t *src, int64_t n, const npumm_steps *steps, float *dst);
  void (*finish_float32)(const float *src, int64_t n, const npumm_steps *steps, float *dst);
  /*
   * The same of rows, at most NPUMM_GROUP_ROWS, whose values stand in groups of 4 columns: group g of row r at
   * src + g * next + 4 * r. All rows have the same columns and bias, or none.
   */
  void (*finish_groups)(const int32_t *src, int64_t next, int64_t groups, int rows, const npumm_steps *steps,
                        float *const *dst);
  /* sums[i] -= factor * other[i], modulo 2^32 */
  void (*subtract)(int32_t *sums, int64_t n, int32_t factor, const int32_t *other);
  void (*add)(float *values, const float *other, int64_t n);
  void (*to_doubles)(const float *src, int64_t n, double *dst);
  void (*from_f16)(const uint16_t *src, int64_t n, float *dst);
  void (*from_bf16)(const uint16_t *src, int64_t n, float *dst);
  void (*to_bf16)(const float *src, int64_t n, uint16_t *dst); /* to nearest even */
} npumm_finish_kernels;

extern const npumm_finish_kernels npumm_finish_base;
#if defined(__x86_64__)
extern const npumm_finish_kernels npumm_finish_avx2;
extern const npumm_finish_kernels npumm_finish_avx512;
#endif

const npumm_finish_kernels *npumm_finish(void);

#endif
