/* Rows of a deferred result on their way into the next A, in one pass. */
#ifndef NPUMATMUL_FUSE_H
#define NPUMATMUL_FUSE_H

#include "crew.h"
#include "tile.h"

/* Whether a placed matmul can be given a deferred result instead of `a`. */
int npumm_fuse_is_valid(const npumm_placed_matmul *placed, const npumm_deferred *source);

/* Scratch for npumm_fuse_rows; returns 0 or NPUMM_NO_MEMORY. npumm_fuse_close in any case. */
int npumm_fuse_open(npumm_work *work);
void npumm_fuse_close(npumm_work *work);

/*
 * Finish the rows of the range at work, transform and measure them, and pack the images of A that work->image_of names:
 * block of rows by block of rows, by all cores' threads. Only for the first batch of slices; rows stay for the batches
 * after it. The report tells the first row that holds an inf or nan.
 */
int npumm_fuse_rows(npumm_work *work, npumm_crew *crew, npumm_report *report);

#endif
