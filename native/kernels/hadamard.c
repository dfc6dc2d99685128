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
    if (how->order[i] < 1 || how->order[i] > NPUMM_HADAMARD_ORDER || !how->matrix[i]) return 0;
    block *= how->order[i];
    if (block > NPUMM_MAX_EXTENT) return 0;
  }
  return block;
}

/*
 * One dense factor over a row: elements that the factor mixes stand `inner` apart. Columns of such elements are taken
 * eight at a time.
 */
static void dense_factor(const npumm_hadamard_kernels *kernels, const float *matrix, int64_t order, int64_t inner,
                         float *row, int64_t features) {
  float in[NPUMM_HADAMARD_ORDER][NPUMM_LANES], out[NPUMM_HADAMARD_ORDER][NPUMM_LANES];
  const int64_t columns = features / order;
  for (int64_t first = 0; first < columns; first += NPUMM_LANES) {
    const int64_t count = columns - first < NPUMM_LANES ? columns - first : NPUMM_LANES;
    float *at[NPUMM_LANES];
    for (int64_t lane = 0; lane < count; lane++) {
      at[lane] = row + (first + lane) / inner * (order * inner) + (first + lane) % inner;
    }
    if (count == NPUMM_LANES && inner % NPUMM_LANES == 0) { /* then all eight are neighbours */
      for (int64_t j = 0; j < order; j++) memcpy(in[j], at[0] + j * inner, sizeof in[j]);
      kernels->dense(matrix, order, (const float(*)[NPUMM_LANES])in, out);
      for (int64_t j = 0; j < order; j++) memcpy(at[0] + j * inner, out[j], sizeof out[j]);
      continue;
    }
    if (count == NPUMM_LANES && inner % 4 == 0) { /* two times four neighbours */
      for (int64_t j = 0; j < order; j++) {
        memcpy(in[j], at[0] + j * inner, 4 * sizeof(float));
        memcpy(in[j] + 4, at[4] + j * inner, 4 * sizeof(float));
      }
      kernels->dense(matrix, order, (const float(*)[NPUMM_LANES])in, out);
      for (int64_t j = 0; j < order; j++) {
        memcpy(at[0] + j * inner, out[j], 4 * sizeof(float));
        memcpy(at[4] + j * inner, out[j] + 4, 4 * sizeof(float));
      }
      continue;
    }
    memset(in, 0, (size_t)order * sizeof in[0]);
    for (int64_t j = 0; j < order; j++) {
      for (int64_t lane = 0; lane < count; lane++) in[j][lane] = at[lane][j * inner];
    }
    kernels->dense(matrix, order, (const float(*)[NPUMM_LANES])in, out);
    for (int64_t j = 0; j < order; j++) {
      for (int64_t lane = 0; lane < count; lane++) at[lane][j * inner] = out[j][lane];
    }
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
      dense_factor(kernels, how->matrix[i], how->order[i], inner, row, n);
      inner *= how->order[i];
    }
  }
  return NPUMM_OK;
}
