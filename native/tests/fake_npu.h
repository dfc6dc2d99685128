/* For tests of the executor: a runtime that multiplies plain int8 matrices, and matmuls of any extents placed on it. */
#ifndef FAKE_NPU_H
#define FAKE_NPU_H

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "count.h"
#include "npumatmul_executor.h"

static uint32_t state = 99;
static inline int within(int low, int high) {
  state = state * 1664525u + 1013904223u;
  return low + (int)((state ^ (state >> 15)) % (uint32_t)(high - low + 1));
}

/* ---- a runtime ------------------------------------------------------------------------------------------------------- */

enum { CONTEXTS = 16 };

typedef struct {
  int dynamic, m, k, n; /* of a dynamic one, of the shape that is selected */
  rknn_tensor_mem *bound[3];
  atomic_int busy;
} fake_context;

static fake_context contexts[CONTEXTS];
static atomic_int calls, fail_at = -1, at_work, clashes, failures_seen;

/* Every call: counted, failing where it is told to, and seen when two threads use one context. */
static inline int enter(rknn_matmul_ctx ctx) {
  atomic_fetch_add(&at_work, 1);
  if (atomic_exchange(&contexts[ctx].busy, 1)) atomic_fetch_add(&clashes, 1);
  if (atomic_fetch_add(&calls, 1) != atomic_load(&fail_at)) return 0;
  atomic_fetch_add(&failures_seen, 1);
  return RKNN_ERR_TIMEOUT;
}

static inline int leave(rknn_matmul_ctx ctx, int code) {
  atomic_store(&contexts[ctx].busy, 0);
  atomic_fetch_sub(&at_work, 1);
  return code;
}

static inline int fake_set_io_mem(rknn_matmul_ctx ctx, rknn_tensor_mem *memory, rknn_matmul_tensor_attr *attr) {
  const int code = enter(ctx);
  const int which = attr->name[0] - 'A';
  if (!code) contexts[ctx].bound[which] = memory;
  return leave(ctx, contexts[ctx].dynamic && !contexts[ctx].m ? RKNN_ERR_CTX_INVALID : code);
}

static inline int fake_set_dynamic_shape(rknn_matmul_ctx ctx, rknn_matmul_shape *shape) {
  const int code = enter(ctx);
  fake_context *context = &contexts[ctx];
  if (!code) {
    context->m = shape->M;
    memset(context->bound, 0, sizeof context->bound);
    if (shape->K != context->k || shape->N != context->n) return leave(ctx, RKNN_ERR_PARAM_INVALID);
  }
  return leave(ctx, code);
}

/* C = A x B, all plain: int8, int8, int32. */
static inline int fake_run(rknn_matmul_ctx ctx) {
  const int code = enter(ctx);
  const fake_context *context = &contexts[ctx];
  for (int i = 0; i < 3; i++) {
    if (!context->bound[i]) return leave(ctx, RKNN_ERR_FAIL);
  }
  if (code) return leave(ctx, code);
  const int8_t *a = context->bound[0]->virt_addr, *b = context->bound[1]->virt_addr;
  int32_t *c = context->bound[2]->virt_addr;
  for (int m = 0; m < context->m; m++) {
    for (int n = 0; n < context->n; n++) {
      int32_t sum = 0;
      for (int k = 0; k < context->k; k++) sum += a[m * context->k + k] * b[k * context->n + n];
      c[m * context->n + n] = sum;
    }
  }
  return leave(ctx, 0);
}

static inline int fake_sync(rknn_context ctx, rknn_tensor_mem *memory, rknn_mem_sync_mode mode) {
  const int code = enter(ctx);
  return leave(ctx, memory && mode ? code : RKNN_ERR_PARAM_INVALID);
}

static const npumm_runtime runtime = {fake_set_io_mem, fake_run, fake_sync, fake_set_dynamic_shape};

static inline rknn_tensor_mem *new_memory(size_t bytes) {
  rknn_tensor_mem *memory = calloc(1, sizeof *memory);
  if (!memory || !(memory->virt_addr = calloc(1, bytes))) abort();
  memory->size = (uint32_t)bytes;
  return memory;
}

static inline void free_memory(rknn_tensor_mem *memory) {
  free(memory->virt_addr);
  free(memory);
}

/* ---- one matmul --------------------------------------------------------------------------------------------------------- */

enum { M_MOST = 80, K_MOST = 60, N_MOST = 60, RANGES = 6, SLICES = 5, TILES = 5, BUFFERS = 3, CORES = 4 };

typedef struct {
  int m, k, n, tile; /* all tiles of N and slices of K are equally long but the last */
  int8_t a[M_MOST][K_MOST], b[K_MOST][N_MOST];
  float bias[N_MOST];
  npumm_range m_ranges[RANGES], n_ranges[TILES];
  npumm_slice slices[SLICES];
  int32_t tile_cores[TILES], range_cores[RANGES];
  npumm_context handles[CONTEXTS];
  npumm_shape shapes[RANGES * SLICES * TILES], *shape_pointers[RANGES * SLICES * TILES];
  rknn_tensor_mem *a_memories[CORES * BUFFERS], *c_memories[CORES], *b_memories[SLICES * TILES];
  float scales[SLICES][N_MOST];
  npumm_placed_matmul placed;
} example;

/* Most slices of K and tiles of N that examples have. */
static int slices_most = SLICES, tiles_most = TILES;

static inline int cut(npumm_range *ranges, int most, int extent, int *length) {
  int count = within(1, most);
  *length = (extent + count - 1) / count;
  count = (extent + *length - 1) / *length;
  for (int i = 0; i < count; i++) {
    ranges[i].start = (int64_t)i * *length;
    ranges[i].length = extent - i * *length < *length ? extent - i * *length : *length;
  }
  return count;
}

