/*
 * Profiles: what the executor, programs and layers did, when and for how long, while a profile is on. One at a time in a
 * process. While none is on, each place that would tell of something reads one flag.
 */
#ifndef NPUMATMUL_PROFILE_H
#define NPUMATMUL_PROFILE_H

#include <stdint.h>

#include "npumatmul_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  NPUMM_SPAN_CALL = 0,    /* a whole call of npumm_execute: others are within it */
  NPUMM_SPAN_PROGRAM = 1, /* of npumm_program_run */
  NPUMM_SPAN_MEASURE = 2, /* scales of rows of A, and their transform */
  NPUMM_SPAN_PACK_A = 3,
  NPUMM_SPAN_SYNC_A = 4,
  NPUMM_SPAN_SELECT = 5, /* set_dynamic_shape */
  NPUMM_SPAN_BIND = 6,   /* set_io_mem */
  NPUMM_SPAN_RUN = 7,
  NPUMM_SPAN_MULTIPLY = 8, /* what the CPU makes instead of a run */
  NPUMM_SPAN_SYNC_C = 9,
  NPUMM_SPAN_STORE = 10,
  NPUMM_SPAN_FUSE = 11,   /* rows of a deferred result, finished on the way into the next A */
  NPUMM_SPAN_APPEND = 12, /* keys and values on their way into a cache */
  NPUMM_SPAN_ATTEND = 13,
  NPUMM_SPAN_STEP = 32 /* and the npumm_op_kind of a step that is no product */
} npumm_span_kind;

typedef struct {
  int32_t kind;        /* npumm_span_kind */
  int32_t core;        /* as the placed matmul counts them; -1: none in particular */
  int64_t thread;      /* as the system counts them */
  int64_t product;     /* number of the placed matmul, or 0 */
  int64_t start;       /* nanoseconds of CLOCK_MONOTONIC */
  int64_t nanoseconds; /* how long it took */
  int64_t bytes;       /* that were written or read; of a run those of A, B and C */
  int64_t macs;        /* multiply-accumulates of the logical matrices */
} npumm_event;

/* Start. The first `most` events are kept. NPUMM_BAD_ARGUMENT where a profile is on already. */
NPUMM_EXPORT int npumm_profile_start(int64_t most);

/*
 * Stop. Gives how many events there are, in the order in which they ended, in memory that npumm_profile_free takes back, and
 * how many more there were that were not kept. In a forked child there are none.
 */
NPUMM_EXPORT int64_t npumm_profile_stop(npumm_event **events, int64_t *lost);

NPUMM_EXPORT void npumm_profile_free(npumm_event *events);

#ifdef __cplusplus
}
#endif
#endif
