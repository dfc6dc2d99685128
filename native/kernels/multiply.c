/* Products on the CPU with a native B: rows of A as the inner loops want them, then one column of tiles after another. */
#include <stdlib.h>
#include <string.h>

#include "multiply.h"
#include "npumatmul_kernels.h"
#include "tiling.h"

/* Rows that are made ready at once: B, which is read anew for each block of them, is worth it. */
enum { BLOCK_ROWS = 32 };

static int is_float(npumm_operands operands) { return operands >= NPUMM_F16_F16; }

static int has_int4_b(npumm_operands operands) {
  return operands == NPUMM_I8_I4 || operands == NPUMM_I4_I4 || operands == NPUMM_F16_I4;
}

static int64_t b_bits(npumm_operands operands) { return has_int4_b(operands) ? 4 : operands == NPUMM_F16_F16 ? 16 : 8; }

static int is_valid(const npumm_native_b *of, int64_t rows, const void *a, const void *b, const void *c) {
  if (!of || !a || !b || !c || rows < 0 || rows > NPUMM_MAX_EXTENT) return 0;
  if (of->operands < NPUMM_I8_I8 || of->operands > NPUMM_F16_I4) return 0;
  const int64_t n_step = is_float(of->operands) ? 8 : 16;
  const int64_t k_step = is_float(of->operands) && !has_int4_b(of->operands) ? 16 : 32;
  return of->tile_n > 0 && of->tile_k > 0 && of->tile_n % n_step == 0 && of->tile_k % k_step == 0 && of->k >= 0 &&
         of->n >= 0 && of->k <= NPUMM_MAX_EXTENT && of->n <= NPUMM_MAX_EXTENT && of->k % of->tile_k == 0 &&
         of->n % of->tile_n == 0;
}

/* Pairs of int4 to int8, in the order in which they stand. */
static void widen_pairs(const uint8_t *pairs, int high_first, int8_t *out, int64_t count) {
  for (int64_t i = 0; i < count / 2; i++) {
    const int low = (int)((pairs[i] & 15) ^ 8) - 8, high = (int)(((pairs[i] >> 4) & 15) ^ 8) - 8;
    out[2 * i] = (int8_t)(high_first ? high : low);
    out[2 * i + 1] = (int8_t)(high_first ? low : high);
  }
}

/* Of every 32 places first the 16 whose partners in B stand in low halves, then the others. */
#define DEFINE_SPREAD(NAME, TYPE)                                                             \
  static void NAME(const TYPE *restrict row, int high_first, TYPE *restrict out, int64_t k) { \
    for (int64_t i = 0; i < k; i += 32) {                                                     \
      for (int64_t j = 0; j < 16; j++) {                                                      \
        out[i + j] = row[i + 2 * j + (high_first ? 1 : 0)];                                   \
        out[i + 16 + j] = row[i + 2 * j + (high_first ? 0 : 1)];                              \
      }                                                                                       \
    }                                                                                         \
  }
DEFINE_SPREAD(spread_bytes, int8_t)
DEFINE_SPREAD(spread_floats, float)

static int32_t sum_of(const int8_t *row, int64_t k) {
  uint32_t sum = 0;
  for (int64_t i = 0; i < k; i++) sum += (uint32_t)(int32_t)row[i];
  return (int32_t)sum;
}

/* Rows of A as the inner loops read them; memory for one row more is where they are made. */
static void ready_row(const npumm_multipliers *by, const npumm_native_b *of, const char *row, char *out, char *spare) {
  const int spreads = has_int4_b(of->operands);
  if (is_float(of->operands)) {
    by->halves_to_floats((const uint16_t *)(const void *)row, (float *)(void *)(spreads ? spare : out), of->k);
    if (spreads) { spread_floats((const float *)(const void *)spare, of->high_first, (float *)(void *)out, of->k); }
    return;
  }
  if (of->operands == NPUMM_I4_I4) {
    widen_pairs((const uint8_t *)row, of->high_first, (int8_t *)spare, of->k);
    row = spare;
  }
  spread_bytes((const int8_t *)row, of->high_first, (int8_t *)out, of->k);
}

