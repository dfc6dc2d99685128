/* A and C that the NPU reads and writes in the caller's memory. */
#ifndef NPUMATMUL_IN_PLACE_H
#define NPUMATMUL_IN_PLACE_H

#include "npumatmul_executor.h"

/* Whether what a call binds in place is all that the matmul makes of A, and of its runs. */
int npumm_in_place_is_valid(const npumm_placed_matmul *placed, const npumm_call *call);

/* Synchronise a result that was written in place. */
int npumm_in_place_end(const npumm_placed_matmul *placed, const npumm_bound *bound, npumm_report *report);

#endif
