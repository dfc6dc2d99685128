/* Ranges of rows, batches of slices whose images of A fit into the buffers, cores and tiles. See ranges.h. */
#include "ranges.h"

#include <stddef.h>
#include <stdlib.h>

#include "deferred.h"
#include "fuse.h"
#include "images.h"

static int64_t longest_of(const npumm_range *ranges, int32_t count) {
  int64_t longest = 0;
  for (int32_t i = 0; i < count; i++) longest = ranges[i].length > longest ? ranges[i].length : longest;
  return longest;
}

/* The columns of `a`: as far as any slice reaches. */
static int64_t columns_of(const npumm_placed_matmul *p) {
  int64_t end = 0;
  for (int32_t i = 0; i < p->slice_count; i++) {
    const int64_t slice_end = p->slices[i].k.start + p->slices[i].k.length;
    end = slice_end > end ? slice_end : end;
  }
  return end;
}

/*
 * Partial sums stand in the result where its elements are as large as they are and nothing else is read from there;
 * else beside it: per core and tile where all images of A fit into the buffers, so that a tile is finished before the
 * next one begins, else for the whole range of rows.
 */
static int open_sums(npumm_work *work) {
  const npumm_placed_matmul *p = work->placed;
  const npumm_call *call = work->call;
  const int fits = call->out_type == NPUMM_FLOAT32 || call->out_type == NPUMM_INT32;
  if (p->slice_count == 1 || (fits && !call->out_is_read)) return 0;
  const int64_t widest = longest_of(p->n_ranges, p->n_count);
  const npumm_range *last = &p->n_ranges[p->n_count - 1];
  const int per_core = p->slice_count <= p->a_count;
  work->sums_row_stride = (per_core ? widest : last->start + last->length) * 4;
  work->sums_core_stride = per_core ? work->longest * work->sums_row_stride : 0;
  work->sums = malloc((size_t)(work->longest * work->sums_row_stride * (per_core ? p->core_count : 1)));
  return work->sums ? 0 : NPUMM_NO_MEMORY;
}

static int open_work(npumm_work *work) {
  const npumm_placed_matmul *p = work->placed;
  work->reports = calloc((size_t)p->core_count, sizeof *work->reports);
  if (!work->reports) return NPUMM_NO_MEMORY;
  int sums_of_rows = 0;
  for (int32_t i = 0; i < p->slice_count; i++) sums_of_rows |= p->slices[i].column_zero != NULL;
  if (sums_of_rows) {
    work->row_sums = malloc((size_t)p->a_count * (size_t)work->longest * sizeof *work->row_sums);
    if (!work->row_sums) return NPUMM_NO_MEMORY;
  }
  int code = open_sums(work);
  if (!code) code = npumm_fuse_open(work);
  work->rows.at_once = npumm_packs_at_once(p);
  return code ? code : npumm_rows_open(&work->rows, &p->activation, work->longest, p->a_count);
}

static void close_work(npumm_work *work) {
  npumm_rows_close(&work->rows);
  npumm_fuse_close(work);
  free(work->row_sums);
  free(work->sums);
  free(work->reports);
}

/* The next slices, from first_slice on, whose images of A fit into the buffers together. */
static void choose_batch(npumm_work *work) {
  const npumm_placed_matmul *p = work->placed;
  work->images = 0;
  int32_t s = work->first_slice;
  for (; s < p->slice_count; s++) {
    int32_t known = 0;
    while (known < work->images && !npumm_same_image(&p->slices[s], &p->slices[work->image_of[known]])) known++;
    if (known < work->images) continue;
    if (work->images == p->a_count) break;
    work->image_of[work->images++] = s;
  }
  work->end_slice = s;
}

/* What one core has to do with a batch: its N tiles, each over all slices of the batch. */
static void run_core(void *argument, int32_t core) {
  npumm_work *work = argument;
  const npumm_placed_matmul *p = work->placed;
  npumm_report *report = &work->reports[core];
  for (int32_t n = 0; n < p->n_count; n++) {
    if (p->tile_cores[n] != core) continue;
    for (int32_t s = work->first_slice; s < work->end_slice; s++) {
      if (npumm_work_is_over(work)) return;
      if (npumm_run_tile(work, report, n, s) != 0) {
        int nobody = -1;
        atomic_compare_exchange_strong(&work->failed_core, &nobody, core);
        return;
      }
    }
  }
}

