/* One run of the NPU: shape, bindings, run, and its part of the result. See tile.h. */
#include "tile.h"

#include <stddef.h>

#include "crew.h"
#include "on_cpu.h"
#include "profile.h"

int npumm_fail(npumm_report *report, npumm_step step, int code) {
  report->step = step;
  report->code = code;
  return code;
}

void npumm_stopped_as(npumm_report *report, const npumm_report *other) {
  report->step = other->step;
  report->code = other->code;
  report->row = other->row;
  report->m_index = other->m_index;
  report->slice_index = other->slice_index;
  report->n_index = other->n_index;
  report->core = other->core;
}

void npumm_add_counts(npumm_report *to, const npumm_report *from) {
  to->run_calls += from->run_calls;
  to->set_io_mem_calls += from->set_io_mem_calls;
  to->mem_sync_calls += from->mem_sync_calls;
  to->set_dynamic_shape_calls += from->set_dynamic_shape_calls;
  to->macs += from->macs;
  to->cpu_macs += from->cpu_macs;
  to->conversions += from->conversions;
}

int npumm_same_image(const npumm_slice *one, const npumm_slice *other) {
  return one->k.start == other->k.start && one->k.length == other->k.length && one->part == other->part &&
         one->group.start == other->group.start && one->group.length == other->group.length;
}

/* A call of the runtime failed: what state it left the context in is not known. */
static int break_context(npumm_context *context, npumm_report *report, npumm_step step, int code) {
  context->broken = 1;
  return npumm_fail(report, step, code);
}

int npumm_sync(const npumm_placed_matmul *p, npumm_report *report, npumm_step step, npumm_context *context,
               rknn_tensor_mem *memory, rknn_mem_sync_mode mode) {
  if (!p->runtime->mem_sync) return 0; /* 1.5.2 has no such function and keeps memory coherent by itself */
  report->mem_sync_calls++;
  const int64_t begun = npumm_profile_begin();
  npumm_crew_depart();
  const int code = p->runtime->mem_sync(context->handle, memory, mode);
  if (npumm_crew_return()) return npumm_fail(report, step, NPUMM_GIVEN_UP);
  const int32_t kind = mode == RKNN_MEMORY_SYNC_TO_DEVICE ? NPUMM_SPAN_SYNC_A : NPUMM_SPAN_SYNC_C;
  npumm_profile_end(begun, kind, p->number, report->core, (int64_t)memory->size, 0);
  return code == RKNN_SUCC ? 0 : break_context(context, report, step, code);
}

/* Select the shape where it changes, which has to come before the bindings (facts 6). */
static int select_shape(const npumm_placed_matmul *p, npumm_report *report, const npumm_shape *shape) {
  npumm_context *context = shape->context;
  if (!context->dynamic || context->selected_m == shape->padded_m) return 0;
  rknn_matmul_shape wanted = {shape->padded_m, shape->padded_k, shape->padded_n};
  report->set_dynamic_shape_calls++;
  context->selected_m = 0;
  const int64_t begun = npumm_profile_begin();
  npumm_crew_depart();
  const int code = p->runtime->set_dynamic_shape(context->handle, &wanted);
  if (npumm_crew_return()) return npumm_fail(report, NPUMM_STEP_SELECT, NPUMM_GIVEN_UP);
  npumm_profile_end(begun, NPUMM_SPAN_SELECT, p->number, report->core, 0, 0);
  if (code != RKNN_SUCC) return break_context(context, report, NPUMM_STEP_SELECT, code);
  context->selected_m = shape->padded_m;
  return 0;
}

static int bind(const npumm_placed_matmul *p, npumm_report *report, npumm_step step, const npumm_shape *shape,
                rknn_tensor_mem *memory, rknn_matmul_tensor_attr *attr) {
  report->set_io_mem_calls++;
  const int64_t begun = npumm_profile_begin();
  npumm_crew_depart();
  const int code = p->runtime->set_io_mem(shape->context->handle, memory, attr);
  if (npumm_crew_return()) return npumm_fail(report, step, NPUMM_GIVEN_UP);
  npumm_profile_end(begun, NPUMM_SPAN_BIND, p->number, report->core, 0, 0);
  return code == RKNN_SUCC ? 0 : break_context(shape->context, report, step, code);
}

int32_t npumm_buffer_of(const npumm_work *work, const npumm_slice *slice) {
  int32_t buffer = 0;
  while (buffer < work->images - 1 && !npumm_same_image(slice, &work->placed->slices[work->image_of[buffer]])) buffer++;
  return buffer;
}

