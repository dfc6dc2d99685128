/*
 * The executor of libnpumm.so: one call runs one logical matmul C = A x B, already placed on the device, tile by tile.
 *
 * It calls the NPU runtime only through the function pointers that it is handed, so nothing in it knows whether they
 * belong to the vendor's library or to the simulator. All tiles of B are on the device already; A is converted and
 * packed straight into the A buffers, and C is stored straight into the caller's matrix.
 */
#ifndef NPUMATMUL_EXECUTOR_H
#define NPUMATMUL_EXECUTOR_H

#include <stdint.h>

#include "npumatmul_kernels.h"
#include "npumatmul_store.h"
#include "rknn_abi.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int (*set_io_mem)(rknn_matmul_ctx, rknn_tensor_mem *, rknn_matmul_tensor_attr *);
  int (*run)(rknn_matmul_ctx);
  int (*mem_sync)(rknn_context, rknn_tensor_mem *, rknn_mem_sync_mode); /* NULL before runtime 1.6.0 */
  int (*set_dynamic_shape)(rknn_matmul_ctx, rknn_matmul_shape *);       /* NULL before runtime 2.0.0b0 */
} npumm_runtime;

/* A context of the runtime. One that was created for several shapes remembers which one it was told to use. */
typedef struct {
  rknn_matmul_ctx handle;
  int32_t dynamic;    /* whether it has several shapes */
  int32_t selected_m; /* rows of the selected one, 0 for none yet */
  int32_t broken;     /* set when a call with it fails: it is not to be used again */
} npumm_context;

/* A context in one of its shapes, with the attributes that its creation returned. */
typedef struct {
  npumm_context *context;
  int32_t padded_m, padded_k, padded_n;
  int32_t a_group, c_group; /* columns per native group; 0 where A and C are in normal layout */
  rknn_matmul_io_attr io_attr;
} npumm_shape;

/* Products of a placed matmul that the CPU makes, of the same native B: runtime and contexts are NULL, A and C are row-major in
 * memory of the host, and nothing is synchronised: B is what the CPU wrote, and the NPU only reads it. */
typedef struct {
  npumm_operands operands;
  int32_t high_first; /* as in npumm_native_b */
  int64_t tile_n, tile_k;
  double requantize; /* with C of int8: what sums are multiplied by, before they are cut off towards zero */
} npumm_on_cpu;

/* A range of one of the three dimensions that is worked on at once. */
typedef struct {
  int64_t start, length; /* in the logical matrices */
} npumm_range;

/* How a row of A gets its scale. */
typedef enum {
  NPUMM_ROWS_UNSCALED = 0,
  NPUMM_ROWS_POWER_OF_TWO = 1, /* float32 -> float16 that neither overflows nor vanishes */
  NPUMM_ROWS_ABSMAX = 2,       /* float32 -> integers, symmetric, one scale per row (token) */
  NPUMM_ROWS_MINMAX = 3,       /* float32 -> integers, one scale and zero point per row */
  NPUMM_ROWS_STATIC = 4,       /* float32 -> integers -levels - 1..levels with a scale and zero point that are given */
  NPUMM_ROWS_POWER_OF_TWO_HIGH = 5, /* float32 -> two float16, as near to the end of float16's range as goes */
  NPUMM_ROWS_ABSMAX_GROUPS = 6,     /* as ABSMAX, one scale per row and group of K */
  NPUMM_ROWS_MINMAX_GROUPS = 7      /* as MINMAX, one scale and zero point per row and group of K */
} npumm_row_scaling;

/* How rows of `a` become rows of A. */
typedef struct {
  npumm_conversion conversion;
  npumm_row_scaling scaling;
  int32_t levels; /* largest magnitude of a quantized value */
  float clip;     /* factor on the largest magnitude of a row: what lies beyond saturates */
  float static_scale;
  int32_t static_zero; /* of NPUMM_ROWS_STATIC, and of int8 that is there (NPUMM_COPY_8, NPUMM_ROWS_UNSCALED) */
  const npumm_hadamard *transform; /* of float32 rows, before all else, over the whole of K; or NULL */
} npumm_activation;

/* One pass A[:, k] x B. Several may share an image of A (same range of K, part and group), or tiles of B. */
typedef struct {
  npumm_range k;
  int32_t part;  /* which image of a value of `a`: 0 the whole; 1 and 2 the high and low part of one split in two */
  int32_t tiles; /* which row of tiles of B */
  const float *column_scale;  /* one per column of the weight; NULL for 1 */
  const int32_t *column_zero; /* zero points of the weight's columns, or NULL */
  const int32_t *column_sums; /* sums over the slice of (value - zero point), or NULL: `a` has no zero points */
  npumm_range group; /* over which rows are measured that are scaled in groups: k is a part of it, or all of it */
} npumm_slice;

