/*
 * From the sums of products to elements of C: scales, zero points, rounding, saturation (facts 5.5).
 */
#ifndef SIM_RESULTS_H
#define SIM_RESULTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "context.h"

/* Some rows of one N tile. */
typedef struct {
  size_t rows, width;
  size_t first_n;             /* column of C that the tile begins with */
  void *sums;                 /* [rows, width] of int32 or float; becomes [rows, width] of C's elements */
  const int32_t *row_sums;    /* of A's rows; read when B has zero points and products are integers */
  const int32_t *column_sums; /* of B's columns; read when A has a zero point that counts */
  double common_scale;        /* sim_common_scale; read with a B per channel whose C is int32 */
} sim_sums;

/* Makes elements of C in place. Returns how many did not fit into their type. */
size_t sim_finish_sums(const sim_context *context, const sim_sums *sums);

/*
 * With scales per group: adds the sums of one group, times its scales, to totals, a [rows, width] of floats. The totals
 * take the place of the sums for sim_finish_sums.
 */
void sim_add_group(const sim_context *context, const sim_sums *sums, size_t group, float *totals);

/* Whether A's zero point enters the result. */
bool sim_a_zero_point_counts(const sim_context *context);

#endif