int64_t npumm_out_bytes(npumm_element type) {
  if (type == NPUMM_INT8) return 1;
  return type == NPUMM_FLOAT16 || type == NPUMM_BFLOAT16 ? 2 : 4;
}

static int store(const npumm_work *work, npumm_report *report, const npumm_shape *shape, int32_t n_index,
                 int32_t slice_index, int32_t buffer) {
  const npumm_placed_matmul *p = work->placed;
  const npumm_call *call = work->call;
  const npumm_slice *slice = &p->slices[slice_index];
  const npumm_range *m = &p->m_ranges[work->m_index], *n = &p->n_ranges[n_index];
  const int32_t core = p->tile_cores[n_index];
  const int32_t first = slice_index == 0, last = slice_index == p->slice_count - 1;
  const int32_t groups = npumm_scales_groups(&p->activation), scaled_each = groups || !p->common_scale;
  const int64_t rows_at = npumm_rows_of_buffer(&work->rows, buffer);
  rknn_tensor_mem *memory = p->c_memories[core];
  const npumm_tiling tiling = {m->length * p->row_images, n->length,
                               shape->padded_m,           shape->padded_n,
                               shape->padded_m,           shape->c_group ? shape->c_group : shape->padded_n};
  const npumm_term term = {
      .type = p->c_type,
      .row_images = p->row_images,
      .row_zero = work->rows.zero ? work->rows.zero + rows_at : NULL,
      .column_sums = slice->column_sums ? slice->column_sums + n->start : NULL,
      .row_sum = work->row_sums && slice->column_zero ? work->row_sums + buffer * work->longest : NULL,
      .column_zero = slice->column_zero ? slice->column_zero + n->start : NULL,
      .column_scale = scaled_each && slice->column_scale ? slice->column_scale + n->start : NULL,
      .row_factor = groups ? work->rows.factor + rows_at : NULL,
  };
  char *out = (char *)call->out + m->start * call->out_row_stride + n->start * npumm_out_bytes(call->out_type);
  const npumm_partial partial = {
      .data = !work->sums              ? out
              : work->sums_core_stride ? work->sums + core * work->sums_core_stride
                                       : work->sums + n->start * 4,
      .row_stride = work->sums ? work->sums_row_stride : call->out_row_stride,
      .add = !first,
      .as_float = scaled_each,
  };
  const int requantized = call->out_type == NPUMM_INT8; /* the runtime applied all scales */
  const npumm_result result = {
      .data = out,
      .row_stride = call->out_row_stride,
      .type = call->out_type,
      .row_factor = requantized || groups ? NULL : work->rows.factor,
      .column_scale = !scaled_each && slice->column_scale && !requantized ? slice->column_scale + n->start : NULL,
      .epilogue = call->epilogue,
      .row = m->start,
      .column = n->start,
  };
  const int64_t begun = npumm_profile_begin();
  const int code = npumm_store(&tiling, &term, (char *)memory->virt_addr + memory->offset, (int64_t)memory->size,
                               first && last ? NULL : &partial, last ? &result : NULL);
  const int64_t width = last ? npumm_out_bytes(call->out_type) : 4;
  npumm_profile_end(begun, NPUMM_SPAN_STORE, p->number, report->core, m->length * n->length * width, 0);
  return code ? npumm_fail(report, NPUMM_STEP_STORE_C, code) : 0;
}

/* As npumm_run_tile, by the CPU. */
static int compute_tile(const npumm_work *work, npumm_report *report, int32_t n_index, int32_t slice_index) {
  const npumm_placed_matmul *p = work->placed;
  const npumm_slice *slice = &p->slices[slice_index];
  const npumm_shape *shape = p->shapes[((int64_t)work->m_index * p->slice_count + slice_index) * p->n_count + n_index];
  const int32_t buffer = npumm_buffer_of(work, slice);
  report->n_index = n_index;
  report->slice_index = slice_index;
  const rknn_tensor_mem *b_memory = p->b_memories[(int64_t)slice->tiles * p->n_count + n_index];
  const int64_t macs = p->m_ranges[work->m_index].length * slice->k.length * p->n_ranges[n_index].length;
  const int64_t begun = npumm_profile_begin();
  const int code = npumm_multiply_tile(p->on_cpu, shape, p->m_ranges[work->m_index].length * p->row_images,
                                       p->a_memories[buffer], b_memory, p->c_memories[p->tile_cores[n_index]]);
  npumm_profile_end(begun, NPUMM_SPAN_MULTIPLY, p->number, report->core, (int64_t)b_memory->size, code ? 0 : macs);
  if (code) return npumm_fail(report, NPUMM_STEP_RUN, code);
  report->cpu_macs += (uint64_t)macs;
  return store(work, report, shape, n_index, slice_index, buffer);
}

