/* Results that stay in C until they are read, or finished on the way into the next A. See kept.h. */
#include "kept.h"

#include <stddef.h>
#include <stdlib.h>

/* A block of rows and its scratch stay in a core's second cache; longer rows make shorter blocks. */
enum { BLOCK_MOST = 32, BLOCK_LEAST = 4, BLOCK_BYTES = 128 * 1024 };

static int is_float(npumm_element type) {
  return type == NPUMM_FLOAT32 || type == NPUMM_FLOAT16 || type == NPUMM_BFLOAT16;
}

static int64_t end_of(const npumm_range *ranges, int32_t count) {
  return ranges[count - 1].start + ranges[count - 1].length;
}

/* ---- keeping --------------------------------------------------------------------------------------------------------- */

int npumm_keep_is_valid(const npumm_placed_matmul *p, const npumm_kept *keep) {
  if (!keep->m_ranges || !keep->n_ranges || !keep->padded_m || !keep->padded_n || !keep->memories || !keep->row_factor ||
      !keep->row_zero || !keep->row_sum || keep->m_count != p->m_count || keep->n_count != p->n_count ||
      keep->rows != end_of(p->m_ranges, p->m_count) || keep->cols != end_of(p->n_ranges, p->n_count)) {
    return 0;
  }
  if (!is_float(keep->type) && (keep->type != NPUMM_INT8 || p->c_type != NPUMM_C_INT8)) return 0;
  const npumm_epilogue *epilogue = keep->epilogue;
  return (keep->sums || p->slice_count == 1) && !(epilogue && (epilogue->multiply.data || epilogue->residual.data));
}

void npumm_keep_rows(const npumm_work *work) {
  const npumm_placed_matmul *p = work->placed;
  const npumm_range *m = &p->m_ranges[work->m_index];
  const npumm_slice *slice = &p->slices[p->slice_count - 1];
  const int32_t buffer = npumm_buffer_of(work, slice);
  const npumm_shape *shape = p->shapes[((int64_t)work->m_index * p->slice_count + p->slice_count - 1) * p->n_count];
  npumm_kept *keep = work->call->keep;
  const int groups = npumm_scales_groups(&p->activation), scaled_each = groups || !p->common_scale;
  const int64_t at = npumm_rows_of_buffer(&work->rows, buffer);
  const int32_t *sums = work->row_sums && slice->column_zero ? work->row_sums + buffer * work->longest : NULL;
  for (int64_t r = 0; r < m->length; r++) {
    keep->row_factor[m->start + r] = work->rows.factor ? work->rows.factor[at + r] : 1.0;
    if (work->rows.zero) keep->row_zero[m->start + r] = work->rows.zero[at + r];
    if (sums) keep->row_sum[m->start + r] = sums[r];
  }
  const int requantized = keep->type == NPUMM_INT8; /* the runtime applied all scales */
  const npumm_term term = {
      .type = p->c_type,
      .row_images = p->row_images,
      .row_zero = work->rows.zero ? keep->row_zero : NULL,
      .column_sums = slice->column_sums,
      .row_sum = sums ? keep->row_sum : NULL,
      .column_zero = slice->column_zero,
      .column_scale = scaled_each ? slice->column_scale : NULL,
      .row_factor = groups ? keep->row_factor : NULL,
  };
  keep->term = term;
  keep->c_group = shape->c_group;
  keep->scaled_each = scaled_each;
  keep->last_factor = requantized || groups ? NULL : keep->row_factor;
  keep->last_scale = !scaled_each && !requantized ? slice->column_scale : NULL;
}

/* ---- finishing ------------------------------------------------------------------------------------------------------- */

