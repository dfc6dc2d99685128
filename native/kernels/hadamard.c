/* Randomized Hadamard transform of rows, in place or into scratch, ahead of packing. */
#include <string.h>

#include "hadamard.h"
#include "npumatmul_kernels.h"
#include "rows.h"
#include "tiling.h"

const npumm_hadamard_kernels *npumm_hadamard_here(void) {
#if defined(__x86_64__)
  const int has_both = npumm_rows() != &npumm_rows_scalar && __builtin_cpu_supports("fma");
  return has_both ? &npumm_hadamard_avx2 : &npumm_hadamard_scalar;
#elif defined(__aarch64__)
  return &npumm_hadamard_neon;
#else
  return &npumm_hadamard_scalar;
#endif
}

/* Product of all factors: the extent that is mixed; 0 where something is wrong with them. */
static int64_t block_of(const npumm_hadamard *how) {
  int64_t block = how->power;
  if (how->power < 1 || how->power > NPUMM_MAX_EXTENT || (how->power & (how->power - 1))) return 0;
  if (how->dense_count < 0 || how->dense_count > NPUMM_HADAMARD_DENSE) return 0;
  for (int32_t i = 0; i < how->dense_count; i++) {
    if (how->order[i] < 4 || how->order[i] > NPUMM_HADAMARD_ORDER || how->order[i] % 4 || !how->codes[i]) return 0;
    block *= how->order[i];
    if (block > NPUMM_MAX_EXTENT) return 0;
  }
  return block;
}

/* Columns between a row, where neighbours stand in pieces, and NPUMM_LANES of them side by side. */
static inline void move_columns(float *x, float *const *at, int64_t order, int64_t inner, const int piece, int count,
                                const int back) {
  const size_t bytes = (size_t)piece * sizeof *x;
  for (int64_t j = 0; j < order; j++, x += NPUMM_LANES) {
    for (int lane = 0; lane < count; lane += piece) {
      if (back) memcpy(at[lane] + j * inner, x + lane, bytes);
      else memcpy(x + lane, at[lane] + j * inner, bytes);
    }
  }
}

/* The usual pieces are moved by as many instructions. */
static void move(float *x, float *const *at, int64_t order, int64_t inner, int piece, int count, const int back) {
  if (piece == 8) move_columns(x, at, order, inner, 8, NPUMM_LANES, back);
  else if (piece == 4) move_columns(x, at, order, inner, 4, NPUMM_LANES, back);
  else move_columns(x, at, order, inner, 1, count, back);
}

/*
 * One dense factor over a row: elements that the factor mixes stand `inner` apart. NPUMM_LANES columns of such elements
 * are taken at a time: where they stand, if they are neighbours, or gathered.
 */
static void dense_factor(const npumm_hadamard_kernels *kernels, const uint8_t *codes, int64_t order, int64_t inner,
                         float *row, int64_t features) {
  float x[NPUMM_HADAMARD_ORDER * NPUMM_LANES];
  const int64_t columns = features / order;
  for (int64_t first = 0; first < columns; first += NPUMM_LANES) {
    const int count = columns - first < NPUMM_LANES ? (int)(columns - first) : NPUMM_LANES;
    if (inner % NPUMM_LANES == 0) { /* which divides the columns, too */
      kernels->dense(codes, order, row + first / inner * (order * inner) + first % inner, inner);
      continue;
    }
    const int piece = count < NPUMM_LANES ? 1 : inner % 8 == 0 ? 8 : inner % 4 == 0 ? 4 : 1;
    float *at[NPUMM_LANES];
    for (int lane = 0; lane < count; lane += piece) {
      at[lane] = row + (first + lane) / inner * (order * inner) + (first + lane) % inner;
    }
    if (count < NPUMM_LANES) memset(x, 0, sizeof x);
    move(x, at, order, inner, piece, count, 0);
    kernels->dense(codes, order, x, NPUMM_LANES);
    move(x, at, order, inner, piece, count, 1);
  }
}

/* A row divided and scaled, one rounding each. */
static void read_row(const npumm_hadamard_kernels *kernels, const npumm_hadamard *how, const char *src,
                     int64_t col_stride, float *dst) {
  const int64_t n = how->features;
  const float *row = (const float *)(const void *)src;
  if (col_stride != (int64_t)sizeof(float) || (uintptr_t)src % sizeof(float)) {
    for (int64_t i = 0; i < n; i++) memcpy(&dst[i], src + i * col_stride, sizeof(float));
    row = dst;
  }
  if (how->divisor) {
    kernels->divide(row, how->divisor, dst, n);
    row = dst;
  }
  if (how->prescale || row != dst) kernels->scale(row, how->prescale, dst, n);
}

int npumm_hadamard_rows(const npumm_hadamard *how, const void *src, int64_t rows, int64_t src_row_stride,
                        int64_t src_col_stride, float *dst, int64_t dst_row_stride) {
  if (!how || rows < 0 || rows > NPUMM_MAX_EXTENT) return NPUMM_BAD_ARGUMENT;
  const int64_t block = block_of(how), n = how->features;
  if (block == 0 || n < 1 || n > NPUMM_MAX_EXTENT || n % block) return NPUMM_BAD_ARGUMENT;
  if (rows == 0) return NPUMM_OK;
  const int64_t unit = (int64_t)sizeof(float);
  if (!src || !dst || (uintptr_t)dst % sizeof(float) || dst_row_stride % unit) return NPUMM_BAD_ARGUMENT;
  if (rows > 1 && dst_row_stride < n * unit) return NPUMM_BAD_ARGUMENT;
  const npumm_hadamard_kernels *kernels = npumm_hadamard_here();
  for (int64_t r = 0; r < rows; r++) {
    float *row = dst + r * (dst_row_stride / unit);
    read_row(kernels, how, (const char *)src + r * src_row_stride, src_col_stride, row);
    int64_t inner = how->power;
    if (how->power > 1) kernels->power(row, n, how->power);
    for (int32_t i = how->dense_count - 1; i >= 0; i--) {
      dense_factor(kernels, how->codes[i], how->order[i], inner, row, n);
      inner *= how->order[i];
    }
  }
  return NPUMM_OK;
}
