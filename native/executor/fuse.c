/* Finished, transformed, measured and packed while rows are in a core's cache. See fuse.h. */
#include "fuse.h"

#include <stddef.h>
#include <stdlib.h>

#include "deferred.h"
#include "profile.h"

/* A block of rows and its scratch stay in a core's second cache; longer rows make shorter blocks. */
enum { BLOCK_MOST = 32, BLOCK_LEAST = 4, BLOCK_BYTES = 128 * 1024 };

/* What one core's thread does of a range of rows. */
struct npumm_fusing {
  char *scratch; /* a block of finished rows, which are transformed there */
  int code;
  int64_t bad;            /* the first row that holds an inf or nan, or -1 */
  int32_t factors, zeros; /* whether any of its rows has one */
};

static int32_t widens(const npumm_work *work) {
  return npumm_reads_float32(&work->placed->activation) && work->call->a_deferred->type != NPUMM_FLOAT32;
}

static int64_t bytes_read(const npumm_work *work) {
  return widens(work) ? 4 : npumm_out_bytes(work->call->a_deferred->type);
}

int npumm_fuse_is_valid(const npumm_placed_matmul *p, const npumm_deferred *source) {
  if (!source->memories || source->rows != npumm_end_of(p->m_ranges, p->m_count)) return 0;
  int64_t cols = 0;
  for (int32_t i = 0; i < p->slice_count; i++) {
    const int64_t end = p->slices[i].k.start + p->slices[i].k.length;
    cols = end > cols ? end : cols;
  }
  if (source->cols != cols) return 0;
  if (npumm_reads_float32(&p->activation)) return npumm_is_float(source->type);
  if (p->activation.conversion == NPUMM_COPY_16) return source->type == NPUMM_FLOAT16 || source->type == NPUMM_BFLOAT16;
  return p->activation.conversion == NPUMM_COPY_8 && source->type == NPUMM_INT8;
}

int npumm_fuse_open(npumm_work *work) {
  const npumm_placed_matmul *p = work->placed;
  if (!work->call->a_deferred) return 0;
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
  int code = npumm_deferred_finish(work->call->a_deferred, p->m_ranges[work->m_index].start + first, count,
                                   widens(work), mine->scratch, rows->a_row_stride);
  if (!code) code = npumm_rows_begin(rows, &block, &mine->bad);
  for (int32_t i = 0; !code && i < work->images; i++) {
    const int32_t s = work->image_of[i];
    rknn_tensor_mem *memory = p->a_memories[i];
    const npumm_shape *shape = p->shapes[((int64_t)work->m_index * p->slice_count + s) * p->n_count];
    code = npumm_rows_pack(rows, &block, &p->slices[s], shape, i, (char *)memory->virt_addr + memory->offset,
                           (int64_t)memory->size, work->row_sums ? work->row_sums + i * work->longest + first : NULL,
                           &mine->bad);
  }
  mine->factors |= rows->factor != NULL;
  mine->zeros |= rows->zero != NULL;
  return code;
}

static void fuse_core(void *argument, int32_t core) {
  npumm_work *work = argument;
  npumm_fusing *mine = &work->fusing[core];
  const npumm_range *m = &work->placed->m_ranges[work->m_index];
  const int64_t begun = npumm_profile_begin();
  int64_t elements = 0;
  mine->code = mine->factors = mine->zeros = 0;
  mine->bad = -1;
  for (int64_t first = core * work->block; !mine->code && first < m->length;
       first += work->fusing_count * work->block) {
    const int64_t left = m->length - first;
    npumm_rows_of_a rows = work->rows;
    mine->code = fuse_block(work, mine, first, left < work->block ? left : work->block, &rows);
    if (mine->bad >= 0) mine->bad += m->start + first;
    elements += rows.cols * (left < work->block ? left : work->block);
    if (work->block == work->longest) { /* one block: later batches pack the rows that stand in the scratch */
      work->rows.first = rows.first;
      work->rows.row_stride = rows.row_stride;
      work->rows.col_stride = rows.col_stride;
    }
  }
  npumm_profile_end(begun, NPUMM_SPAN_FUSE, work->placed->number, core, elements * bytes_read(work), 0);
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