/* Rows first to first + count of one tile, into `out`, where the matrix's first column would be. */
static int finish_tile(const npumm_kept *kept, int32_t m_index, int32_t n_index, int64_t first, int64_t count,
                       int32_t widen, char *out, int64_t out_row_stride) {
  const npumm_range *m = &kept->m_ranges[m_index], *n = &kept->n_ranges[n_index];
  const int64_t padded_m = kept->padded_m[m_index], padded_n = kept->padded_n[n_index];
  const npumm_tiling tiling = {m->length * kept->term.row_images, n->length, padded_m, padded_n,
                               padded_m, kept->c_group ? kept->c_group : padded_n};
  npumm_term term = kept->term;
  if (term.row_zero) term.row_zero += m->start;
  if (term.row_sum) term.row_sum += m->start;
  if (term.row_factor) term.row_factor += m->start;
  if (term.column_sums) term.column_sums += n->start;
  if (term.column_zero) term.column_zero += n->start;
  if (term.column_scale) term.column_scale += n->start;
  const npumm_partial partial = {
      .data = kept->sums ? (char *)kept->sums + (m->start * kept->cols + n->start) * 4 : NULL,
      .row_stride = kept->cols * 4,
      .add = 1,
      .as_float = kept->scaled_each,
  };
  const npumm_result result = {
      .data = out + n->start * (widen ? 4 : npumm_out_bytes(kept->type)),
      .row_stride = out_row_stride,
      .type = kept->type,
      .widen = widen,
      .row_factor = kept->last_factor ? kept->last_factor + m->start : NULL,
      .column_scale = kept->last_scale ? kept->last_scale + n->start : NULL,
      .epilogue = kept->epilogue,
      .row = m->start,
      .column = n->start,
  };
  const rknn_tensor_mem *memory = kept->memories[m_index * kept->n_count + n_index];
  return npumm_store_rows(&tiling, &term, (const char *)memory->virt_addr + memory->offset, (int64_t)memory->size, first,
                          count, kept->sums ? &partial : NULL, &result);
}

/* Rows of all tiles; with `widen`, elements of 2 bytes are written as float32, rounded as they are. */
static int finish(const npumm_kept *kept, int64_t first, int64_t rows, int32_t widen, char *out, int64_t out_row_stride) {
  for (int32_t i = 0; i < kept->m_count; i++) {
    const npumm_range *m = &kept->m_ranges[i];
    const int64_t from = first > m->start ? first - m->start : 0;
    const int64_t end = first + rows < m->start + m->length ? first + rows - m->start : m->length;
    if (from >= end) continue;
    char *at = out + (m->start + from - first) * out_row_stride;
    for (int32_t n = 0; n < kept->n_count; n++) {
      const int code = finish_tile(kept, i, n, from, end - from, widen, at, out_row_stride);
      if (code) return code;
    }
  }
  return 0;
}

int npumm_kept_store(const npumm_kept *kept, int64_t first, int64_t rows, void *out, int64_t out_row_stride) {
  if (!kept || !kept->memories || !out || first < 0 || rows < 0 || first > kept->rows - rows) return NPUMM_BAD_ARGUMENT;
  return finish(kept, first, rows, 0, out, out_row_stride);
}

/* ---- into the next A ------------------------------------------------------------------------------------------------- */

/* What one core's thread does of a range of rows. */
struct npumm_fusing {
  char *scratch; /* a block of finished rows, which are transformed there */
  int code;
  int64_t bad; /* the first row that holds an inf or nan, or -1 */
  int32_t factors, zeros; /* whether any of its rows has one */
};

static int32_t widens(const npumm_work *work) {
  return npumm_reads_float32(&work->placed->activation) && work->call->source->type != NPUMM_FLOAT32;
}

static int64_t bytes_read(const npumm_work *work) { return widens(work) ? 4 : npumm_out_bytes(work->call->source->type); }

int npumm_source_is_valid(const npumm_placed_matmul *p, const npumm_kept *source) {
  if (!source->memories || source->rows != end_of(p->m_ranges, p->m_count)) return 0;
  int64_t cols = 0;
  for (int32_t i = 0; i < p->slice_count; i++) {
    const int64_t end = p->slices[i].k.start + p->slices[i].k.length;
    cols = end > cols ? end : cols;
  }
  if (source->cols != cols) return 0;
  if (npumm_reads_float32(&p->activation)) return is_float(source->type);
  if (p->activation.conversion == NPUMM_COPY_16) return source->type == NPUMM_FLOAT16 || source->type == NPUMM_BFLOAT16;
  return p->activation.conversion == NPUMM_COPY_8 && source->type == NPUMM_INT8;
}

