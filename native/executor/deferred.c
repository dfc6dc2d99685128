/* What finishing a result needs, remembered when it is computed, and finishing it. See deferred.h. */
#include "deferred.h"

#include <stddef.h>

#include "profile.h"

int npumm_deferred_is_valid(const npumm_placed_matmul *p, const npumm_deferred *deferred) {
  if (!deferred->m_ranges || !deferred->n_ranges || !deferred->padded_m || !deferred->padded_n || !deferred->memories ||
      !deferred->row_factor || !deferred->row_zero || !deferred->row_sum || deferred->m_count != p->m_count ||
      deferred->n_count != p->n_count || deferred->rows != npumm_end_of(p->m_ranges, p->m_count) ||
      deferred->cols != npumm_end_of(p->n_ranges, p->n_count)) {
    return 0;
  }
  if (!npumm_is_float(deferred->type) && (deferred->type != NPUMM_INT8 || p->c_type != NPUMM_C_INT8)) return 0;
  const npumm_epilogue *epilogue = deferred->epilogue;
  return (deferred->sums || p->slice_count == 1) && !(epilogue && (epilogue->multiply.data || epilogue->residual.data));
}

void npumm_deferred_begin(const npumm_placed_matmul *p, npumm_deferred *deferred) {
  const npumm_slice *slice = &p->slices[p->slice_count - 1];
  const int groups = npumm_scales_groups(&p->activation), scaled_each = groups || !p->common_scale;
  const int requantized = deferred->type == NPUMM_INT8; /* the runtime applied all scales */
  const npumm_term term = {
      .type = p->c_type,
      .row_images = p->row_images,
      .row_zero = npumm_has_zero_points(&p->activation) ? deferred->row_zero : NULL,
      .column_sums = slice->column_sums,
      .row_sum = slice->column_zero ? deferred->row_sum : NULL,
      .column_zero = slice->column_zero,
      .column_scale = scaled_each ? slice->column_scale : NULL,
      .row_factor = groups ? deferred->row_factor : NULL,
  };
  deferred->term = term;
  deferred->c_group = p->shapes[p->n_count * (p->slice_count - 1)]->c_group;
  deferred->scaled_each = scaled_each;
  deferred->last_factor = requantized || groups ? NULL : deferred->row_factor;
  deferred->last_scale = !scaled_each && !requantized ? slice->column_scale : NULL;
}

void npumm_defer_rows(const npumm_work *work) {
  const npumm_placed_matmul *p = work->placed;
  const npumm_range *m = &p->m_ranges[work->m_index];
  const npumm_slice *slice = &p->slices[p->slice_count - 1];
  const int32_t buffer = npumm_buffer_of(work, slice);
  const int64_t at = npumm_rows_of_buffer(&work->rows, buffer);
  const int32_t *sums = slice->column_zero ? work->row_sums + buffer * work->longest : NULL;
  npumm_deferred *deferred = work->call->out_deferred;
  for (int64_t r = 0; r < m->length; r++) {
    deferred->row_factor[m->start + r] = work->rows.factor ? work->rows.factor[at + r] : 1.0;
    if (work->rows.zero) deferred->row_zero[m->start + r] = work->rows.zero[at + r];
    if (sums) deferred->row_sum[m->start + r] = sums[r];
  }
}

/* Rows first to first + count of one tile, into `out`, where the matrix's first column would be. */
static int finish_tile(const npumm_deferred *deferred, int32_t m_index, int32_t n_index, int64_t first, int64_t count,
                       int32_t widen, char *out, int64_t out_row_stride) {
  const npumm_range *m = &deferred->m_ranges[m_index], *n = &deferred->n_ranges[n_index];
  const int64_t padded_m = deferred->padded_m[m_index], padded_n = deferred->padded_n[n_index];
  const npumm_tiling tiling = {m->length * deferred->term.row_images,           n->length, padded_m, padded_n, padded_m,
                               deferred->c_group ? deferred->c_group : padded_n};
  npumm_term term = deferred->term;
  if (term.row_zero) term.row_zero += m->start;
  if (term.row_sum) term.row_sum += m->start;
  if (term.row_factor) term.row_factor += m->start;
  if (term.column_sums) term.column_sums += n->start;
  if (term.column_zero) term.column_zero += n->start;
  if (term.column_scale) term.column_scale += n->start;
  const npumm_partial partial = {
      .data = deferred->sums ? (char *)deferred->sums + (m->start * deferred->cols + n->start) * 4 : NULL,
      .row_stride = deferred->cols * 4,
      .add = 1,
      .as_float = deferred->scaled_each,
  };
  const npumm_result result = {
      .data = out + n->start * (widen ? 4 : npumm_out_bytes(deferred->type)),
      .row_stride = out_row_stride,
      .type = deferred->type,
      .widen = widen,
      .row_factor = deferred->last_factor ? deferred->last_factor + m->start : NULL,
      .column_scale = deferred->last_scale ? deferred->last_scale + n->start : NULL,
      .epilogue = deferred->epilogue,
      .row = m->start,
      .column = n->start,
  };
  const rknn_tensor_mem *memory = deferred->memories[m_index * deferred->n_count + n_index];
  return npumm_store_rows(&tiling, &term, (const char *)memory->virt_addr + memory->offset, (int64_t)memory->size,
                          first, count, deferred->sums ? &partial : NULL, &result);
}

int npumm_deferred_finish(const npumm_deferred *deferred, int64_t first, int64_t rows, int32_t widen, char *out,
                          int64_t out_row_stride) {
  for (int32_t i = 0; i < deferred->m_count; i++) {
    const npumm_range *m = &deferred->m_ranges[i];
    const int64_t from = first > m->start ? first - m->start : 0;
    const int64_t end = first + rows < m->start + m->length ? first + rows - m->start : m->length;
    if (from >= end) continue;
    char *at = out + (m->start + from - first) * out_row_stride;
    for (int32_t n = 0; n < deferred->n_count; n++) {
      const int code = finish_tile(deferred, i, n, from, end - from, widen, at, out_row_stride);
      if (code) return code;
    }
  }
  return 0;
}

int npumm_deferred_store(const npumm_deferred *deferred, int64_t first, int64_t rows, void *out,
                         int64_t out_row_stride) {
  if (!deferred || !deferred->memories || !out || first < 0 || rows < 0 || first > deferred->rows - rows) {
    return NPUMM_BAD_ARGUMENT;
  }
  const int64_t begun = npumm_profile_begin();
  const int code = npumm_deferred_finish(deferred, first, rows, 0, out, out_row_stride);
  const int64_t bytes = rows * deferred->cols * npumm_out_bytes(deferred->type);
  npumm_profile_end(begun, NPUMM_SPAN_STORE, 0, -1, bytes, 0);
  return code;
}