typedef struct {
  const npumm_runtime *runtime;
  npumm_activation activation;
  npumm_result_type c_type;
  int32_t row_images;   /* 2: rows of A are split in two halves, all high ones first; else 1 */
  int32_t common_scale; /* whether all slices have the same column_scale: sums are then scaled once, at the end, unless
                           rows are scaled in groups */

  int32_t m_count, slice_count, n_count, core_count;
  int32_t a_count; /* buffers for images of A, 1 to NPUMM_A_MOST */
  const npumm_range *m_ranges, *n_ranges;
  const npumm_slice *slices;
  const int32_t *tile_cores;  /* [n_count] the core of each N tile, below core_count; every core has one */
  const int32_t *range_cores; /* [m_count] instead: the core of each range of rows, which runs all tiles with it;
                                           in rising order. NULL: cores share tiles */
  rknn_tensor_mem *const
      *a_memories; /* [a_count], or [core_count][a_count] where cores share rows; NPUMM_A_MOST in all */
  rknn_tensor_mem *const *c_memories; /* [core_count] */
  rknn_tensor_mem *const *b_memories; /* [rows of tiles][n_count] */
  npumm_shape *const *shapes;         /* [m_count][slice_count][n_count]; cores share no context */
  const npumm_on_cpu
      *on_cpu;    /* or NULL. Cores are threads then; C has room for 4 bytes of each element, and is of int32,
                                 float32 or int8; there is no range_cores, and nothing is bound or left in C */
  int64_t number; /* what events of a profile call it; 0: nothing */
  /* where cores share rows: so many of them that follow each other are one core of the NPU, on which their threads take
     turns, so that one packs and stores while another one's run goes on. 0 is 1 */
  int32_t turns;
} npumm_placed_matmul;

#define NPUMM_A_MOST 16

/*
 * A result that is not stored yet: C of the last slice of K stays as the runs leave it, in memories of its own, with what
 * is needed to finish it. npumm_deferred_store does that later, or npumm_execute on the way into the next A, row by row.
 */
typedef struct {
  int64_t rows, cols;
  npumm_element type;             /* of the finished elements; not NPUMM_INT32 */
  const npumm_epilogue *epilogue; /* or NULL; one that reads nothing but a bias */
  int32_t m_count, n_count;
  const npumm_range *m_ranges, *n_ranges; /* as of the placed matmul */
  const int32_t *padded_m, *padded_n;     /* [m_count], [n_count]: extents of C */
  rknn_tensor_mem *const *memories;       /* [m_count][n_count] */
  double *row_factor;                     /* [rows]; what these four point to is filled by npumm_execute */
  int32_t *row_zero, *row_sum;            /* [rows] */
  void *sums; /* rows x cols of 4 bytes, of the slices before the last; NULL for one slice */
  /* set by npumm_execute */
  npumm_term term;           /* of the last slice; its arrays start at the matrix's first row and column */
  int32_t c_group;           /* as in npumm_shape */
  int32_t scaled_each;       /* whether sums are float32 in any case */
  const double *last_factor; /* row_factor, or NULL where it is no factor of the finished sums */
  const float *last_scale;   /* common to all slices, or NULL */
} npumm_deferred;

/*
 * A result that the NPU writes where the caller wants it, in normal layout: nothing of it passes through the CPU. What the
 * CPU wrote to the allocation has to be synchronised before.
 */
typedef struct {
  rknn_tensor_mem *const *parts; /* [m_count] bound as C for each range of rows */
  rknn_tensor_mem *whole; /* the allocation that they are parts of, through which caches are synchronised after the
                                    last run; NULL: the caller does that */
} npumm_bound;

typedef struct {
  /* A, M x K: one of these three */
  const void *a; /* strides in bytes */
  int64_t a_row_stride, a_col_stride;
  const npumm_deferred *a_deferred; /* of a type that the conversion reads; those of 2 bytes are widened where it reads
                                          float32 */
  rknn_tensor_mem *const *a_bound; /* [m_count] read by the NPU where it stands, in normal layout; synchronised already.
                                          K is one slice, and nothing is converted */
  /* The result, M x N: one of these three */
  void *out; /* adjacent along the columns */
  int64_t out_row_stride;
  npumm_deferred *out_deferred;
  const npumm_bound *out_bound;   /* there is one tile of N and one slice of K, without scales and zero points */
  npumm_element out_type;         /* NPUMM_INT8: C of int8 as the runtime scaled it; scales here are not applied */
  int32_t out_is_read;            /* whether the epilogue reads what `out` holds: sums must not stand there meanwhile */
  const npumm_epilogue *epilogue; /* or NULL */
} npumm_call;

