/* Steps one after the other. See npumatmul_program.h. */
#define _GNU_SOURCE
#include "npumatmul_program.h"

#include <math.h>
#include <stddef.h>
#include <time.h>

#include "../executor/crew.h"
#include "../executor/profile.h"
#include "../layers/attend_all.h"

enum { ASK_NS = 100000000, THREADS_MOST = 8 };

/* Values that a step has to have before threads share it: handing it over costs tens of microseconds. */
static const int64_t SHARED_VALUES = 65536;
/* And multiplications of queries with keys: some 20 us of them. */
static const int64_t SHARED_PRODUCTS = 1 << 17;

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int fail(npumm_report *report, npumm_step step, int32_t code) {
  report->step = step;
  report->code = code;
  return code;
}

/* Rows of one step. */
static int run_rows(const npumm_op *op, const npumm_rows_part *part, int64_t position) {
  const npumm_rows_from *y = op->y.data ? &op->y : NULL;
  switch (op->kind) {
    case NPUMM_OP_RMS_NORM:
      return npumm_rms_norm(&op->shape, part, &op->x, op->weight, op->share, op->eps, &op->out);
    case NPUMM_OP_LAYER_NORM:
      return npumm_layer_norm(&op->shape, part, &op->x, op->weight, op->bias, op->share, op->eps, &op->out);
    case NPUMM_OP_ROTATE:
      return npumm_rotate(&op->shape, part, &op->x, op->rotation, position, &op->out);
    case NPUMM_OP_GATE:
      return npumm_gate(&op->shape, part, &op->x, op->function, y, &op->out);
    case NPUMM_OP_ADD:
      return npumm_add_rows(&op->shape, part, &op->x, y, op->weight ? *op->weight : op->scale, &op->out);
    case NPUMM_OP_SCALE:
      return npumm_scale_rows(&op->shape, part, &op->x, op->weight ? *op->weight : op->scale, &op->out);
    default:
      return NPUMM_BAD_ARGUMENT;
  }
}

/* What a step of rows reads and writes. */
static int64_t bytes_of(const npumm_op *op) {
  return op->shape.outer * op->shape.inner * op->shape.width * (op->y.data ? 3 : 2) * (int64_t)sizeof(float);
}

int npumm_op_run(const npumm_op *op, int64_t position) {
  if (!op) return NPUMM_BAD_ARGUMENT;
  const npumm_rows_part all = {0, op->shape.outer * op->shape.inner};
  const int64_t begun = npumm_profile_begin();
  const int code = run_rows(op, &all, position);
  if (!code) npumm_profile_end(begun, NPUMM_SPAN_STEP + (int32_t)op->kind, 0, -1, bytes_of(op), 0);
  return code;
}

typedef struct {
  const npumm_op *op;
  int64_t position;
  int32_t threads;
  int codes[THREADS_MOST];
} shared;

static void run_share(void *argument, int32_t thread) {
  shared *own = argument;
  const int64_t rows = own->op->shape.outer * own->op->shape.inner;
  const npumm_rows_part part = {rows * thread / own->threads, rows * (thread + 1) / own->threads};
  own->codes[thread] = run_rows(own->op, &part, own->position);
}

static const npumm_sequence *sequence_of(const npumm_op *op, const npumm_run *run) {
  return run->sequences && op->sequence >= 0 && op->sequence < run->sequence_count ? &run->sequences[op->sequence]
                                                                                   : NULL;
}

/* -1, which rotations refuse, where there is no such sequence. */
static int64_t position_of(const npumm_op *op, const npumm_run *run) {
  const npumm_sequence *sequence = sequence_of(op, run);
  return sequence ? sequence->position : -1;
}

static int run_shared(npumm_executor *executor, const npumm_op *op, const npumm_run *run) {
  shared own = {
      .op = op, .position = position_of(op, run), .threads = run->threads < THREADS_MOST ? run->threads : THREADS_MOST};
  const int64_t begun = npumm_profile_begin();
  if (npumm_crew_run(executor, own.threads, run_share, &own)) return NPUMM_GIVEN_UP; /* only who attends gives up */
  npumm_profile_end(begun, NPUMM_SPAN_STEP + (int32_t)op->kind, 0, -1, bytes_of(op), 0);
  for (int32_t i = 0; i < own.threads; i++) {
    if (own.codes[i]) return own.codes[i];
  }
  return 0;
}

static int run_product(npumm_executor *executor, npumm_op *op, const npumm_run *run, npumm_report *report) {
  if (!run->attend) return npumm_execute(executor, op->placed, op->call, report);
  if (op->proven >= NPUMM_PROVEN) return npumm_execute_proven(executor, op->placed, op->call, report);
  const int code = npumm_execute_attended(executor, op->placed, op->call, report, run->attend);
  if (!code && report->nanoseconds > 0 && report->nanoseconds < NPUMM_SHORT_NS) op->proven++;
  return code;
}

