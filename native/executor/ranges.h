/* A placed matmul whose tiles have cores, range of rows by range of rows. */
#ifndef NPUMATMUL_RANGES_H
#define NPUMATMUL_RANGES_H

#include <pthread.h>
#include <stdatomic.h>

#include "npumatmul_executor.h"

/*
 * Returns the code that is in the report. Where `stop` is not NULL and becomes other than 0 it ends at the next tile; where
 * `turn` is not NULL it is held during each run.
 */
int npumm_run_ranges(npumm_executor *executor, const npumm_placed_matmul *placed, const npumm_call *call,
                     npumm_report *report, atomic_int *stop, pthread_mutex_t *turn);

#endif
