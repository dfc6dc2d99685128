/* Which matmuls can read A and write C where they stand, and the end of those that do. See in_place.h. */
#include "in_place.h"

#include <stddef.h>

#include "tile.h"

/* Whether a range of rows can be bound as it stands: normal layout, rows as long as those of the logical matrices. */
static int range_fits(const npumm_placed_matmul *p, const npumm_call *call, int32_t m_index) {
  for (int32_t n = 0; n < p->n_count; n++) {
    const npumm_shape *shape = p->shapes[(int64_t)m_index * p->n_count + n];
    if (shape->a_group || shape->c_group || shape->padded_k != p->slices[0].k.length) return 0;
    const rknn_tensor_mem *a = call->a_bound ? call->a_bound[m_index] : NULL;
    if (call->a_bound && (!a || a->size < shape->io_attr.A.size)) return 0;
    const rknn_tensor_mem *c = call->out_bound ? call->out_bound->parts[m_index] : NULL;
    if (call->out_bound && (!c || c->size < shape->io_attr.C.size || shape->padded_n != p->n_ranges[n].length))
      return 0;
  }
  return 1;
}

int npumm_in_place_is_valid(const npumm_placed_matmul *p, const npumm_call *call) {
  if (!call->a_bound && !call->out_bound) return 1;
  const npumm_activation *how = &p->activation;
  const npumm_slice *slice = p->slices;
  if (p->slice_count != 1 || p->row_images != 1 || slice->part || slice->column_zero || how->transform ||
      how->scaling != NPUMM_ROWS_UNSCALED || how->static_zero) {
    return 0;
  }
  if (call->a_bound && how->conversion != NPUMM_COPY_8 && how->conversion != NPUMM_COPY_16) return 0;
  if (call->out_bound && (!call->out_bound->parts || p->n_count != 1 || slice->column_scale || call->epilogue))
    return 0;
  for (int32_t m = 0; m < p->m_count; m++) {
    if (!range_fits(p, call, m)) return 0;
  }
  return 1;
}

int npumm_in_place_end(const npumm_placed_matmul *p, const npumm_bound *bound, npumm_report *report) {
  if (!bound->whole) return 0;
  return npumm_sync(p, report, NPUMM_STEP_SYNC_C, p->shapes[0]->context, bound->whole, RKNN_MEMORY_SYNC_FROM_DEVICE);
}
