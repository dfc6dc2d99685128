/*
 * C = A B from native B, on the calling thread.
 *
 * A is taken in chunks of rows, C in tiles of columns; for each, the products are summed up over K (products.h) and
 * made into elements of C (results.h).
 */
#ifndef SIM_MULTIPLY_H
#define SIM_MULTIPLY_H

#include "context.h"
#include "products.h"

/* One run: where the NPU finds A, B and C, and what has to be done with them. */
typedef struct {
  const sim_context *context;
  const sim_shape *shape;
  const sim_products *products;
  const uint8_t *a, *b;
  uint8_t *c;
  size_t laid_rows;           /* by which native A and C are strided: M, or more (NPUMATMUL_SIM_ROWS=ceil4) */
  bool row_sums, column_sums; /* are needed for zero points */
  double common_scale;        /* of a B per channel (type 2) */
  bool zero;                  /* every C becomes zero, whatever the sums are */
} sim_job;

/* False if there is no memory for it. Writes how many sums did not fit into elements of C. */
bool sim_multiply(const sim_job *job, size_t *unfit);

#endif
