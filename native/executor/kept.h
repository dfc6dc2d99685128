/* Results that stay in C: what is kept of them, and rows of them on their way into the next A. */
#ifndef NPUMATMUL_KEPT_H
#define NPUMATMUL_KEPT_H

#include "crew.h"
#include "tile.h"

/* Whether the result of a placed matmul can be kept there. */
int npumm_keep_is_valid(const npumm_placed_matmul *placed, const npumm_kept *keep);

/* Whether a placed matmul can be given a kept result instead of `a`. */
int npumm_source_is_valid(const npumm_placed_matmul *placed, const npumm_kept *source);

/* Remember what finishing the range of rows needs, when its last slice was run. */
void npumm_keep_rows(const npumm_work *work);

/*
 * Finish the rows of the range at work from the source, transform and measure them, and pack the images of A that
 * work->image_of names: block of rows by block of rows, by all cores' threads. Only for the first batch of slices; rows
 * stay for the batches after it. The report tells the first row that holds an inf or nan.
 */
int npumm_fuse_rows(npumm_work *work, npumm_crew *crew, npumm_report *report);

/* Scratch for npumm_fuse_rows; returns 0 or NPUMM_NO_MEMORY. npumm_fuse_close in any case. */
int npumm_fuse_open(npumm_work *work);
void npumm_fuse_close(npumm_work *work);

#endif