int npumm_fuse_open(npumm_work *work) {
  const npumm_placed_matmul *p = work->placed;
  if (!work->call->source) return 0;
  int32_t images = 0;
  for (int32_t s = 0; s < p->slice_count; s++) {
    int32_t same = 0;
    while (same < s && !npumm_same_image(&p->slices[s], &p->slices[same])) same++;
    images += same == s;
  }
  const int64_t row_bytes = work->rows.cols * bytes_read(work);
  /* blocks need room for all images at once; else the range of rows is one block, which stays for later batches */
  work->block = work->longest;
  if (images <= p->a_count) {
    int64_t block = BLOCK_BYTES / row_bytes;
    block = block > BLOCK_MOST ? BLOCK_MOST : block < BLOCK_LEAST ? BLOCK_LEAST : block;
    if (block < work->block) work->block = block;
  }
  const int64_t blocks = (work->longest + work->block - 1) / work->block;
  work->fusing_count = p->core_count < blocks ? p->core_count : (int32_t)blocks;
  work->fusing = calloc((size_t)work->fusing_count, sizeof *work->fusing);
  if (!work->fusing) return NPUMM_NO_MEMORY;
  for (int32_t i = 0; i < work->fusing_count; i++) {
    work->fusing[i].scratch = malloc((size_t)(work->block * row_bytes));
    if (!work->fusing[i].scratch) return NPUMM_NO_MEMORY;
  }
  return 0;
}

void npumm_fuse_close(npumm_work *work) {
  for (int32_t i = 0; work->fusing && i < work->fusing_count; i++) free(work->fusing[i].scratch);
  free(work->fusing);
}

/* A block of rows, from row `first` of the range on: finished, transformed, measured and packed while it is in the cache. */
static int fuse_block(npumm_work *work, npumm_fusing *mine, int64_t first, int64_t count, npumm_rows_of_a *rows) {
  const npumm_placed_matmul *p = work->placed;
  const npumm_range block = {0, count};
  const int64_t unit = bytes_read(work);
  rows->a = mine->scratch;
  rows->a_col_stride = unit;
  rows->a_row_stride = rows->cols * unit;
  rows->transformed = (float *)(void *)mine->scratch;
  rows->image_first = first;
  if (rows->scale) {
    rows->scale += first;
    rows->factor_store += first;
    rows->zero_store += first;
  }
  int code = finish(work->call->source, p->m_ranges[work->m_index].start + first, count, widens(work), mine->scratch,
                    rows->a_row_stride);
  if (!code) code = npumm_rows_begin(rows, &block, &mine->bad);
  for (int32_t i = 0; !code && i < work->images; i++) {
    const int32_t s = work->image_of[i];
    rknn_tensor_mem *memory = p->a_memories[i];
    const npumm_shape *shape = p->shapes[((int64_t)work->m_index * p->slice_count + s) * p->n_count];
    code = npumm_rows_pack(rows, &block, &p->slices[s], shape, i,
                           (char *)memory->virt_addr + memory->offset, (int64_t)memory->size,
                           work->row_sums ? work->row_sums + i * work->longest + first : NULL, &mine->bad);
  }
  mine->factors |= rows->factor != NULL;
  mine->zeros |= rows->zero != NULL;
  return code;
}

static void fuse_core(void *argument, int32_t core) {
  npumm_work *work = argument;
  npumm_fusing *mine = &work->fusing[core];
  const npumm_range *m = &work->placed->m_ranges[work->m_index];
  mine->code = mine->factors = mine->zeros = 0;
  mine->bad = -1;
  for (int64_t first = core * work->block; !mine->code && first < m->length; first += work->fusing_count * work->block) {
    const int64_t left = m->length - first;
    npumm_rows_of_a rows = work->rows;
    mine->code = fuse_block(work, mine, first, left < work->block ? left : work->block, &rows);
    if (mine->bad >= 0) mine->bad += m->start + first;
    if (work->block == work->longest) { /* one block: later batches pack the rows that stand in the scratch */
      work->rows.first = rows.first;
      work->rows.row_stride = rows.row_stride;
      work->rows.col_stride = rows.col_stride;
    }
  }
}

int npumm_fuse_rows(npumm_work *work, npumm_crew *crew, npumm_report *report) {
  npumm_crew_run(crew, work->fusing_count, fuse_core, work);
  int32_t factors = 0, zeros = 0;
  const npumm_fusing *failed = NULL;
  for (int32_t i = 0; i < work->fusing_count; i++) {
    const npumm_fusing *each = &work->fusing[i];
    factors |= each->factors;
    zeros |= each->zeros;
    if (each->code && (!failed || each->bad < failed->bad)) failed = each;
  }
  work->rows.factor = factors ? work->rows.factor_store : NULL;
  work->rows.zero = zeros ? work->rows.zero_store : NULL;
  if (!failed) return 0;
  if (failed->bad >= 0) report->row = failed->bad;
  return npumm_fail(report, NPUMM_STEP_PACK_A, failed->code);
}