/* An example of m x k x n on contexts from `base` on. */
static inline void build_sized(example *e, int base, int m, int k, int n, int dynamic, int cores, int scaled_each) {
  memset(e, 0, sizeof *e);
  e->m = m, e->k = k, e->n = n;
  for (int i = 0; i < M_MOST * K_MOST; i++) e->a[i / K_MOST][i % K_MOST] = (int8_t)within(-128, 127);
  for (int i = 0; i < K_MOST * N_MOST; i++) e->b[i / N_MOST][i % N_MOST] = (int8_t)within(-128, 127);
  int rows, depth;
  npumm_range k_ranges[SLICES];
  npumm_placed_matmul *p = &e->placed;
  p->m_count = cut(e->m_ranges, RANGES, e->m, &rows);
  p->slice_count = cut(k_ranges, slices_most, e->k, &depth);
  p->n_count = cut(e->n_ranges, tiles_most, e->n, &e->tile);
  p->core_count = cores;
  p->a_count = within(1, BUFFERS);
  p->runtime = &runtime;
  p->activation.conversion = NPUMM_COPY_8;
  p->c_type = NPUMM_C_INT32;
  p->row_images = 1;
  p->common_scale = !scaled_each;
  for (int i = 0; i < p->slice_count; i++) {
    e->slices[i].k = k_ranges[i];
    e->slices[i].tiles = i;
    for (int c = 0; c < e->n; c++) e->scales[i][c] = (float)within(1, 16) / 4;
    e->slices[i].column_scale = scaled_each ? e->scales[i] : NULL;
    for (int t = 0; t < p->n_count; t++) {
      rknn_tensor_mem *b = new_memory((size_t)depth * (size_t)e->tile);
      for (int row = 0; row < e->slices[i].k.length; row++) {
        memcpy((int8_t *)b->virt_addr + row * e->tile, &e->b[k_ranges[i].start + row][e->n_ranges[t].start],
               (size_t)e->n_ranges[t].length);
      }
      e->b_memories[i * p->n_count + t] = b;
    }
  }
  for (int t = 0; t < p->n_count; t++) e->tile_cores[t] = t % cores;
  for (int i = 0; i < CORES * BUFFERS; i++) e->a_memories[i] = new_memory((size_t)rows * (size_t)depth);
  for (int i = 0; i < CORES; i++) e->c_memories[i] = new_memory((size_t)rows * (size_t)e->tile * 4);
  for (int core = 0; core < cores; core++) {
    fake_context *context = &contexts[base + core];
    context->dynamic = dynamic;
    context->m = dynamic ? 0 : rows;
    context->k = depth;
    context->n = e->tile;
    e->handles[core] = (npumm_context){(rknn_matmul_ctx)(base + core), dynamic, 0, 0};
  }
  for (int i = 0; i < p->m_count * p->slice_count * p->n_count; i++) {
    npumm_shape *shape = &e->shapes[i];
    const int64_t length = e->m_ranges[i / (p->slice_count * p->n_count)].length;
    shape->context = &e->handles[e->tile_cores[i % p->n_count]];
    shape->padded_m = dynamic ? (int32_t)length : rows;
    shape->padded_k = depth, shape->padded_n = e->tile;
    shape->io_attr.A.name[0] = 'A', shape->io_attr.B.name[0] = 'B', shape->io_attr.C.name[0] = 'C';
    e->shape_pointers[i] = shape;
  }
  p->m_ranges = e->m_ranges, p->n_ranges = e->n_ranges, p->slices = e->slices, p->tile_cores = e->tile_cores;
  p->a_memories = e->a_memories, p->c_memories = e->c_memories, p->b_memories = e->b_memories;
  p->shapes = e->shape_pointers;
}

static inline void build(example *e, int dynamic, int cores, int scaled_each) {
  const int m = within(1, M_MOST), k = within(1, K_MOST), n = within(cores, N_MOST);
  build_sized(e, 0, m, k, n, dynamic, cores, scaled_each);
}

/* Have cores share rows: ranges that follow each other, some cores have none. Some of them take turns. */
static inline void share_rows(example *e) {
  npumm_placed_matmul *p = &e->placed;
  const int shapes = p->slice_count * p->n_count;
  for (int r = 0, core = 0; r < p->m_count; r++) {
    e->range_cores[r] = core = within(core, p->core_count - 1);
    for (int i = 0; i < shapes; i++) e->shapes[r * shapes + i].context = &e->handles[core];
  }
  p->tile_cores = NULL;
  p->range_cores = e->range_cores;
  p->turns = within(1, p->core_count);
  while (p->core_count % p->turns) p->turns--;
}

static inline void take_down(example *e) {
  for (int i = 0; i < e->placed.slice_count * e->placed.n_count; i++) free_memory(e->b_memories[i]);
  for (int i = 0; i < CORES * BUFFERS; i++) free_memory(e->a_memories[i]);
  for (int i = 0; i < CORES; i++) free_memory(e->c_memories[i]);
}

static inline double expected(const example *e, int m, int n) {
  double sum = 0;
  for (int s = 0; s < e->placed.slice_count; s++) {
    const npumm_slice *slice = &e->slices[s];
    double part = 0;
    for (int64_t k = slice->k.start; k < slice->k.start + slice->k.length; k++) part += e->a[m][k] * e->b[k][n];
    sum += part * (slice->column_scale ? (double)slice->column_scale[n] : 1.0);
  }
  return sum;
}

#endif
