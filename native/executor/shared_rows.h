/* Cores that share rows: each runs ranges of its own with all tiles, on images of A of its own. */
#ifndef NPUMATMUL_SHARED_ROWS_H
#define NPUMATMUL_SHARED_ROWS_H

#include "npumatmul_executor.h"

/* Whether ranges and cores fit together: each core's ranges follow each other, and there are buffers for all. */
int npumm_shared_rows_are_valid(const npumm_placed_matmul *placed);

/* Run a placed matmul whose ranges have cores; returns the code that is in the report. */
int npumm_share_rows(npumm_executor *executor, const npumm_placed_matmul *placed, const npumm_call *call,
                     npumm_report *report);

#endif
