/* rknn_matmul_run: C = A B (multiply.h) on the calling thread, as one simulated core. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api.h"
#include "clock.h"
#include "context.h"
#include "cores.h"
#include "counters.h"
#include "log.h"
#include "multiply.h"
#include "operands.h"
#include "pace.h"
#include "registry.h"
#include "results.h"
#include "trace.h"

static const char function[] = "rknn_matmul_run";

/* What is reported broken: all calls succeed and C is zero (facts 11.4). */
static bool is_broken(const sim_context *context) {
  rknn_matmul_type type = context->type->type;
  return context->settings.broken && ((type == RKNN_INT8_MM_INT8_TO_INT32 && context->b_granularity == PER_CHANNEL) ||
                                      (type == RKNN_INT8_MM_INT8_TO_FLOAT32 && context->b_granularity == PER_GROUP));
}

/* ---- native rows strided by a multiple of four ------------------------------------------------------------------- */

/*
 * The recorded trap: with native A and C and M > 1 not a multiple of 4, the work that runtime 1.6.0 hands to the
 * hardware strides A and C by M rounded up, beyond what the attributes say. Then the run works on copies of that size.
 */
static size_t rows_laid_out(const sim_context *context) {
  size_t M = context->now->M;
  return context->settings.ceil4 && context->native_ac && M > 1 ? (M + 3) / 4 * 4 : M;
}

/* Bytes that a tensor of that size takes when it is strided by laid_rows. */
static size_t laid_bytes(const sim_job *now, uint32_t size) { return size / now->shape->M * now->laid_rows; }

/* ---- the call ---------------------------------------------------------------------------------------------------- */

/*
 * A tensor whose memory was destroyed after set_io_mem counts as unset: its pages are still held, so nothing could
 * crash, but a board's addresses would be gone and the driver would refuse the job.
 */
static bool usable(const sim_binding *binding) { return binding->memory && !atomic_load(&binding->memory->destroyed); }

static bool all_set(const sim_context *context) {
  bool b_usable = context->b_layout == RKNN_MM_LAYOUT_NATIVE ? usable(&context->b) : context->packed_b_filled;
  return context->now && usable(&context->a) && b_usable && usable(&context->c);
}

/* A, B and C of one run. B is empty where it was packed into a hidden copy. */
typedef struct {
  sim_operand a, b, c;
} operands;

static void close_operands(operands *found) {
  sim_operand_close(&found->a);
  sim_operand_close(&found->b);
  sim_operand_close(&found->c);
}

/* RKNN_SUCC, or a code with its log line; what was opened is to be closed in either case. */
static int open_operands(const sim_context *context, sim_job *now, operands *found) {
  const rknn_matmul_io_attr *io = &now->shape->attr;
  bool stretched = now->laid_rows != now->shape->M;
  int result = sim_operand_open(&context->a, laid_bytes(now, io->A.size), stretched, function, &found->a);
  if (result == RKNN_SUCC) {
    result = sim_operand_open(&context->c, laid_bytes(now, io->C.size), stretched, function, &found->c);
  }
  if (result == RKNN_SUCC && context->b_layout == RKNN_MM_LAYOUT_NATIVE) {
    result = sim_operand_open(&context->b, io->B.size, false, function, &found->b);
  }
  now->a = found->a.data;
  now->b = found->b.data ? found->b.data : context->packed_b ? context->packed_b->base : NULL;
  now->c = found->c.data;
  return result;
}

static int64_t microseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void count_run(const sim_context *context, int core) {
  const sim_shape *shape = context->now;
  uint64_t macs = (uint64_t)shape->M * shape->K * shape->N;
  sim_count_macs(context->chip->index, (int)context->type->type, core, macs);
  sim_count(COUNT_A_READ, shape->attr.A.size);
  sim_count(COUNT_B_READ, shape->attr.B.size);
  sim_count(COUNT_C_WRITTEN, shape->attr.C.size);
}

static int judge_overflow(const sim_context *context, size_t unfit) {
  if (!unfit) return RKNN_SUCC;
  sim_count(COUNT_SATURATIONS, unfit);
  rknn_tensor_type c = context->type->c;
  sim_overflow overflow = c == RKNN_TENSOR_INT16 ? context->settings.overflow : OVERFLOW_SATURATE;
  if (overflow == OVERFLOW_ERROR) {
    sim_log_error("%s, simulator: %zu int16 results overflowed", function, unfit);
    return RKNN_ERR_FAIL;
  }
  sim_log_warning("%s, simulator: %zu int%u results were %s", function, unfit, sim_dtype_bits(c),
                  overflow == OVERFLOW_WRAP ? "wrapped" : "saturated");
  return RKNN_SUCC;
}

/* What the NPU does, with everything at hand. */
static int compute(sim_context *context, sim_job *now, operands *found) {
  int64_t start = microseconds();
  int core = sim_core_take(context->chip, context->core_mask);
  sim_trace_note("\"soc\":\"%s\",\"type\":%d,\"M\":%zu,\"K\":%zu,\"N\":%zu,\"core\":%d", context->chip->soc,
                 (int)context->type->type, now->shape->M, now->shape->K, now->shape->N, core);
  sim_pace pace;
  sim_pace_begin(&pace, context, core);
  size_t unfit = 0;
  int result = RKNN_ERR_MALLOC_FAIL;
  if (context->settings.idle || sim_multiply(now, &unfit)) {
    result = sim_operand_store(&context->c, &found->c, function);
  } else {
    sim_log_error("%s, simulator: no memory for the run", function);
  }
  sim_pace_end(&pace);
  sim_core_give(context->chip, core);
  if (result != RKNN_SUCC) return result;
  size_t c_bytes = laid_bytes(now, now->shape->attr.C.size);
  sim_memory_from_device(context->c.memory, context->c.start, sim_bytes_inside(&context->c, c_bytes));
  const bool modelled = context->settings.timing != TIMING_OFF;
  context->last_run_us = modelled ? sim_modelled_microseconds(context) : microseconds() - start;
  sim_clock_run(context, core);
  count_run(context, core);
  return judge_overflow(context, unfit);
}

static int run(sim_context *context) {
  if (!all_set(context)) {
    sim_log_error(
        "failed to submit!, op id: 0, op name: MatMul, flags: 0x5, task start: 0, task number: 1, run task "
        "counter: 0, int status: 0, please try updating to the latest version of the toolkit2 and runtime");
    return RKNN_ERR_FAIL;
  }
  bool per_channel = context->b_granularity == PER_CHANNEL;
  sim_job now = {
      .context = context,
      .shape = context->now,
      .products = context->settings.products,
      .laid_rows = rows_laid_out(context),
      .row_sums = context->type->product == PRODUCT_I8 && context->quant.b.zero_points,
      .column_sums = sim_a_zero_point_counts(context),
      .common_scale = per_channel ? (double)sim_common_scale(&context->quant, context->now->N) : 1,
      .zero = is_broken(context),
  };
  /* Recorded: run brings A to the device and C from it (facts 14). */
  size_t a_bytes = laid_bytes(&now, now.shape->attr.A.size);
  sim_memory_to_device(context->a.memory, context->a.start, sim_bytes_inside(&context->a, a_bytes));
  operands found = {0};
  int result = open_operands(context, &now, &found);
  if (result == RKNN_SUCC) result = compute(context, &now, &found);
  close_operands(&found);
  return result;
}

int sim_matmul_run(rknn_matmul_ctx ctx) {
  sim_context *context;
  int result = sim_registry_enter(ctx, function, &context);
  if (result != RKNN_SUCC) return result;
  result = run(context);
  sim_registry_leave(ctx);
  return result;
}