/* All columns of tiles with a block of rows that are ready. */
static void multiply_block(const npumm_multipliers *by, const npumm_native_b *of, int64_t rows, const char *a,
                           int64_t a_stride, const int32_t *sums, const uint8_t *b, char *c, int64_t c_stride) {
  const int64_t column_bytes = of->k * of->tile_n * b_bits(of->operands) / 8;
  npumm_tile_column tiles = {b, of->k / of->tile_k, of->tile_n, of->tile_k};
  for (int64_t n = 0; n < of->n; n += of->tile_n, tiles.b += column_bytes) {
    if (is_float(of->operands)) {
      npumm_float_loop *loop = of->operands == NPUMM_F16_F16  ? by->f16
                               : of->operands == NPUMM_F16_I8 ? by->f16_i8
                                                              : by->f16_i4;
      loop((const float *)(const void *)a, a_stride / 4, rows, tiles, (float *)(void *)c + n, c_stride / 4);
    } else {
      npumm_int_loop *loop = has_int4_b(of->operands) ? by->i4 : by->i8;
      loop((const int8_t *)a, a_stride, sums, rows, tiles, (int32_t *)(void *)c + n, c_stride / 4);
    }
  }
}

static int multiply(const npumm_multipliers *by, const npumm_native_b *of, int64_t rows, const void *a,
                    int64_t a_row_stride, const void *b, void *c, int64_t c_row_stride) {
  if (!is_valid(of, rows, a, b, c) || c_row_stride % 4 != 0) return NPUMM_BAD_ARGUMENT;
  if (is_float(of->operands) && a_row_stride % 2 != 0) return NPUMM_BAD_ARGUMENT;
  if (rows == 0 || of->n == 0) return NPUMM_OK;
  /* one cache line more, so that rows of a power of two do not share their places in a cache */
  const int64_t ready_bytes = of->k * (is_float(of->operands) ? 4 : 1) + 64;
  const int64_t block = rows < BLOCK_ROWS ? rows : BLOCK_ROWS;
  const int as_it_is = of->operands == NPUMM_I8_I8; /* rows are read where they stand */
  char *made = as_it_is ? NULL : malloc((size_t)((block + 1) * ready_bytes));
  if (!made && !as_it_is) return NPUMM_NO_MEMORY;
  int32_t sums[BLOCK_ROWS];
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = rows - first < block ? rows - first : block;
    const char *own = (const char *)a + first * a_row_stride;
    for (int64_t r = 0; r < count; r++) {
      if (made) ready_row(by, of, own + r * a_row_stride, made + r * ready_bytes, made + block * ready_bytes);
      if (!is_float(of->operands)) {
        sums[r] = sum_of((const int8_t *)(made ? made + r * ready_bytes : own + r * a_row_stride), of->k);
      }
    }
    multiply_block(by, of, count, made ? made : own, made ? ready_bytes : a_row_stride, sums, b,
                   (char *)c + first * c_row_stride, c_row_stride);
  }
  free(made);
  return NPUMM_OK;
}

int npumm_multiply(const npumm_native_b *of, int64_t rows, const void *a, int64_t a_row_stride, const void *b, void *c,
                   int64_t c_row_stride) {
  return multiply(npumm_multipliers_best(), of, rows, a, a_row_stride, b, c, c_row_stride);
}

int npumm_multiply_by(int32_t set, const npumm_native_b *of, int64_t rows, const void *a, int64_t a_row_stride,
                      const void *b, void *c, int64_t c_row_stride) {
  const npumm_multipliers *by = npumm_multipliers_at(set);
  return by ? multiply(by, of, rows, a, a_row_stride, b, c, c_row_stride) : NPUMM_BAD_ARGUMENT;
}

const char *npumm_multiply_set(int32_t set) {
  const npumm_multipliers *by = npumm_multipliers_at(set);
  return by ? by->name : NULL;
}