/* All cores at once; then what they count joins the report, and the first failure. */
static int run_batch(npumm_work *work, npumm_executor *executor, npumm_report *report) {
  const int32_t count = work->placed->core_count;
  const npumm_report nothing_done = {.step = NPUMM_STEP_NONE};
  for (int32_t core = 0; core < count; core++) {
    work->reports[core] = nothing_done;
    work->reports[core].core = report->core + core;
  }
  if (npumm_crew_run(executor, count, run_core, work)) return npumm_fail(report, NPUMM_STEP_RUN, NPUMM_GIVEN_UP);
  for (int32_t core = 0; core < count; core++) npumm_add_counts(report, &work->reports[core]);
  const int32_t failed = atomic_load(&work->failed_core);
  if (failed < 0) return 0;
  report->core = failed;
  report->slice_index = work->reports[failed].slice_index;
  report->n_index = work->reports[failed].n_index;
  return npumm_fail(report, work->reports[failed].step, work->reports[failed].code);
}

static int run_rows(npumm_work *work, npumm_executor *executor, npumm_report *report) {
  const npumm_placed_matmul *p = work->placed;
  const npumm_range *m = &p->m_ranges[work->m_index];
  report->m_index = work->m_index;
  report->row = m->start;
  work->rows.image_rows = m->length;
  work->rows.image_first = 0;
  int code = 0;
  for (work->first_slice = 0; work->first_slice < p->slice_count; work->first_slice = work->end_slice) {
    if (code || npumm_work_is_over(work)) return code;
    const int fused = work->call->a_deferred && work->first_slice == 0;
    choose_batch(work);
    if (fused) code = npumm_fuse_rows(work, executor, report);
    if (!code && fused) code = npumm_sync_images(work, report);
    if (!fused && !work->call->a_bound) code = npumm_pack_images(work, executor, report);
    if (!code) code = run_batch(work, executor, report);
  }
  if (!code && work->call->out_deferred) npumm_defer_rows(work);
  return code;
}

/* What outlives its caller where runs are given up. */
typedef struct {
  npumm_work work;
  npumm_call call; /* where to store */
} lasting;

static void release(void *argument) {
  lasting *own = argument;
  close_work(&own->work);
  free(own);
}

int npumm_run_ranges(npumm_executor *executor, const npumm_placed_matmul *placed, const npumm_call *call,
                     npumm_report *report, atomic_int *stop, pthread_mutex_t *turn) {
  lasting *own = malloc(sizeof *own);
  if (!own) return npumm_fail(report, NPUMM_STEP_ARGUMENTS, NPUMM_NO_MEMORY);
  own->call = *call;
  if (call->out_deferred) { /* sums stand in its own memory */
    own->call.out = call->out_deferred->sums;
    own->call.out_row_stride = call->out_deferred->cols * 4;
    own->call.out_type = NPUMM_FLOAT32;
    own->call.out_is_read = 0;
    own->call.epilogue = NULL;
  }
  const npumm_work begun = {
      .placed = placed,
      .call = &own->call,
      .longest = longest_of(placed->m_ranges, placed->m_count),
      .rows = {.a = call->a_deferred || call->a_bound ? NULL : call->a,
               .a_row_stride = call->a_row_stride,
               .a_col_stride = call->a_col_stride,
               .cols = columns_of(placed),
               .row_images = placed->row_images},
      .failed_core = -1,
      .stop = stop,
      .turn = turn,
      .crew = executor,
  };
  own->work = begun;
  npumm_work *work = &own->work;
  int code = open_work(work);
  if (code) npumm_fail(report, NPUMM_STEP_ARGUMENTS, code);
  for (work->m_index = 0; !code && !npumm_work_is_over(work) && work->m_index < placed->m_count; work->m_index++) {
    code = run_rows(work, executor, report);
    if (code == NPUMM_GIVEN_UP && executor) { /* not even m_index is this thread's any more */
      npumm_crew_leave(executor, release, own);
      return code;
    }
  }
  release(own);
  return code;
}
