/* Randomized Hadamard transform of rows, in place or into scratch, ahead of packing. */
#include <string.h>

#include "hadamard.h"
#include "npumatmul_kernels.h"
#include "rows.h"
#include "tiling.h"

/* Each has the instructions of the rows' kernels. */
static const npumm_hadamard_kernels *beside(const npumm_row_kernels *rows) {
#if defined(__x86_64__)
  if (rows == &npumm_rows_avx512) return &npumm_hadamard_avx512;
  if (rows == &npumm_rows_avx2) return &npumm_hadamard_avx2;
#elif defined(__aarch64__)
  if (rows == &npumm_rows_neon) return &npumm_hadamard_neon;
#endif
  return &npumm_hadamard_scalar;
}

const npumm_hadamard_kernels *npumm_hadamard_at(int index) {
  const npumm_row_kernels *rows = npumm_rows_at(index);
  return rows ? beside(rows) : NULL;
}

const npumm_hadamard_kernels *npumm_hadamard_here(void) { return beside(npumm_rows()); }

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

static void mix(const npumm_hadamard_kernels *kernels, int is_known, const uint8_t *codes, int64_t order, float *x,
                int64_t stride) {
  if (is_known) kernels->known(order, x, stride);
  else kernels->dense(codes, order, x, stride);
}

/* The same where neighbours are `inner` 4 or 8, and whole rows of columns follow each other. */
static void move_pieces(float *x, float *row, int64_t order, int64_t inner, int back) {
  const int64_t piece = inner * (int64_t)sizeof *x, beside = NPUMM_LANES * (int64_t)sizeof *x;
  const npumm_pieces there = {piece, NPUMM_LANES / inner, order, order * piece, beside};
  const npumm_pieces again = {piece, order, NPUMM_LANES / inner, beside, order * piece};
  if (back) npumm_rows()->pieces(&again, (const char *)x, (char *)row, 0);
  else npumm_rows()->pieces(&there, (const char *)row, (char *)x, 0);
}

/*
 * One dense factor over a row: elements that the factor mixes stand `inner` apart. NPUMM_LANES columns of such elements
 * are taken at a time: where they stand, if they are neighbours, or gathered.
 */
static void dense_factor(const npumm_hadamard_kernels *kernels, const uint8_t *codes, int64_t order, int64_t inner,
                         float *row, int64_t features) {
  const uint8_t *compiled = npumm_known_codes(order);
  const int is_known = compiled && memcmp(codes, compiled, (size_t)(order * order / 4)) == 0;
  _Alignas(64) float x[NPUMM_HADAMARD_ORDER * NPUMM_LANES];
  const int64_t columns = features / order;
  for (int64_t first = 0; first < columns; first += NPUMM_LANES) {
    const int count = columns - first < NPUMM_LANES ? (int)(columns - first) : NPUMM_LANES;
    if (inner % NPUMM_LANES == 0) { /* which divides the columns, too */
      mix(kernels, is_known, codes, order, row + first / inner * (order * inner) + first % inner, inner);
      continue;
    }
    if ((inner == 4 || inner == 8) && count == NPUMM_LANES) {
      float *at = row + first * order;
      move_pieces(x, at, order, inner, 0);
      mix(kernels, is_known, codes, order, x, NPUMM_LANES);
      move_pieces(x, at, order, inner, 1);
      continue;
    }
    const int piece = count < NPUMM_LANES ? 1 : inner % 8 == 0 ? 8 : inner % 4 == 0 ? 4 : 1;
    float *at[NPUMM_LANES];
    for (int lane = 0; lane < count; lane += piece) {
      at[lane] = row + (first + lane) / inner * (order * inner) + (first + lane) % inner;
    }
    if (count < NPUMM_LANES) memset(x, 0, sizeof x);
    move(x, at, order, inner, piece, count, 0);
    mix(kernels, is_known, codes, order, x, NPUMM_LANES);
    move(x, at, order, inner, piece, count, 1);
  }
}

/* A row divided, scaled and mixed by the power of two, one rounding each. */
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
  kernels->power(row, how->prescale, dst, n, how->power);
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
    for (int32_t i = how->dense_count - 1; i >= 0; i--) {
      dense_factor(kernels, how->codes[i], how->order[i], inner, row, n);
      inner *= how->order[i];
    }
  }
  return NPUMM_OK;
}