/*
 * Wait for the turn to run, and hold it. Who waits is in the runtime as far as giving up goes, since it does not come back
 * before the run that it waits for. Other than 0 where there is nothing to run any more: NPUMM_GIVEN_UP or
 * NPUMM_INTERRUPTED.
 */
static int take_turn(const npumm_work *work) {
  if (!work->turn) return 0;
  npumm_crew_depart();
  pthread_mutex_lock(work->turn);
  const int code = npumm_crew_return() ? NPUMM_GIVEN_UP : npumm_work_is_over(work) ? NPUMM_INTERRUPTED : 0;
  if (code) pthread_mutex_unlock(work->turn);
  return code;
}

int npumm_run_tile(const npumm_work *work, npumm_report *report, int32_t n_index, int32_t slice_index) {
  const npumm_placed_matmul *p = work->placed;
  if (p->on_cpu) return compute_tile(work, report, n_index, slice_index);
  const npumm_slice *slice = &p->slices[slice_index];
  npumm_shape *shape = p->shapes[((int64_t)work->m_index * p->slice_count + slice_index) * p->n_count + n_index];
  const int32_t buffer = npumm_buffer_of(work, slice);
  rknn_tensor_mem *b_memory = p->b_memories[(int64_t)slice->tiles * p->n_count + n_index];
  rknn_tensor_mem *a_memory = work->call->a_bound ? work->call->a_bound[work->m_index] : p->a_memories[buffer];
  npumm_deferred *deferred = slice_index == p->slice_count - 1 ? work->call->out_deferred : NULL;
  const npumm_bound *bound = work->call->out_bound;
  rknn_tensor_mem *c_memory = bound      ? bound->parts[work->m_index]
                              : deferred ? deferred->memories[(int64_t)work->m_index * p->n_count + n_index]
                                         : p->c_memories[p->tile_cores[n_index]];
  report->n_index = n_index;
  report->slice_index = slice_index;
  int code = select_shape(p, report, shape);
  if (code) return code;
  /* set_io_mem again after every update of A, and for B because the context is shared by many weights (facts 7.2) */
  if ((code = bind(p, report, NPUMM_STEP_BIND_A, shape, a_memory, &shape->io_attr.A))) return code;
  if ((code = bind(p, report, NPUMM_STEP_BIND_B, shape, b_memory, &shape->io_attr.B))) return code;
  if ((code = bind(p, report, NPUMM_STEP_BIND_C, shape, c_memory, &shape->io_attr.C))) return code;
  code = take_turn(work);
  if (code)
    return code == NPUMM_INTERRUPTED ? 0 : npumm_fail(report, NPUMM_STEP_RUN, code); /* the work ends as it is */
  report->run_calls++;
  const int64_t begun = npumm_profile_begin();
  npumm_crew_depart();
  code = p->runtime->run(shape->context->handle);
  if (work->turn) pthread_mutex_unlock(work->turn);
  if (npumm_crew_return()) return npumm_fail(report, NPUMM_STEP_RUN, NPUMM_GIVEN_UP);
  const int64_t macs = p->m_ranges[work->m_index].length * slice->k.length * p->n_ranges[n_index].length;
  const rknn_matmul_io_attr *io = &shape->io_attr;
  npumm_profile_end(begun, NPUMM_SPAN_RUN, p->number, report->core, (int64_t)io->A.size + io->B.size + io->C.size,
                    code ? 0 : macs);
  if (code) return break_context(shape->context, report, NPUMM_STEP_RUN, code);
  report->macs += (uint64_t)macs;
  if (bound) return 0; /* its allocation is synchronised once, in the end */
  /* whether run makes C visible to the CPU by itself is open (Q15): synchronising it once more does no harm */
  code = npumm_sync(p, report, NPUMM_STEP_SYNC_C, shape->context, c_memory, RKNN_MEMORY_SYNC_FROM_DEVICE);
  return code || deferred ? code : store(work, report, shape, n_index, slice_index, buffer);
}
