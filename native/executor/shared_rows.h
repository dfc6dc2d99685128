/* Cores that share rows: each runs ranges of its own with all tiles, on images of A of its own. */
#ifndef NPUMATMUL_SHARED_ROWS_H
#define NPUMATMUL_SHARED_ROWS_H

#include <stdatomic.h>

#include "npumatmul_executor.h"

/*
 * Whether ranges and cores fit together: each core's ranges follow each other, and there are buffers for all. What comes
 * of a kept result, or is kept, cannot be shared.
 */
int npumm_shared_rows_are_valid(const npumm_placed_matmul *placed, const npumm_call *call);

/* Run a placed matmul whose ranges have cores; returns the code that is in the report. */
int npumm_share_rows(npumm_executor *executor, const npumm_placed_matmul *placed, const npumm_call *call,
                     npumm_report *report);

/*
 * Run a placed matmul whose tiles have cores, range by range (execute.c). Where `stop` is not NULL and becomes other than
 * 0 it ends at the next tile.
 */
int npumm_run_ranges(npumm_executor *executor, const npumm_placed_matmul *placed, const npumm_call *call,
                     npumm_report *report, atomic_int *stop);

#endif