/* The layer of the sequence's cache, or NULL. */
static const npumm_kv_layer *layer_of(const npumm_op *op, const npumm_run *run) {
  const npumm_sequence *sequence = sequence_of(op, run);
  const int there = sequence && sequence->layers && op->layer >= 0 && op->layer < sequence->layer_count;
  return there ? &sequence->layers[op->layer] : NULL;
}

static int append(const npumm_op *op, const npumm_run *run) {
  const npumm_kv_layer *layer = layer_of(op, run);
  if (!layer || op->shape.outer != layer->heads) return NPUMM_BAD_ARGUMENT;
  return npumm_kv_append(layer, sequence_of(op, run)->offset, op->shape.inner, op->x.data, op->x.outer_stride,
                         op->x.inner_stride, op->y.data, op->y.outer_stride, op->y.inner_stride);
}

static int attend(npumm_executor *executor, const npumm_op *op, const npumm_run *run) {
  const npumm_kv_layer *layer = layer_of(op, run);
  if (!layer || !op->attention || op->shape.outer != op->attention->heads) return NPUMM_BAD_ARGUMENT;
  const int64_t offset = sequence_of(op, run)->offset;
  const int64_t pairs = op->shape.outer * op->shape.inner * (offset + op->shape.inner);
  const int32_t threads = pairs * op->shape.width >= SHARED_PRODUCTS ? run->threads : 1;
  return npumm_attend_crew(executor, op->attention, layer, offset, op->shape.inner, op->x.data, op->x.outer_stride,
                           op->x.inner_stride, op->out.data, op->out.outer_stride, op->out.inner_stride, threads);
}

static int run_op(npumm_executor *executor, npumm_op *op, const npumm_run *run, npumm_report *report) {
  if (op->kind == NPUMM_OP_PRODUCT) return run_product(executor, op, run, report);
  int code;
  if (op->kind == NPUMM_OP_CALL) {
    const int64_t begun = npumm_profile_begin();
    code = op->callback ? op->callback() : NPUMM_BAD_ARGUMENT;
    npumm_profile_end(begun, NPUMM_SPAN_STEP + NPUMM_OP_CALL, 0, -1, 0, 0);
  } else if (op->kind == NPUMM_OP_APPEND) {
    code = append(op, run);
  } else if (op->kind == NPUMM_OP_ATTEND) {
    code = attend(executor, op, run);
  } else if (run->threads > 1 && op->shape.outer * op->shape.inner * op->shape.width >= SHARED_VALUES) {
    code = run_shared(executor, op, run);
  } else {
    code = npumm_op_run(op, position_of(op, run));
  }
  return code ? fail(report, NPUMM_STEP_ARGUMENTS, code) : 0;
}

/* How many of the following steps, of which there are at most so many, are left out; negative where it is not valid. */
static int64_t left_out(const npumm_op *op, int64_t most) {
  const float *value = op->x.data;
  if (!value || (uintptr_t)value % sizeof *value || op->shape.inner < 0 || op->shape.inner > most) return -1;
  return isnan(*value) ? op->shape.inner : 0;
}

int npumm_program_run(npumm_executor *executor, npumm_op *ops, npumm_run *run, npumm_report *report) {
  if (!report) return NPUMM_BAD_ARGUMENT;
  if (!ops || !run || run->first < 0 || run->threads < 1) return fail(report, NPUMM_STEP_ARGUMENTS, NPUMM_BAD_ARGUMENT);
  const int64_t began = now(), profiled = npumm_profile_begin();
  int64_t asked = began;
  int code = 0;
  for (; run->first < run->stop; run->first++) {
    if (run->attend) {
      const int64_t time = now();
      if (time - asked >= ASK_NS) {
        asked = time;
        if (run->attend()) {
          code = fail(report, NPUMM_STEP_NONE, NPUMM_INTERRUPTED);
          break;
        }
      }
    }
    npumm_op *op = &ops[run->first];
    if (op->kind == NPUMM_OP_SKIP) {
      const int64_t steps = left_out(op, run->stop - run->first - 1);
      if (steps < 0) code = fail(report, NPUMM_STEP_ARGUMENTS, NPUMM_BAD_ARGUMENT);
      run->first += steps > 0 ? steps : 0;
    } else {
      code = run_op(executor, op, run, report);
    }
    if (code) break;
  }
  npumm_profile_end(profiled, NPUMM_SPAN_PROGRAM, 0, -1, 0, 0);
  report->nanoseconds = now() - began;
  return code;
}
