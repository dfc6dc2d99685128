/* Runs a placed matmul on one NPU core in the caller's thread. See npumatmul_executor.h. */
#include "npumatmul_executor.h"

#include <stddef.h>
#include <stdlib.h>

#include "../kernels/tiling.h"

/* The state of one call: what does not change from tile to tile. */
typedef struct {
  const npumm_placed_matmul *placed;
  const char *a;
  int64_t a_row_stride, a_col_stride;
  char *out;
  int64_t out_row_stride;
  float *row_scale;         /* by which a row of A is multiplied (float16) or divided (int8) when it is packed */
  double *row_factor;       /* by which that row of the result is multiplied; NULL where all are 1 */
  double *row_factor_store;
  npumm_report *report;
} call;

static int fail(call *c, npumm_step step, int code) {
  c->report->step = step;
  c->report->code = code;
  return code;
}

static int64_t extent(const npumm_range *ranges, int32_t count) {
  return count ? ranges[count - 1].start + ranges[count - 1].length : 0;
}

static void *data_of(const rknn_tensor_mem *memory) {
  return (char *)memory->virt_addr + memory->offset; /* facts 1.3: data starts at virt_addr + offset */
}

static npumm_tiling matrix_tiling(int64_t rows, int64_t cols, int64_t padded_rows, int64_t padded_cols, int32_t group) {
  const npumm_tiling tiling = {rows, cols, padded_rows, padded_cols, padded_rows, group ? group : padded_cols};
  return tiling;
}

static int sync(call *c, npumm_step step, rknn_matmul_ctx handle, rknn_tensor_mem *memory, rknn_mem_sync_mode mode) {
  if (!c->placed->runtime->mem_sync) return 0; /* 1.5.2 has no such function and keeps memory coherent by itself */
  c->report->mem_sync_calls++;
  const int code = c->placed->runtime->mem_sync(handle, memory, mode);
  return code == RKNN_SUCC ? 0 : fail(c, step, code);
}

static int bind(call *c, npumm_step step, rknn_matmul_ctx handle, rknn_tensor_mem *memory,
                rknn_matmul_tensor_attr *attr) {
  c->report->set_io_mem_calls++;
  const int code = c->placed->runtime->set_io_mem(handle, memory, attr);
  return code == RKNN_SUCC ? 0 : fail(c, step, code);
}

/* Scales of one range of rows, over the whole of K so that every K tile of a row shares them. */
static int scale_rows(call *c, const npumm_range *m, int64_t k) {
  const npumm_placed_matmul *p = c->placed;
  const float *rows = (const float *)(const void *)(c->a + m->start * c->a_row_stride);
  c->row_factor = NULL;
  if (p->a_scaling == NPUMM_ROWS_UNSCALED) return 0;
  if (p->a_scaling == NPUMM_ROWS_POWER_OF_TWO) {
    const int code = npumm_power_of_two_scales(rows, m->length, k, c->a_row_stride, c->a_col_stride, c->row_scale);
    if (code) return fail(c, NPUMM_STEP_PACK_A, code);
    for (int64_t r = 0; r < m->length; r++) {
      c->row_factor_store[r] = 1.0 / (double)c->row_scale[r];
      if (c->row_scale[r] != 1.0f) c->row_factor = c->row_factor_store;
    }
    return 0;
  }
  const int code = npumm_absmax_rows(rows, m->length, k, c->a_row_stride, c->a_col_stride, c->row_scale);
  if (code) return fail(c, NPUMM_STEP_PACK_A, code);
  for (int64_t r = 0; r < m->length; r++) {
    if (c->row_scale[r] < 0.0f) {
      c->report->row = m->start + r;
      return fail(c, NPUMM_STEP_PACK_A, NPUMM_NOT_FINITE);
    }
    const float scale = c->row_scale[r] / 127.0f;
    c->row_scale[r] = scale > 0.0f ? scale : 1.0f; /* a row of zeros (or of the tiniest subnormals) becomes zeros */
    c->row_factor_store[r] = (double)c->row_scale[r];
  }
  c->row_factor = c->row_factor_store;
  return 0;
}

static int pack_a(call *c, const npumm_range *m, const npumm_range *k, const npumm_context *context) {
  const npumm_placed_matmul *p = c->placed;
  const npumm_tiling tiling =
      matrix_tiling(m->length, k->length, context->padded_m, context->padded_k, context->a_group);
  const npumm_values values = {.conversion = p->a_conversion,
                               .row_scale = p->a_scaling == NPUMM_ROWS_UNSCALED ? NULL : c->row_scale};
  const int code = npumm_pack(&tiling, &values, c->a + m->start * c->a_row_stride + k->start * c->a_col_stride,
                              c->a_row_stride, c->a_col_stride, data_of(p->a_memory), (int64_t)p->a_memory->size);
  return code ? fail(c, NPUMM_STEP_PACK_A, code) : 0;
}

