#include "multiply.h"

#include <string.h>

#include "results.h"
#include "scratch.h"

/*
 * Rows of A are taken in chunks, so that their unpacked copy is bounded: at most ROWS_MAX rows, fewer when K is so
 * large that they would exceed CHUNK_BYTES, but not fewer than ROWS_MIN (B is read once per chunk). Chunks are equal
 * up to ROWS_STEP.
 */
#define ROWS_MAX 256
#define ROWS_MIN 8
#define ROWS_STEP 8

/* Rows that are taken out of native A together: groups of them stand side by side. */
#define GATHERED_ROWS 8
#define CHUNK_BYTES (32u << 20)

/* Where there are enough rows (sim_products.blocks_from), about that many k's of an N tile are worked on at a time: what
 * the inner loops make of B then stays in the L1 cache. */
#define BLOCK_INTS 640
#define BLOCK_FLOATS 320

/* A chunk larger than that does not stay in the L2 cache. Then a block of it meets as many N tiles, one after another, as
 * have room for their sums. */
#define CACHED_BYTES (256u << 10)
#define SUMS_BYTES (128u << 10)

/* Keeps rows whose length is a power of two from competing for the same cache lines. */
#define ROW_PADDING_BYTES 64

static size_t align64(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Some k's of B, in one segment and one group. */
typedef struct {
  size_t k, depth;
  size_t first, n_step; /* elements of B before it, and from one N tile to the next */
  bool ends_group;
} block;

/* Scratch memory of one run. */
typedef struct {
  block *blocks;
  size_t block_count;
  uint8_t *a_raw;     /* GATHERED_ROWS of A as they are in memory */
  size_t a_raw_bytes; /* of one, with padding */
  int8_t *a_ints;     /* one of them as int8, if it is int4 */
  uint8_t *a_rows;    /* the chunk as the inner loops take it, row-major; then a row of ones for column sums */
  size_t a_row_bytes; /* with padding */
  int32_t *a_sums;    /* of integers: of each block and row, and behind these of the row of ones */
  uint8_t *b_ints;    /* a block of an int4 B as int8 */
  uint8_t *b_halves;  /* a block of an integer B as halves */
  void *b_spare;      /* for the inner loops; NULL with few rows */
  uint8_t *c_rows;    /* for each of n_tiles the chunk, row-major: float for F16, int32 else; then the column sums */
  size_t c_bytes;     /* of one */
  size_t n_tiles;     /* that are worked on together */
  float *totals;      /* that chunk over all groups so far */
  int32_t *row_sums;
  size_t rows; /* of a chunk */
  void *all;
} workspace;

static bool of_floats(const sim_type *type) { return type->product == PRODUCT_F16; }

static size_t a_value_bytes(const sim_job *job) {
  return of_floats(job->context->type) ? sizeof(float) : job->products->int_bytes;
}

/* B comes to the inner loops as halves or int8; what is narrower in memory is widened block by block. */
static bool widens_to_ints(const sim_type *type) { return type->b == RKNN_TENSOR_INT4; }
static bool widens_to_halves(const sim_type *type) { return of_floats(type) && type->b != RKNN_TENSOR_FLOAT16; }

static size_t block_depth(const sim_type *type) { return of_floats(type) ? BLOCK_FLOATS : BLOCK_INTS; }

/* ---- cutting up ---------------------------------------------------------------------------------------------------- */

static size_t chunk_rows(size_t M, size_t row_bytes) {
  size_t most = CHUNK_BYTES / row_bytes;
  if (most > ROWS_MAX) most = ROWS_MAX;
  if (most < ROWS_MIN) most = ROWS_MIN;
  if (M <= most) return M;
  size_t chunks = (M + most - 1) / most, equal = (M + chunks - 1) / chunks;
  size_t rounded = (equal + ROWS_STEP - 1) / ROWS_STEP * ROWS_STEP;
  return rounded < most ? rounded : most;
}

/* Cuts up K for chunks of so many rows; counts blocks only where blocks is NULL. */
static size_t cut_depth(const sim_job *job, size_t rows, block *blocks) {
  const sim_context *context = job->context;
  const sim_type *type = context->type;
  const sim_b_shape *b_shape = &job->shape->b_shape;
  size_t group_size = context->group_size, tile_n = type->b_tile_n, tile_k = type->b_tile_k, count = 0;
  bool whole = rows < job->products->blocks_from && !widens_to_ints(type) && !widens_to_halves(type);
  for (size_t s = 0; s < sim_b_segment_count(b_shape); s++) {
    sim_b_segment segment = sim_b_segment_at(b_shape, s);
    size_t segment_end = segment.k_start + segment.k_depth, end;
    for (size_t start = segment.k_start; start < segment_end; start = end) {
      end = group_size ? (start / group_size + 1) * group_size : segment_end;
      if (end > segment_end) end = segment_end;
      size_t tiles = (end - start) / tile_k;
      size_t parts = whole ? 1 : (end - start + block_depth(type) - 1) / block_depth(type);
      size_t step = (tiles + parts - 1) / parts * tile_k;
      for (size_t k = start; k < end; k += step, count++) {
        if (!blocks) continue;
        blocks[count] = (block){
            .k = k,
            .depth = end - k < step ? end - k : step,
            .first = segment.first_element + (k - segment.k_start) * tile_n,
            .n_step = segment.k_depth * tile_n,
            .ends_group = group_size && k + step >= end,
        };
      }
    }
  }
  return count;
}

/* The next part of memory that may not be there yet. */
static void *part(uint8_t *memory, size_t *used, size_t bytes) {
  void *start = memory ? memory + *used : NULL;
  *used += align64(bytes);
  return start;
}

/* Puts everything into memory, or nowhere yet. Returns how many bytes it takes. */
static size_t lay_out(const sim_job *job, workspace *work, uint8_t *memory) {
  const sim_type *type = job->context->type;
  size_t K = job->shape->K, tile_n = type->b_tile_n, ints = !of_floats(type);
  bool counts_groups = job->context->group_size != 0;
  size_t block_elements = (block_depth(type) + type->b_tile_k) * tile_n; /* of equal tiles: one may be larger */
  size_t used = 0;
  work->blocks = part(memory, &used, work->block_count * sizeof(block));
  work->a_raw = part(memory, &used, GATHERED_ROWS * work->a_raw_bytes);
  work->a_ints = part(memory, &used, type->product == PRODUCT_I4 ? K : 0);
  work->a_rows = part(memory, &used, (work->rows + job->column_sums) * work->a_row_bytes);
  work->a_sums = part(memory, &used, ints * work->block_count * (work->rows + 1) * sizeof(int32_t));
  work->b_ints = part(memory, &used, widens_to_ints(type) ? block_elements : 0);
  work->b_halves = part(memory, &used, widens_to_halves(type) ? 2 * block_elements : 0);
  if (work->rows >= job->products->blocks_from) work->b_spare = part(memory, &used, SIM_SPARE_BYTES(block_elements));
  work->c_rows = part(memory, &used, work->n_tiles * work->c_bytes);
  work->totals = part(memory, &used, counts_groups ? work->rows * tile_n * sizeof(float) : 0);
  work->row_sums = part(memory, &used, job->row_sums ? work->rows * sizeof(int32_t) : 0);
  return used;
}

/* How many N tiles are worked on together: one where B had better be read as it lies in memory, and with groups, whose
 * sums are scaled one by one. */
static size_t tiles_together(const sim_job *job, const workspace *work) {
  if (job->context->group_size || work->rows * work->a_row_bytes <= CACHED_BYTES) return 1;
  size_t most = SUMS_BYTES / work->c_bytes, tiles = job->shape->N / job->context->type->b_tile_n;
  if (work->rows < job->products->blocks_from || most == 0) return 1;
  return most < tiles ? most : tiles;
}

static bool take_workspace(const sim_job *job, workspace *work) {
  const size_t K = job->shape->K;
  *work = (workspace){0};
  work->a_raw_bytes = align64(K * sim_dtype_bits(job->context->type->a) / 8) + ROW_PADDING_BYTES;
  work->a_row_bytes = align64(K * a_value_bytes(job)) + ROW_PADDING_BYTES;
  work->rows = chunk_rows(job->shape->M, work->a_row_bytes);
  work->c_bytes = align64((work->rows + 1) * job->context->type->b_tile_n * sizeof(int32_t));
  work->n_tiles = tiles_together(job, work);
  work->block_count = cut_depth(job, work->rows, NULL);
  work->all = sim_scratch_take(lay_out(job, work, NULL));
  if (!work->all) return false;
  lay_out(job, work, work->all);
  cut_depth(job, work->rows, work->blocks);
  if (!job->column_sums) return true; /* integers only have them */
  memset(work->a_raw, 1, K);
  job->products->ready_ints((int8_t *)work->a_raw, work->a_rows + work->rows * work->a_row_bytes, K);
  return true;
}

/* ---- A ------------------------------------------------------------------------------------------------------------- */

/* Row r of the chunk, of integers. */
static void ready_ints(const sim_job *job, workspace *work, const uint8_t *raw, size_t r) {
  const size_t K = job->shape->K;
  const int8_t *ints = (const int8_t *)raw;
  if (job->context->type->product == PRODUCT_I4) {
    job->products->unpack_pairs(raw, job->context->settings.runtime->int4_low_first, work->a_ints, K / 2);
    ints = work->a_ints;
  }
  job->products->ready_ints(ints, work->a_rows + r * work->a_row_bytes, K);
  uint32_t sum = 0;
  for (size_t i = 0; i < work->block_count; i++) {
    int32_t own = job->products->sum_ints(ints + work->blocks[i].k, work->blocks[i].depth);
    work->a_sums[i * work->rows + r] = own;
    sum += (uint32_t)own;
  }
  if (job->row_sums) work->row_sums[r] = (int32_t)sum;
}

static void gather_rows(const sim_job *job, workspace *work, size_t first, size_t rows) {
  const sim_type *type = job->context->type;
  size_t K = job->shape->K, group = job->context->native_ac ? type->a_group : 0, count;
  for (size_t r = 0; r < rows; r += count) {
    count = rows - r < GATHERED_ROWS ? rows - r : GATHERED_ROWS;
    sim_gather_a_rows(job->a, job->laid_rows, K, sim_dtype_bits(type->a), group, first + r, count, work->a_raw,
                      work->a_raw_bytes);
    for (size_t i = 0; i < count; i++) {
      const uint8_t *raw = work->a_raw + i * work->a_raw_bytes;
      void *row = work->a_rows + (r + i) * work->a_row_bytes;
      if (of_floats(type)) job->products->halves_to_floats(raw, row, K);
      else ready_ints(job, work, raw, r + i);
    }
  }
}

/* ---- B ------------------------------------------------------------------------------------------------------------- */

/* B less its zero points as halves, exactly. */
static void ints_to_halves(const sim_job *job, const int8_t *ints, size_t tiles, size_t n_tile, uint8_t *out) {
  const sim_context *context = job->context;
  const sim_type *type = context->type;
  const int32_t *zero_points = context->quant.b.zero_points;
  size_t tile_elements = (size_t)type->b_tile_n * type->b_tile_k;
  if (!zero_points) {
    job->products->ints_to_halves(ints, 0, out, tiles * tile_elements);
    return;
  }
  for (size_t column = 0; column < tiles * type->b_tile_n; column++) {
    size_t n = n_tile * type->b_tile_n + column % type->b_tile_n;
    int32_t zero_point = zero_points[context->b_granularity == PER_CHANNEL ? n : 0];
    job->products->ints_to_halves(ints + column * type->b_tile_k, zero_point, out + 2 * column * type->b_tile_k,
                                  type->b_tile_k);
  }
}

/* A block of B as the inner loops take it. */
static sim_tiles tiles_of(const sim_job *job, const workspace *work, const block *of, size_t n_tile) {
  const sim_type *type = job->context->type;
  size_t tiles = of->depth / type->b_tile_k, elements = of->depth * type->b_tile_n;
  const uint8_t *b = job->b + (of->first + n_tile * of->n_step) * sim_dtype_bits(type->b) / 8;
  if (widens_to_ints(type)) {
    bool low_first = job->context->settings.runtime->int4_low_first;
    job->products->unpack_pairs(b, low_first, (int8_t *)work->b_ints, elements / 2);
    b = work->b_ints;
  }
  if (widens_to_halves(type)) {
    ints_to_halves(job, (const int8_t *)b, tiles, n_tile, work->b_halves);
    b = work->b_halves;
  }
  return (sim_tiles){
      .b = b, .k_tiles = tiles, .tile_n = type->b_tile_n, .tile_k = type->b_tile_k, .spare = work->b_spare};
}

/* ---- C ------------------------------------------------------------------------------------------------------------- */

/* Adds the products of the chunk with one block of one N tile to c. */
static void multiply_block(const sim_job *job, const workspace *work, size_t rows, size_t n_tile, size_t index,
                           uint8_t *c_rows) {
  const block *of = &work->blocks[index];
  sim_tiles tiles = tiles_of(job, work, of, n_tile);
  sim_rows a = {
      .values = work->a_rows + of->k * a_value_bytes(job),
      .stride = work->a_row_bytes / a_value_bytes(job),
      .rows = rows,
      .sums = work->a_sums + index * work->rows,
  };
  if (of_floats(job->context->type)) {
    job->products->f16(a, tiles, (float *)(void *)c_rows, tiles.tile_n);
    return;
  }
  int32_t *c = (int32_t *)(void *)c_rows;
  job->products->i8(a, tiles, c, tiles.tile_n);
  if (!job->column_sums) return;
  const int32_t depth = (int32_t)of->depth;
  a.values = work->a_rows + work->rows * work->a_row_bytes + of->k * a_value_bytes(job);
  a.rows = 1;
  a.sums = &depth;
  job->products->i8(a, tiles, c + work->rows * tiles.tile_n, tiles.tile_n);
}

/* Makes the sums of the chunk and one N tile, in c_rows, elements of C and writes them there. Returns how many did not
 * fit. */
static size_t finish_tile(const sim_job *job, const workspace *work, size_t first, size_t n_tile, sim_sums *sums) {
  const sim_context *context = job->context;
  const sim_type *type = context->type;
  size_t width = type->b_tile_n, rows = sums->rows, group = context->native_ac ? type->c_group : 0;
  if (context->group_size) memcpy(sums->sums, work->totals, rows * width * sizeof(float));
  size_t unfit = sim_finish_sums(context, sums);
  if (job->zero) memset(sums->sums, 0, work->c_bytes);
  sim_scatter_c_rows(job->c, job->laid_rows, job->shape->N, sim_dtype_bits(type->c) / 8, group, first, rows,
                     n_tile * width, width, sums->sums);
  return unfit;
}

/* Some N tiles of the chunk, from its first row on, over all of K. Returns how many sums did not fit. */
static size_t multiply_tiles(const sim_job *job, workspace *work, size_t first, size_t rows, size_t n_tile,
                             size_t n_tiles) {
  const sim_context *context = job->context;
  size_t width = context->type->b_tile_n, group_size = context->group_size, unfit = 0;
  sim_sums sums = {.rows = rows,
                   .width = width,
                   .row_sums = work->row_sums,
                   .common_scale = job->common_scale,
                   .sums = work->c_rows};
  if (group_size) memset(work->totals, 0, rows * width * sizeof(float));
  memset(work->c_rows, 0, n_tiles * work->c_bytes); /* also the bits of 0.0f */
  for (size_t i = 0; i < work->block_count; i++) {
    for (size_t t = 0; t < n_tiles; t++) {
      multiply_block(job, work, rows, n_tile + t, i, work->c_rows + t * work->c_bytes);
    }
    if (!work->blocks[i].ends_group) continue; /* else there is one tile */
    sums.first_n = n_tile * width;
    sums.column_sums = (int32_t *)(void *)work->c_rows + work->rows * width;
    sim_add_group(context, &sums, work->blocks[i].k / group_size, work->totals);
    memset(work->c_rows, 0, work->c_bytes);
  }
  for (size_t t = 0; t < n_tiles; t++) {
    sums.first_n = (n_tile + t) * width;
    sums.sums = work->c_rows + t * work->c_bytes;
    sums.column_sums = (int32_t *)sums.sums + work->rows * width;
    unfit += finish_tile(job, work, first, n_tile + t, &sums);
  }
  return unfit;
}

bool sim_multiply(const sim_job *job, size_t *unfit) {
  const sim_shape *shape = job->shape;
  size_t all_tiles = shape->N / job->context->type->b_tile_n;
  workspace work;
  if (!take_workspace(job, &work)) return false;
  *unfit = 0;
  for (size_t first = 0; first < shape->M; first += work.rows) {
    size_t rows = shape->M - first < work.rows ? shape->M - first : work.rows;
    gather_rows(job, &work, first, rows);
    for (size_t n_tile = 0; n_tile < all_tiles; n_tile += work.n_tiles) {
      size_t n_tiles = all_tiles - n_tile < work.n_tiles ? all_tiles - n_tile : work.n_tiles;
      *unfit += multiply_tiles(job, &work, first, rows, n_tile, n_tiles);
    }
  }
  sim_scratch_give(work.all);
  return true;
}
