/* One tile of the result: one run of the NPU per slice of K, each stored at once. */
#ifndef NPUMATMUL_TILE_H
#define NPUMATMUL_TILE_H

#include <pthread.h>
#include <stdatomic.h>

#include "activation.h"
#include "crew.h"

typedef struct npumm_fusing npumm_fusing;

/* What all cores share while they work on a range of rows. */
typedef struct {
  const npumm_placed_matmul *placed;
  const npumm_call *call;
  npumm_rows_of_a rows;
  int32_t m_index;
  int32_t first_slice, end_slice;            /* the slices whose images of A are packed */
  int32_t images;                            /* how many of the buffers hold one */
  int32_t image_of[NPUMM_A_MOST];            /* a slice with the image that the buffer holds */
  int32_t *row_sums;                         /* [a_count][longest] or NULL */
  int64_t longest;                           /* rows of the longest range */
  char *sums;                                /* partial sums, or NULL where they can stand in the result */
  int64_t sums_row_stride, sums_core_stride; /* in bytes; no core stride where sums are as wide as the result */
  int64_t block;                             /* rows of a deferred operand that are finished and packed at once */
  npumm_fusing *fusing;                      /* [fusing_count] */
  int32_t fusing_count;
  npumm_report *reports;  /* [core_count] */
  atomic_int failed_core; /* the first that failed, or -1 */
  atomic_int *stop;       /* other than 0 when another core failed, of those that share rows; or NULL */
  pthread_mutex_t *turn;  /* to run, where threads take turns on a core; or NULL */
  const npumm_crew *crew; /* whose work it is; NULL: that of the calling thread's */
} npumm_work;

/* Whether there is nothing more to do: after a failure, or because the caller wants it to end. */
static inline int npumm_work_is_over(const npumm_work *work) {
  return atomic_load(&work->failed_core) >= 0 || (work->stop && atomic_load(work->stop)) ||
         npumm_crew_is_ended(work->crew);
}

/* Whether two slices read the same image of A. */
int npumm_same_image(const npumm_slice *one, const npumm_slice *other);

/* The buffer of A that holds the image of a slice. */
int32_t npumm_buffer_of(const npumm_work *work, const npumm_slice *slice);

/* Where the last of some ranges ends. */
static inline int64_t npumm_end_of(const npumm_range *ranges, int32_t count) {
  return ranges[count - 1].start + ranges[count - 1].length;
}

static inline int npumm_is_float(npumm_element type) {
  return type == NPUMM_FLOAT32 || type == NPUMM_FLOAT16 || type == NPUMM_BFLOAT16;
}

/* Bytes of an element of a result. */
int64_t npumm_out_bytes(npumm_element type);

/* Counts and the first failure of one core; returns the code. */
int npumm_fail(npumm_report *report, npumm_step step, int code);

/* Say that a call stopped where another one did; what was counted stays. */
void npumm_stopped_as(npumm_report *report, const npumm_report *other);

/* Add what was counted in one report to another. */
void npumm_add_counts(npumm_report *to, const npumm_report *from);

/* Synchronise memory through a context. */
int npumm_sync(const npumm_placed_matmul *p, npumm_report *report, npumm_step step, npumm_context *context,
               rknn_tensor_mem *memory, rknn_mem_sync_mode mode);

/* Run one slice of one N tile on its core and store it, unless C stays where it is. */
int npumm_run_tile(const npumm_work *work, npumm_report *report, int32_t n_index, int32_t slice_index);

#endif
