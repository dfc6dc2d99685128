/*
 * rknn_matmul_run: C = A B from native B, on the calling thread, as one simulated core.
 *
 * A is taken in chunks of rows, C in tiles of columns; for each, the products are summed up over K (products.h) and
 * made into elements of C (results.h).
 */
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
#include "operands.h"
#include "pace.h"
#include "products.h"
#include "registry.h"
#include "results.h"
#include "scratch.h"
#include "trace.h"

/*
 * Rows of A are taken in chunks, so that their unpacked copy is bounded: at most ROWS_MAX rows, fewer when K is so
 * large that they would exceed CHUNK_BYTES, but not fewer than ROWS_MIN (B is read once per chunk).
 */
#define ROWS_MAX 256
#define ROWS_MIN 8
#define CHUNK_BYTES (32u << 20)

/* With four rows or more, that many k's of an N tile are worked on at a time: B's part then stays in the L1 cache. */
#define BLOCK_K 640

/* Keeps rows whose length is a power of two from competing for the same cache lines. */
#define ROW_PADDING_BYTES 64

static const char function[] = "rknn_matmul_run";

static size_t align64(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* One run: where the NPU finds A, B and C, and what has to be done with them. */
typedef struct {
  const sim_context *context;
  const sim_shape *shape;
  const sim_products *products;
  const uint8_t *a, *b;
  uint8_t *c;
  size_t laid_rows;           /* by which native A and C are strided: M, or more (NPUMATMUL_SIM_ROWS=ceil4) */
  bool row_sums, column_sums; /* are needed for zero points */
  double common_scale;        /* of a B per channel (type 2) */
} job;

/* Scratch memory of one run. */
typedef struct {
  uint8_t *a_raw;     /* one row of A, gathered but not converted */
  uint8_t *a_rows;    /* the chunk, row-major: float for F16, int8 for I8 and I4; then a row of ones for column sums */
  size_t a_row_bytes; /* with padding */
  uint8_t *b_ints;    /* a block of an int4 B as int8 */
  uint8_t *b_halves;  /* a block of an integer B as halves */
  uint8_t *c_rows;    /* the chunk of one N tile, row-major: float for F16, int32 else; then the column sums */
  float *totals;      /* that chunk over all groups so far */
  int32_t *row_sums;
  size_t rows; /* of a chunk */
} workspace;

static size_t a_value_bytes(const sim_type *type) {
  return type->product == PRODUCT_F16 ? sizeof(float) : sizeof(int8_t);
}

/* B comes to the inner loops as halves or int8; what is narrower in memory is widened block by block. */
static bool widens_to_ints(const sim_type *type) { return type->b == RKNN_TENSOR_INT4; }
static bool widens_to_halves(const sim_type *type) {
  return type->product == PRODUCT_F16 && type->b != RKNN_TENSOR_FLOAT16;
}

/* All of it is one block, workspace.a_raw its start. */
static bool take_workspace(const job *now, workspace *work) {
  const sim_type *type = now->context->type;
  size_t M = now->shape->M, K = now->shape->K, tile_n = type->b_tile_n;
  work->a_row_bytes = align64(K * a_value_bytes(type)) + ROW_PADDING_BYTES;
  work->rows = CHUNK_BYTES / work->a_row_bytes;
  if (work->rows < ROWS_MIN) work->rows = ROWS_MIN;
  if (work->rows > ROWS_MAX) work->rows = ROWS_MAX;
  if (work->rows > M) work->rows = M;
  size_t block = (BLOCK_K + type->b_tile_k) * tile_n; /* elements; blocks are of equal tiles, so one may be larger */
  size_t raw = align64(K * sim_dtype_bits(type->a) / 8);
  size_t a_rows = (work->rows + now->column_sums) * work->a_row_bytes;
  size_t b_ints = widens_to_ints(type) ? align64(block) : 0;
  size_t b_halves = widens_to_halves(type) ? align64(2 * block) : 0;
  size_t c_rows = align64((work->rows + 1) * tile_n * sizeof(int32_t));
  size_t totals = now->context->group_size ? align64(work->rows * tile_n * sizeof(float)) : 0;
  size_t row_sums = now->row_sums ? work->rows * sizeof(int32_t) : 0;
  uint8_t *start = sim_scratch_take(raw + a_rows + b_ints + b_halves + c_rows + totals + row_sums);
  if (!start) return false;
  work->a_raw = start;
  work->a_rows = work->a_raw + raw;
  work->b_ints = work->a_rows + a_rows;
  work->b_halves = work->b_ints + b_ints;
  work->c_rows = work->b_halves + b_halves;
  work->totals = (float *)(void *)(work->c_rows + c_rows);
  work->row_sums = (int32_t *)(void *)(work->c_rows + c_rows + totals);
  if (now->column_sums) memset(work->a_rows + work->rows * work->a_row_bytes, 1, K); /* integers only have them */
  return true;
}

/* int4 pairs to int8, in the nibble order of the simulated runtime. */
static void unpack_int4(const job *now, const uint8_t *pairs, int8_t *out, size_t bytes) {
  now->products->unpack_low_first(pairs, out, bytes);
  if (now->context->settings.runtime->int4_low_first) return;
  for (size_t i = 0; i < bytes; i++) {
    int8_t first = out[2 * i];
    out[2 * i] = out[2 * i + 1];
    out[2 * i + 1] = first;
  }
}

static void gather_rows(const job *now, workspace *work, size_t first, size_t rows) {
  const sim_type *type = now->context->type;
  size_t K = now->shape->K, group = now->context->native_ac ? type->a_group : 0;
  uint32_t bits = sim_dtype_bits(type->a);
  for (size_t r = 0; r < rows; r++) {
    void *row = work->a_rows + r * work->a_row_bytes;
    uint8_t *raw = type->product == PRODUCT_I8 ? row : work->a_raw;
    sim_gather_a_row(now->a, now->laid_rows, K, bits, group, first + r, raw);
    if (type->product == PRODUCT_F16) now->products->halves_to_floats(raw, row, K);
    if (type->product == PRODUCT_I4) unpack_int4(now, raw, row, K / 2);
    if (!now->row_sums) continue;
    const int8_t *values = row;
    work->row_sums[r] = 0;
    for (size_t k = 0; k < K; k++) work->row_sums[r] += values[k];
  }
}

/* B less its zero points as halves, exactly. */
static void ints_to_halves(const job *now, const int8_t *ints, size_t tiles, size_t n_tile, uint8_t *out) {
  const sim_context *context = now->context;
  const sim_type *type = context->type;
  const int32_t *zero_points = context->quant.b.zero_points;
  size_t tile_elements = (size_t)type->b_tile_n * type->b_tile_k;
  if (!zero_points) {
    now->products->ints_to_halves(ints, 0, out, tiles * tile_elements);
    return;
  }
  for (size_t column = 0; column < tiles * type->b_tile_n; column++) {
    size_t n = n_tile * type->b_tile_n + column % type->b_tile_n;
    int32_t zero_point = zero_points[context->b_granularity == PER_CHANNEL ? n : 0];
    now->products->ints_to_halves(ints + column * type->b_tile_k, zero_point, out + 2 * column * type->b_tile_k,
                                  type->b_tile_k);
  }
}

/* A block of B as the inner loop wants it. */
static const uint8_t *widen(const job *now, const workspace *work, const uint8_t *b, size_t tiles, size_t n_tile) {
  const sim_type *type = now->context->type;
  if (widens_to_ints(type)) {
    unpack_int4(now, b, (int8_t *)work->b_ints, tiles * type->b_tile_n * type->b_tile_k / 2);
    b = work->b_ints;
  }
  if (widens_to_halves(type)) {
    ints_to_halves(now, (const int8_t *)b, tiles, n_tile, work->b_halves);
    b = work->b_halves;
  }
  return b;
}

/* Adds the products of the chunk with depth k's of one N tile, from k on, all in one segment, to work->c_rows. */
static void multiply_range(const job *now, workspace *work, size_t rows, size_t n_tile, sim_b_segment segment, size_t k,
                           size_t depth) {
  const sim_type *type = now->context->type;
  size_t bits = sim_dtype_bits(type->b);
  size_t tile_bytes = (size_t)type->b_tile_n * type->b_tile_k * bits / 8;
  size_t first_tile = n_tile * (segment.k_depth / type->b_tile_k) + (k - segment.k_start) / type->b_tile_k;
  const uint8_t *first = now->b + segment.first_element * bits / 8 + first_tile * tile_bytes;
  size_t range_tiles = depth / type->b_tile_k;
  bool whole = rows < 4 && !widens_to_ints(type) && !widens_to_halves(type);
  size_t blocks = whole ? 1 : (depth + BLOCK_K - 1) / BLOCK_K;
  size_t block_tiles = (range_tiles + blocks - 1) / blocks;
  size_t a_stride = work->a_row_bytes / a_value_bytes(type), c_stride = type->b_tile_n;
  for (size_t t = 0; t < range_tiles; t += block_tiles) {
    size_t left = range_tiles - t;
    sim_tiles tiles = {
        .k_tiles = left < block_tiles ? left : block_tiles,
        .tile_n = type->b_tile_n,
        .tile_k = type->b_tile_k,
    };
    tiles.b = widen(now, work, first + t * tile_bytes, tiles.k_tiles, n_tile);
    size_t a_offset = (k + t * type->b_tile_k) * a_value_bytes(type);
    const void *a = work->a_rows + a_offset;
    if (type->product == PRODUCT_F16) {
      now->products->f16(a, a_stride, rows, tiles, (float *)(void *)work->c_rows, c_stride);
      continue;
    }
    int32_t *c = (int32_t *)(void *)work->c_rows;
    now->products->i8(a, a_stride, rows, tiles, c, c_stride);
    if (!now->column_sums) continue;
    const void *ones = work->a_rows + work->rows * work->a_row_bytes + a_offset;
    now->products->i8(ones, a_stride, 1, tiles, c + work->rows * c_stride, c_stride);
  }
}

/* Sums of the chunk and one N tile over all of K, as elements of C in work->c_rows. Returns how many did not fit. */
static size_t multiply_tile(const job *now, workspace *work, size_t rows, size_t n_tile) {
  const sim_context *context = now->context;
  const sim_b_shape *b_shape = &now->shape->b_shape;
  size_t width = context->type->b_tile_n, group_size = context->group_size;
  size_t c_bytes = (work->rows + 1) * width * sizeof(int32_t), total_bytes = rows * width * sizeof(float);
  sim_sums sums = {
      .rows = rows,
      .width = width,
      .first_n = n_tile * width,
      .sums = work->c_rows,
      .row_sums = work->row_sums,
      .column_sums = (int32_t *)(void *)work->c_rows + work->rows * width,
      .common_scale = now->common_scale,
  };
  if (group_size) memset(work->totals, 0, total_bytes);
  memset(work->c_rows, 0, c_bytes); /* also the bits of 0.0f */
  for (size_t s = 0; s < sim_b_segment_count(b_shape); s++) {
    sim_b_segment segment = sim_b_segment_at(b_shape, s);
    size_t end = segment.k_start + segment.k_depth, depth;
    for (size_t k = segment.k_start; k < end; k += depth) {
      size_t group_end = group_size ? (k / group_size + 1) * group_size : end;
      depth = (group_end < end ? group_end : end) - k;
      multiply_range(now, work, rows, n_tile, segment, k, depth);
      if (!group_size) continue;
      sim_add_group(context, &sums, k / group_size, work->totals);
      memset(work->c_rows, 0, c_bytes);
    }
  }
  if (group_size) memcpy(work->c_rows, work->totals, total_bytes);
  return sim_finish_sums(context, &sums);
}

/* What is reported broken: all calls succeed and C is zero (facts 11.4). */
static bool is_broken(const sim_context *context) {
  rknn_matmul_type type = context->type->type;
  return context->settings.broken && ((type == RKNN_INT8_MM_INT8_TO_INT32 && context->b_granularity == PER_CHANNEL) ||
                                      (type == RKNN_INT8_MM_INT8_TO_FLOAT32 && context->b_granularity == PER_GROUP));
}

static void scatter_rows(const job *now, workspace *work, size_t first, size_t rows, size_t n_tile) {
  const sim_type *type = now->context->type;
  size_t group = now->context->native_ac ? type->c_group : 0, width = type->b_tile_n;
  size_t element_bytes = sim_dtype_bits(type->c) / 8;
  for (size_t r = 0; r < rows; r++) {
    sim_scatter_c_row(now->c, now->laid_rows, now->shape->N, element_bytes, group, first + r, n_tile * width, width,
                      work->c_rows + r * width * element_bytes);
  }
}

static size_t multiply(const job *now, workspace *work) {
  const sim_shape *shape = now->shape;
  bool broken = is_broken(now->context);
  size_t width = now->context->type->b_tile_n, unfit = 0;
  for (size_t first = 0; first < shape->M; first += work->rows) {
    size_t rows = shape->M - first < work->rows ? shape->M - first : work->rows;
    gather_rows(now, work, first, rows);
    for (size_t n_tile = 0; n_tile < shape->N / width; n_tile++) {
      unfit += multiply_tile(now, work, rows, n_tile);
      if (broken) memset(work->c_rows, 0, rows * width * sizeof(int32_t));
      scatter_rows(now, work, first, rows, n_tile);
    }
  }
  return unfit;
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
static size_t laid_bytes(const job *now, uint32_t size) { return size / now->shape->M * now->laid_rows; }

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
static int open_operands(const sim_context *context, job *now, operands *found) {
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
static int compute(sim_context *context, job *now, operands *found) {
  workspace work;
  int64_t start = microseconds();
  if (!take_workspace(now, &work)) {
    sim_log_error("%s, simulator: no memory for the run", function);
    return RKNN_ERR_MALLOC_FAIL;
  }
  int core = sim_core_take(context->chip, context->core_mask);
  sim_trace_note("\"soc\":\"%s\",\"type\":%d,\"M\":%zu,\"K\":%zu,\"N\":%zu,\"core\":%d", context->chip->soc,
                 (int)context->type->type, now->shape->M, now->shape->K, now->shape->N, core);
  sim_pace pace;
  sim_pace_begin(&pace, context, core);
  size_t unfit = context->settings.idle ? 0 : multiply(now, &work);
  sim_scratch_give(work.a_raw);
  int result = sim_operand_store(&context->c, &found->c, function);
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
  job now = {
      .context = context,
      .shape = context->now,
      .products = sim_best_products(),
      .laid_rows = rows_laid_out(context),
      .row_sums = context->type->product == PRODUCT_I8 && context->quant.b.zero_points,
      .column_sums = sim_a_zero_point_counts(context),
      .common_scale = per_channel ? (double)sim_common_scale(&context->quant, context->now->N) : 1,
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
