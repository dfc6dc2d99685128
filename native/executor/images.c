/* Images of A, packed by one thread or by all that serve cores. See images.h. */
#include "images.h"

#include <stddef.h>

#include "on_cpu.h"
#include "profile.h"

/* Values that a thread has to have, as they take it some 50 us or more; and rows that begin where a line of an image does. */
enum { VALUES_LEAST = 65536, PARTS_MOST = 8, ROWS_MULTIPLE = 16 };

/* Rows that follow each other, which one thread packs. */
typedef struct {
  npumm_rows_of_a rows;
  int64_t first, count; /* in the range */
  int64_t bad;          /* a row that holds an inf or nan, if that is the failure */
  int32_t slice;        /* where it stopped */
  int code;
} part;

typedef struct {
  npumm_work *work;
  int32_t core; /* that the calling thread serves */
  int32_t count;
  part parts[PARTS_MOST];
} packing;

/* Bytes of as many rows of an image of A as a part has. */
static int64_t bytes_of(const npumm_placed_matmul *p, const npumm_shape *shape, int64_t rows, int64_t length) {
  const int64_t all = p->on_cpu ? npumm_a_bytes(p->on_cpu, shape) : (int64_t)shape->io_attr.A.size;
  return rows == length ? all : all / length * rows;
}

/* All N tiles share M and K, so the image of A serves every one of them, on every core. */
static const npumm_shape *shape_of(const npumm_work *work, int32_t slice) {
  const npumm_placed_matmul *p = work->placed;
  return p->shapes[((int64_t)work->m_index * p->slice_count + slice) * p->n_count];
}

static int measure(packing *all, part *mine, const npumm_range *m, int32_t core) {
  const npumm_activation *how = mine->rows.how;
  const int reads = (how->transform || how->scaling != NPUMM_ROWS_UNSCALED) && !mine->rows.at_once;
  const int64_t begun = reads ? npumm_profile_begin() : 0;
  const int code = npumm_rows_begin(&mine->rows, m, &mine->bad);
  const int64_t bytes = m->length * mine->rows.cols * 4;
  npumm_profile_end(begun, NPUMM_SPAN_MEASURE, all->work->placed->number, core, bytes, 0);
  return code;
}

static void pack_part(void *argument, int32_t index) {
  packing *all = argument;
  const npumm_work *work = all->work;
  const npumm_placed_matmul *p = work->placed;
  part *mine = &all->parts[index];
  npumm_rows_of_a *rows = &mine->rows;
  const npumm_range m = {p->m_ranges[work->m_index].start + mine->first, mine->count};
  const int32_t core = all->core + index;
  if (work->first_slice == 0) mine->code = measure(all, mine, &m, core);
  for (int32_t i = 0; !mine->code && i < work->images; i++) {
    mine->slice = work->image_of[i];
    const npumm_shape *shape = shape_of(work, mine->slice);
    rknn_tensor_mem *memory = p->a_memories[i];
    int32_t *row_sums = work->row_sums ? work->row_sums + i * work->longest + mine->first : NULL;
    const int64_t begun = npumm_profile_begin();
    mine->code = npumm_rows_pack(rows, &m, &p->slices[mine->slice], shape, i,
                                 (char *)memory->virt_addr + memory->offset, /* facts 1.3: data starts there */
                                 (int64_t)memory->size, row_sums, &mine->bad);
    const int64_t bytes = bytes_of(p, shape, m.length, p->m_ranges[work->m_index].length);
    npumm_profile_end(begun, NPUMM_SPAN_PACK_A, p->number, core, bytes, 0);
  }
}

/* The rows of a part, from row `first` of the range on: `first` and all arrays begin there. */
static npumm_rows_of_a rows_from(const npumm_work *work, int64_t first) {
  npumm_rows_of_a rows = work->rows;
  rows.image_first = first;
  if (rows.first) rows.first += first * rows.row_stride;
  if (rows.transformed) rows.transformed += first * rows.cols;
  if (rows.scale) rows.scale += first;
  if (rows.factor_store) rows.factor_store += first;
  if (rows.zero_store) rows.zero_store += first;
  if (rows.factor) rows.factor = rows.factor_store;
  if (rows.zero) rows.zero = rows.zero_store;
  return rows;
}

static void cut(packing *all, const npumm_crew *crew) {
  const npumm_work *work = all->work;
  const int64_t length = work->placed->m_ranges[work->m_index].length;
  int64_t count = crew ? length * work->rows.cols / VALUES_LEAST : 1;
  if (count > work->placed->core_count) count = work->placed->core_count;
  if (count > PARTS_MOST) count = PARTS_MOST;
  if (count < 1) count = 1;
  const int64_t share = (length / count + ROWS_MULTIPLE - 1) / ROWS_MULTIPLE * ROWS_MULTIPLE;
  int64_t first = 0;
  do {
    const int64_t left = length - first;
    const int is_last = all->count + 1 == count || left <= share;
    all->parts[all->count++] =
        (part){.rows = rows_from(work, first), .first = first, .count = is_last ? left : share, .bad = -1};
    first += share;
  } while (all->count < count && first < length);
}

int npumm_pack_images(npumm_work *work, npumm_crew *crew, npumm_report *report) {
  packing all = {.work = work, .core = report->core};
  cut(&all, crew);
  if (all.count == 1) pack_part(&all, 0);
  else npumm_crew_run(crew, all.count, pack_part, &all); /* nobody is in the runtime, so that nothing is given up */
  if (npumm_crew_is_ended(crew)) return 0;               /* parts may not have been begun */
  int32_t factors = 0, zeros = 0;
  for (int32_t i = 0; i < all.count; i++) {
    const part *each = &all.parts[i];
    factors |= each->rows.factor != NULL;
    zeros |= each->rows.zero != NULL;
    if (!each->code) continue;
    report->slice_index = each->slice;
    if (each->bad >= 0) report->row = each->bad;
    return npumm_fail(report, NPUMM_STEP_PACK_A, each->code);
  }
  work->rows.factor = factors ? work->rows.factor_store : NULL;
  work->rows.zero = zeros ? work->rows.zero_store : NULL;
  work->rows.first = all.parts[0].rows.first;
  work->rows.row_stride = all.parts[0].rows.row_stride;
  work->rows.col_stride = all.parts[0].rows.col_stride;
  return npumm_sync_images(work, report);
}

int npumm_sync_images(const npumm_work *work, npumm_report *report) {
  const npumm_placed_matmul *p = work->placed;
  for (int32_t i = 0; !p->on_cpu && i < work->images; i++) {
    report->slice_index = work->image_of[i];
    npumm_context *context = shape_of(work, report->slice_index)->context;
    const int code = npumm_sync(p, report, NPUMM_STEP_SYNC_A, context, p->a_memories[i], RKNN_MEMORY_SYNC_TO_DEVICE);
    if (code) return code;
  }
  return 0;
}
