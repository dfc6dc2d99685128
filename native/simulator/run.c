/*
 * rknn_matmul_run: C = A B from native B, on the calling thread, as one simulated core.
 */
#define _GNU_SOURCE
#include <string.h>
#include <time.h>

#include "context.h"
#include "counters.h"
#include "export.h"
#include "log.h"
#include "products.h"
#include "registry.h"
#include "scratch.h"

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

static size_t align64(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Where the parts of one run's scratch memory begin. */
typedef struct {
  uint8_t *a_raw;     /* one row of A, gathered but not converted */
  uint8_t *a_rows;    /* the chunk, row-major: float for F16, int8 for I8 and I4 */
  size_t a_row_bytes; /* with padding */
  uint8_t *b_block;   /* I4 only: a block of B unpacked to int8 */
  uint8_t *c_rows;    /* the chunk of one N tile, row-major: float for F16, int32 else */
  size_t rows;        /* of a chunk */
} workspace;

static size_t a_value_bytes(const sim_context *context) {
  return context->type->product == PRODUCT_F16 ? sizeof(float) : sizeof(int8_t);
}

/* All of it is one block, workspace.a_raw its start. */
static bool take_workspace(const sim_context *context, workspace *work) {
  const sim_type *type = context->type;
  work->a_row_bytes = align64(context->K * a_value_bytes(context)) + ROW_PADDING_BYTES;
  work->rows = CHUNK_BYTES / work->a_row_bytes;
  if (work->rows < ROWS_MIN) work->rows = ROWS_MIN;
  if (work->rows > ROWS_MAX) work->rows = ROWS_MAX;
  if (work->rows > context->M) work->rows = context->M;
  size_t raw_bytes = align64(context->K * sim_dtype_bits(type->a) / 8);
  size_t rows_bytes = work->rows * work->a_row_bytes;
  size_t segment = context->b_shape.segment;
  size_t depth = segment && context->K > segment ? segment : context->K;
  size_t block_bytes = type->product == PRODUCT_I4 ? align64(depth * type->b_tile_n) : 0;
  size_t c_bytes = work->rows * type->b_tile_n * sizeof(int32_t);
  uint8_t *start = sim_scratch_take(raw_bytes + rows_bytes + block_bytes + c_bytes);
  if (!start) return false;
  work->a_raw = start;
  work->a_rows = start + raw_bytes;
  work->b_block = work->a_rows + rows_bytes;
  work->c_rows = work->b_block + block_bytes;
  return true;
}

/* int4 pairs to int8, in the nibble order of the simulated runtime. */
static void unpack_int4(const sim_products *products, const uint8_t *pairs, int8_t *out, size_t bytes) {
  products->unpack_low_first(pairs, out, bytes);
  if (sim_current_runtime()->int4_low_first) return;
  for (size_t i = 0; i < bytes; i++) {
    int8_t first = out[2 * i];
    out[2 * i] = out[2 * i + 1];
    out[2 * i + 1] = first;
  }
}

static void gather_rows(const sim_context *context, const sim_products *products, workspace *work, size_t first,
                        size_t rows) {
  const sim_type *type = context->type;
  size_t group = context->native_ac ? type->a_group : 0;
  uint32_t bits = sim_dtype_bits(type->a);
  for (size_t r = 0; r < rows; r++) {
    void *row = work->a_rows + r * work->a_row_bytes;
    uint8_t *raw = type->product == PRODUCT_I8 ? row : work->a_raw;
    sim_gather_a_row(context->a.data, context->M, context->K, bits, group, first + r, raw);
    if (type->product == PRODUCT_F16) products->halves_to_floats(raw, row, context->K);
    if (type->product == PRODUCT_I4) unpack_int4(products, raw, row, context->K / 2);
  }
}

/* Adds the products of the chunk with the columns of one N tile and one segment to work->c_rows. */
static void multiply_segment(const sim_context *context, const sim_products *products, workspace *work, size_t rows,
                             const uint8_t *b, size_t n_tile, sim_b_segment segment) {
  const sim_type *type = context->type;
  size_t tile_bytes = (size_t)type->b_tile_n * type->b_tile_k * sim_dtype_bits(type->b) / 8;
  size_t segment_tiles = segment.k_depth / type->b_tile_k;
  const uint8_t *first = b + segment.first_element * sim_dtype_bits(type->b) / 8 + n_tile * segment_tiles * tile_bytes;
  size_t blocks = rows < 4 ? 1 : (segment.k_depth + BLOCK_K - 1) / BLOCK_K;
  size_t block_tiles = (segment_tiles + blocks - 1) / blocks;
  size_t c_stride = type->b_tile_n;
  for (size_t t = 0; t < segment_tiles; t += block_tiles) {
    size_t left = segment_tiles - t;
    sim_tiles tiles = {
        .b = first + t * tile_bytes,
        .k_tiles = left < block_tiles ? left : block_tiles,
        .tile_n = type->b_tile_n,
        .tile_k = type->b_tile_k,
    };
    size_t k = segment.k_start + t * type->b_tile_k;
    const void *a = work->a_rows + k * a_value_bytes(context);
    size_t a_stride = work->a_row_bytes / a_value_bytes(context);
    switch (type->product) {
      case PRODUCT_F16:
        products->f16(a, a_stride, rows, tiles, (float *)(void *)work->c_rows, c_stride);
        break;
      case PRODUCT_I4:
        unpack_int4(products, tiles.b, (int8_t *)work->b_block, tiles.k_tiles * tile_bytes);
        tiles.b = work->b_block;
        products->i8(a, a_stride, rows, tiles, (int32_t *)(void *)work->c_rows, c_stride);
        break;
      case PRODUCT_I8:
        products->i8(a, a_stride, rows, tiles, (int32_t *)(void *)work->c_rows, c_stride);
        break;
    }
  }
}

/* In place, int32 to int16. Whether the hardware saturates or wraps is not known (Q20): it is counted and warned of. */
static size_t saturate_int16(uint8_t *values, size_t count) {
  size_t overflows = 0;
  for (size_t i = 0; i < count; i++) {
    int32_t wide;
    memcpy(&wide, values + i * sizeof wide, sizeof wide);
    int32_t bounded = wide > INT16_MAX ? INT16_MAX : wide < INT16_MIN ? INT16_MIN : wide;
    int16_t narrow = (int16_t)bounded;
    overflows += bounded != wide;
    memcpy(values + i * sizeof narrow, &narrow, sizeof narrow);
  }
  return overflows;
}

static void scatter_rows(const sim_context *context, workspace *work, size_t first, size_t rows, size_t n_tile) {
  const sim_type *type = context->type;
  size_t group = context->native_ac ? type->c_group : 0;
  size_t element_bytes = sim_dtype_bits(type->c) / 8;
  for (size_t r = 0; r < rows; r++) {
    sim_scatter_c_row(context->c.data, context->M, context->N, element_bytes, group, first + r,
                      n_tile * type->b_tile_n, type->b_tile_n, work->c_rows + r * type->b_tile_n * element_bytes);
  }
}

static void multiply(const sim_context *context, workspace *work) {
  const sim_products *products = sim_best_products();
  const sim_type *type = context->type;
  const uint8_t *b = context->b_layout == RKNN_MM_LAYOUT_NATIVE ? context->b.data : context->packed_b->base;
  size_t overflows = 0;
  for (size_t first = 0; first < context->M; first += work->rows) {
    size_t rows = context->M - first < work->rows ? context->M - first : work->rows;
    size_t c_values = rows * type->b_tile_n;
    gather_rows(context, products, work, first, rows);
    for (size_t n_tile = 0; n_tile < context->N / type->b_tile_n; n_tile++) {
      memset(work->c_rows, 0, c_values * sizeof(int32_t)); /* also the bits of 0.0f */
      for (size_t s = 0; s < sim_b_segment_count(&context->b_shape); s++) {
        multiply_segment(context, products, work, rows, b, n_tile, sim_b_segment_at(&context->b_shape, s));
      }
      if (type->c == RKNN_TENSOR_INT16) overflows += saturate_int16(work->c_rows, c_values);
      scatter_rows(context, work, first, rows, n_tile);
    }
  }
  if (overflows) {
    sim_count(COUNT_INT16_OVERFLOWS, overflows);
    sim_log_warning("rknn_matmul_run, simulator: %zu int16 results were saturated", overflows);
  }
}

/*
 * A tensor whose memory was destroyed after set_io_mem counts as unset: its pages are still held, so nothing could
 * crash, but a board's addresses would be gone and the driver would refuse the job.
 */
static bool usable(const sim_binding *binding) {
  return binding->memory && !atomic_load(&binding->memory->destroyed);
}

static int64_t microseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static int run(sim_context *context) {
  bool b_usable = context->b_layout == RKNN_MM_LAYOUT_NATIVE ? usable(&context->b) : context->packed_b_filled;
  if (!usable(&context->a) || !b_usable || !usable(&context->c)) {
    sim_log_error("failed to submit!, op id: 0, op name: MatMul, flags: 0x5, task start: 0, task number: 1, run task "
                  "counter: 0, int status: 0, please try updating to the latest version of the toolkit2 and runtime");
    return RKNN_ERR_FAIL;
  }
  int64_t start = microseconds();
  workspace work;
  if (!take_workspace(context, &work)) {
    sim_log_error("rknn_matmul_run, simulator: no memory for the run");
    return RKNN_ERR_MALLOC_FAIL;
  }
  multiply(context, &work);
  sim_scratch_give(work.a_raw);
  context->last_run_us = microseconds() - start;
  sim_count(COUNT_MACS, (uint64_t)context->M * context->K * context->N);
  return RKNN_SUCC;
}

SIM_EXPORT int rknn_matmul_run(rknn_matmul_ctx ctx) {
  sim_count(COUNT_RUN, 1);
  sim_context *context;
  int result = sim_registry_enter(ctx, "rknn_matmul_run", &context);
  if (result != RKNN_SUCC) return result;
  result = run(context);
  sim_registry_leave(ctx);
  return result;
}
