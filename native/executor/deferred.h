/* Results that stay in C: what finishing them needs, and finishing rows of them. */
#ifndef NPUMATMUL_DEFERRED_H
#define NPUMATMUL_DEFERRED_H

#include "tile.h"

/* Whether the result of a placed matmul can be left there. */
int npumm_deferred_is_valid(const npumm_placed_matmul *placed, const npumm_deferred *deferred);

/* Say how the result of a placed matmul is finished, but for what each range of rows adds. */
void npumm_deferred_begin(const npumm_placed_matmul *placed, npumm_deferred *deferred);

/* Remember what finishing the range of rows at work needs, when its last slice was run. */
void npumm_defer_rows(const npumm_work *work);

/* Finish rows of all tiles. With `widen`, elements of 2 bytes are written as float32, rounded as they are. */
int npumm_deferred_finish(const npumm_deferred *deferred, int64_t first, int64_t rows, int32_t widen, char *out,
                          int64_t out_row_stride);

#endif