static int store_c(call *c, const npumm_range *m, const npumm_range *n, const npumm_context *context, int first,
                   int last) {
  const npumm_placed_matmul *p = c->placed;
  const npumm_tiling tiling =
      matrix_tiling(m->length, n->length, context->padded_m, context->padded_n, context->c_group);
  const float *columns = last && p->column_scale ? p->column_scale + n->start : NULL;
  const int code = npumm_store(&tiling, p->c_type, data_of(p->c_memory), (int64_t)p->c_memory->size, first,
                               last ? c->row_factor : NULL, columns,
                               c->out + m->start * c->out_row_stride + n->start * 4, c->out_row_stride);
  return code ? fail(c, NPUMM_STEP_STORE_C, code) : 0;
}

/* One run of the NPU: A is packed and synchronised already. */
static int run_tile(call *c, npumm_context *context, rknn_tensor_mem *b_memory) {
  const npumm_placed_matmul *p = c->placed;
  int code;
  /* set_io_mem again after every update of A, and for B because the context is shared by many weights (facts 7.2) */
  if ((code = bind(c, NPUMM_STEP_BIND_A, context->handle, p->a_memory, &context->io_attr.A))) return code;
  if ((code = bind(c, NPUMM_STEP_BIND_B, context->handle, b_memory, &context->io_attr.B))) return code;
  if ((code = bind(c, NPUMM_STEP_BIND_C, context->handle, p->c_memory, &context->io_attr.C))) return code;
  c->report->run_calls++;
  if ((code = p->runtime->run(context->handle))) return fail(c, NPUMM_STEP_RUN, code);
  return sync(c, NPUMM_STEP_SYNC_C, context->handle, p->c_memory, RKNN_MEMORY_SYNC_FROM_DEVICE);
}

static int run_rows(call *c, int32_t m_index) {
  const npumm_placed_matmul *p = c->placed;
  const npumm_range *m = &p->m_ranges[m_index];
  int code = scale_rows(c, m, extent(p->k_ranges, p->k_count));
  for (int32_t k_index = 0; !code && k_index < p->k_count; k_index++) {
    const npumm_range *k = &p->k_ranges[k_index];
    npumm_context *const *contexts = p->contexts + ((int64_t)m_index * p->k_count + k_index) * p->n_count;
    c->report->k_index = k_index;
    code = pack_a(c, m, k, contexts[0]); /* all N tiles of a row of tiles share M, K and so the image of A */
    if (!code) code = sync(c, NPUMM_STEP_SYNC_A, contexts[0]->handle, p->a_memory, RKNN_MEMORY_SYNC_TO_DEVICE);
    for (int32_t n_index = 0; !code && n_index < p->n_count; n_index++) {
      c->report->n_index = n_index;
      code = run_tile(c, contexts[n_index], p->b_memories[(int64_t)k_index * p->n_count + n_index]);
      if (code) break;
      c->report->macs += (uint64_t)(m->length * k->length * p->n_ranges[n_index].length);
      code = store_c(c, m, &p->n_ranges[n_index], contexts[n_index], k_index == 0, k_index == p->k_count - 1);
    }
  }
  return code;
}

int npumm_execute(const npumm_placed_matmul *placed, const void *a, int64_t a_row_stride, int64_t a_col_stride,
                  void *out, int64_t out_row_stride, npumm_report *report) {
  if (!report) return NPUMM_BAD_ARGUMENT;
  const npumm_report nothing_done = {NPUMM_STEP_NONE, 0, 0, 0, 0, 0, 0, 0, 0};
  *report = nothing_done;
  call c = {.placed = placed, .a = a, .a_row_stride = a_row_stride, .a_col_stride = a_col_stride,
            .out = out, .out_row_stride = out_row_stride, .report = report};
  if (!placed || !placed->runtime || !placed->runtime->run || !placed->runtime->set_io_mem || !a || !out ||
      !placed->a_memory || !placed->c_memory || !placed->contexts || !placed->b_memories ||
      (placed->a_scaling != NPUMM_ROWS_UNSCALED && (placed->a_conversion != NPUMM_F32_TO_F16) &&
       (placed->a_conversion != NPUMM_F32_TO_I8))) {
    return fail(&c, NPUMM_STEP_ARGUMENTS, NPUMM_BAD_ARGUMENT);
  }
  int64_t longest = 0;
  for (int32_t i = 0; i < placed->m_count; i++) {
    longest = placed->m_ranges[i].length > longest ? placed->m_ranges[i].length : longest;
  }
  if (placed->a_scaling != NPUMM_ROWS_UNSCALED && longest > 0) {
    c.row_scale = malloc((size_t)longest * sizeof *c.row_scale);
    c.row_factor_store = malloc((size_t)longest * sizeof *c.row_factor_store);
    if (!c.row_scale || !c.row_factor_store) {
      free(c.row_scale);
      free(c.row_factor_store);
      return fail(&c, NPUMM_STEP_ARGUMENTS, NPUMM_NO_MEMORY);
    }
  }
  int code = 0;
  for (int32_t m_index = 0; !code && m_index < placed->m_count; m_index++) {
    report->row = placed->m_ranges[m_index].start;
    code = run_rows(&c, m_index);
  }
  free(c.row_scale);
  free(c.row_factor_store);
  return code;
}
