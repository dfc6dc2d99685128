/* Attention by threads that somebody has. */
#ifndef NPUMATMUL_ATTEND_ALL_H
#define NPUMATMUL_ATTEND_ALL_H

#include "../executor/crew.h"
#include "npumatmul_attention.h"

/* npumm_attend_all by the threads of a crew that nobody else uses meanwhile and whose caller does not attend; NULL: by
 * those of the process. */
int npumm_attend_crew(npumm_crew *crew, const npumm_attention *how, const npumm_kv_layer *layer, int64_t offset,
                      int64_t count, const float *q, int64_t q_head_stride, int64_t q_row_stride, float *out,
                      int64_t out_head_stride, int64_t out_row_stride, int32_t threads);

#endif