typedef enum {
  NPUMM_STEP_NONE = 0,
  NPUMM_STEP_ARGUMENTS = 1,
  NPUMM_STEP_PACK_A = 2,
  NPUMM_STEP_SYNC_A = 3,
  NPUMM_STEP_BIND_A = 4,
  NPUMM_STEP_BIND_B = 5,
  NPUMM_STEP_BIND_C = 6,
  NPUMM_STEP_RUN = 7,
  NPUMM_STEP_SYNC_C = 8,
  NPUMM_STEP_STORE_C = 9,
  NPUMM_STEP_SELECT = 10
} npumm_step;

/*
 * What happened: where the last call stopped, and how much was done by all that got this report. Set it to zero before the
 * first one.
 */
typedef struct {
  npumm_step step; /* NPUMM_STEP_NONE on success */
  int32_t code;    /* of the runtime's function, or one of NPUMM_* */
  int64_t row;     /* first row of the range at work; for NPUMM_NOT_FINITE the row that holds the value */
  int32_t m_index, slice_index, n_index, core;
  uint64_t run_calls, set_io_mem_calls, mem_sync_calls, set_dynamic_shape_calls;
  uint64_t macs;        /* multiply-accumulates of the logical matrices that went through run */
  uint64_t cpu_macs;    /* and those that the CPU made */
  uint64_t conversions; /* passes over a left operand on its way into A, or over a result on its way out of C */
  int64_t nanoseconds;  /* that the last call took, if it was attended */
} npumm_report;

/* The threads that serve NPU cores beyond the first; they are started when there is work for them. */
typedef struct npumm_crew npumm_executor;

/* NULL where there is no memory. */
NPUMM_EXPORT npumm_executor *npumm_executor_create(void);

/*
 * Waits for the threads to end, unless one waits for the runtime in a call that was given up. In a forked child, which has
 * none of them, it does nothing. NULL is allowed.
 */
NPUMM_EXPORT void npumm_executor_destroy(npumm_executor *executor);

/*
 * The caller's thread serves one core after the other that no thread of the executor has taken: all of them where
 * executor is NULL or threads cannot be had. One call per executor at a time. After a failure on one core the others
 * stop at their next tile.
 *
 * Returns 0, or the code that is in the report: that of the core that failed first. When it returns no core is at work
 * any more. After a failure the contents of out are undefined, and the placed matmul can be run again.
 */
NPUMM_EXPORT int npumm_execute(npumm_executor *executor, const npumm_placed_matmul *placed, const npumm_call *call,
                               npumm_report *report);

/*
 * As npumm_execute, for a caller whom the runtime must not hold up. All cores are left to threads of the executor, and the
 * calling thread asks `attend` about every 100 ms whether to go on: 0 is yes; 1: end with the runs that are going on
 * (NPUMM_INTERRUPTED); 2: end at once. NPUMM_GIVEN_UP says that threads still wait for the runtime: the placed matmul, its
 * contexts and all memory of the NPU that they were given belong to them, and nothing else may be done with this executor,
 * until npumm_executor_lost says 0. What the CPU reads and writes, they touch no more.
 */
NPUMM_EXPORT int npumm_execute_attended(npumm_executor *executor, const npumm_placed_matmul *placed,
                                        const npumm_call *call, npumm_report *report, int (*attend)(void));

/*
 * As npumm_execute, for a call of the main thread that is known to be short: handing it to another thread would take as
 * long. If it does not end all the same, the third SIGINT ends the program, once a call was attended.
 */
NPUMM_EXPORT int npumm_execute_proven(npumm_executor *executor, const npumm_placed_matmul *placed,
                                      const npumm_call *call, npumm_report *report);

/* One run of one context, attended. Returns what `run` does, or one of NPUMM_*. */
NPUMM_EXPORT int npumm_run_attended(npumm_executor *executor, int (*run)(rknn_matmul_ctx), rknn_matmul_ctx context,
                                    npumm_report *report, int (*attend)(void));

/* One run of one context in the main thread itself, to be timed; the third SIGINT in one that does not end ends the program. */
NPUMM_EXPORT int npumm_run_proven(int (*run)(rknn_matmul_ctx), rknn_matmul_ctx context);

/* Runs nothing and returns 0: in the place of `run` it leaves of a call what is not a run, to be timed. */
NPUMM_EXPORT int npumm_run_nothing(rknn_matmul_ctx context);

/* How many threads still wait for the runtime in a call that was given up. */
NPUMM_EXPORT int32_t npumm_executor_lost(npumm_executor *executor);

/*
 * Finish `rows` rows of a deferred result, from row `first` on, into `out`, adjacent along the columns: what npumm_execute
 * would have stored. Several threads may do so at once.
 */
NPUMM_EXPORT int npumm_deferred_store(const npumm_deferred *deferred, int64_t first, int64_t rows, void *out,
                                      int64_t out_row_stride);

#ifdef __cplusplus
}
#endif
#endif
