/*
 * Programs: steps of a model that are known beforehand, run one after the other by one call. A step is a product, or what
 * npumatmul_layers.h and npumatmul_attention.h have, or a function of the caller.
 */
#ifndef NPUMATMUL_PROGRAM_H
#define NPUMATMUL_PROGRAM_H

#include <stdint.h>

#include "npumatmul_attention.h"
#include "npumatmul_executor.h"
#include "npumatmul_layers.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  NPUMM_OP_PRODUCT = 0,    /* placed, call */
  NPUMM_OP_RMS_NORM = 1,   /* x, weight or NULL, share, eps */
  NPUMM_OP_LAYER_NORM = 2, /* x, weight, bias or NULL, share, eps */
  NPUMM_OP_ROTATE = 3,     /* x, rotation; from the position of the sequence on */
  NPUMM_OP_GATE = 4,       /* x, function, y or nothing */
  NPUMM_OP_ADD = 5,        /* x, y, weight (one value), or without it scale */
  NPUMM_OP_SCALE = 6,      /* x, weight (one value), or without it scale */
  NPUMM_OP_CALL = 7,       /* function of the caller: 0, or NPUMM_INTERRUPTED */
  NPUMM_OP_APPEND = 8,     /* x, y: keys and values of the layer's new tokens; outer are heads, inner tokens */
  NPUMM_OP_ATTEND = 9,     /* x: queries of the layer's new tokens, attention */
  NPUMM_OP_SKIP = 10       /* x: one value. Where it is a nan, as many steps as shape.inner says are left out */
} npumm_op_kind;

/* One step. What a kind does not name is not looked at. */
typedef struct {
  npumm_op_kind kind;
  npumm_function function;
  npumm_rows_shape shape;
  npumm_rows_from x, y; /* y without data: there is none */
  npumm_rows_to out;
  const float *weight, *bias;
  float share, eps, scale;
  const npumm_rotation *rotation;
  const npumm_placed_matmul *placed;
  const npumm_call *call;
  int64_t sequence; /* of rotations and attention: which of the run's */
  int64_t layer;    /* which of the layers of its cache */
  const npumm_attention *attention;
  int64_t proven; /* how often an attended run was found to be short; see npumm_program_run */
  int (*callback)(void);
} npumm_op;

/* A text that tokens come to. */
typedef struct {
  int64_t position;             /* of its first new token, for rotations */
  int64_t offset;               /* tokens that its cache holds before them */
  const npumm_kv_layer *layers; /* of the cache, or NULL */
  int64_t layer_count;
} npumm_sequence;

/* What differs from run to run. */
typedef struct {
  const npumm_sequence *sequences;
  int64_t sequence_count;
  int64_t first, stop; /* steps to run; after a failure `first` is the one that failed */
  int32_t threads;     /* that share the rows of a step */
  int (*attend)(void); /* as of npumm_execute_attended, for the main thread; or NULL */
} npumm_run;

/*
 * Run steps. In the main thread each product is attended, until NPUMM_PROVEN of its runs took less than NPUMM_SHORT_NS
 * nanoseconds; between steps `attend` is asked every 100 ms.
 *
 * Returns 0, or the code that is in the report, as npumm_execute does; NPUMM_INTERRUPTED where `attend` or a function of
 * the caller wants it to end. What was run before the step that failed stays done. Where a cache has no room the code is
 * NPUMM_NO_ROOM, and the step can be run again when it has.
 */
NPUMM_EXPORT int npumm_program_run(npumm_executor *executor, npumm_op *ops, npumm_run *run, npumm_report *report);

/* One step that is no product and no function, at once. */
NPUMM_EXPORT int npumm_op_run(const npumm_op *op, int64_t position);

#define NPUMM_PROVEN 64
#define NPUMM_SHORT_NS 1000000

#ifdef __cplusplus
}
#endif
#endif
