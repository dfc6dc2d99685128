/*
 * The executor of libnpumm.so: one call runs one logical matmul C = A x B, already placed on the device, tile by tile.
 *
 * It calls the NPU runtime only through the three function pointers that it is handed, so nothing in it knows whether
 * they belong to the vendor's library or to the simulator. All tiles of B are on the device already; A is converted
 * and packed straight into the shared A buffer, and C is stored straight into the caller's matrix.
 */
#ifndef NPUMATMUL_EXECUTOR_H
#define NPUMATMUL_EXECUTOR_H

#include <stdint.h>

#include "npumatmul_kernels.h"
#include "rknn_abi.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int (*set_io_mem)(rknn_matmul_ctx, rknn_tensor_mem *, rknn_matmul_tensor_attr *);
  int (*run)(rknn_matmul_ctx);
  int (*mem_sync)(rknn_context, rknn_tensor_mem *, rknn_mem_sync_mode); /* NULL before runtime 1.6.0 */
} npumm_runtime;

/* A context made for one shape of tile, with the attributes that its creation returned. */
typedef struct {
  rknn_matmul_ctx handle;
  int32_t padded_m, padded_k, padded_n;
  int32_t a_group, c_group; /* columns per native group; 0 where A and C are in normal layout */
  rknn_matmul_io_attr io_attr;
} npumm_context;

/* A range of one of the three dimensions that is worked on at once. */
typedef struct {
  int64_t start, length; /* in the logical matrices */
} npumm_range;

/* How a row of A gets its scale. */
typedef enum {
  NPUMM_ROWS_UNSCALED = 0,
  NPUMM_ROWS_POWER_OF_TWO = 1, /* float32 -> float16 that neither overflows nor vanishes */
  NPUMM_ROWS_ABSMAX_127 = 2    /* float32 -> int8, symmetric, one scale per row (token) */
} npumm_row_scaling;

typedef struct {
  const npumm_runtime *runtime;

  npumm_conversion a_conversion;
  npumm_row_scaling a_scaling;
  npumm_result_type c_type;
  const float *column_scale; /* N factors of the result, or NULL */

  int32_t m_count, k_count, n_count;
  const npumm_range *m_ranges, *k_ranges, *n_ranges;
  rknn_tensor_mem *a_memory, *c_memory;
  rknn_tensor_mem *const *b_memories;   /* [k_count][n_count] */
  npumm_context *const *contexts;       /* [m_count][k_count][n_count] */
} npumm_placed_matmul;

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
  NPUMM_STEP_STORE_C = 9
} npumm_step;

/* What happened: where it stopped, and how much was done before. */
typedef struct {
  npumm_step step;  /* NPUMM_STEP_NONE on success */
  int32_t code;     /* of the runtime's function, or one of NPUMM_* */
  int64_t row;      /* first row of the range at work; for NPUMM_NOT_FINITE the row that holds the value */
  int32_t k_index, n_index;
  uint64_t run_calls, set_io_mem_calls, mem_sync_calls;
  uint64_t macs;    /* multiply-accumulates of the logical matrices that went through run */
} npumm_report;

/*
 * a: M x K, strides in bytes. out: M x N of int32 or float32, adjacent along the columns, out_row_stride in bytes.
 * Returns 0, or the code that is in the report. After a failure the contents of out are undefined, and the placed
 * matmul can be run again.
 */
NPUMM_EXPORT int npumm_execute(const npumm_placed_matmul *placed, const void *a, int64_t a_row_stride,
                               int64_t a_col_stride, void *out, int64_t out_row_stride, npumm_report *report);

#ifdef __cplusplus
}
#endif
#endif
