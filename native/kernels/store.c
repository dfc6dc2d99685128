/* Tiles of C -> rows of the caller's matrix: corrections, sums over the slices, scales and epilogue in one pass. */
#include <stddef.h>
#include <string.h>

#include "epilogue.h"
#include "finish.h"
#include "npumatmul_store.h"
#include "rows.h"
#include "tiling.h"

/* A piece of a row while it is worked on. int32 sums wrap as the hardware's and numpy's do: unsigned makes that C. */
typedef union {
  uint32_t whole[NPUMM_BLOCK];
  int32_t integers[NPUMM_BLOCK];
  float floats[NPUMM_BLOCK];
} piece;

/* Rows of a native group that share a cache line or two. */
enum { ROWS_AT_ONCE = 8 };

static int is_float(npumm_result_type type) { return type == NPUMM_C_FLOAT32 || type == NPUMM_C_FLOAT16; }

/* Of the elements as they are stored. */
static int64_t bytes_needed(const npumm_tiling *tiling, npumm_result_type type) {
  switch (type) {
    case NPUMM_C_INT32:
    case NPUMM_C_FLOAT32:
      return npumm_packed_bytes(tiling, NPUMM_COPY_32);
    case NPUMM_C_INT16:
    case NPUMM_C_FLOAT16:
      return npumm_packed_bytes(tiling, NPUMM_COPY_16);
    case NPUMM_C_INT8:
      return npumm_packed_bytes(tiling, NPUMM_COPY_8);
  }
  return -1;
}

/* `n` elements of less than 4 bytes that stand side by side, widened. */
static void widen(npumm_result_type type, const void *src, int64_t offset, int64_t n, piece *into, int64_t at) {
  if (type == NPUMM_C_INT16) {
    const int16_t *values = (const int16_t *)src + offset;
    for (int64_t i = 0; i < n; i++) into->integers[at + i] = values[i];
  } else if (type == NPUMM_C_INT8) {
    const int8_t *values = (const int8_t *)src + offset;
    for (int64_t i = 0; i < n; i++) into->integers[at + i] = values[i];
  } else {
    npumm_finish()->from_f16((const uint16_t *)src + offset, n, into->floats + at);
  }
}

/* Columns c to c + n of some rows of C from row r on, into place `at` of each and those after it; rows of one tile. */
static void gather_pieces(const npumm_tiling *t, npumm_result_type type, const void *src, int64_t r, int64_t rows,
                          int64_t c, int64_t n, int64_t at, piece *into) {
  const int is_whole = type == NPUMM_C_INT32 || type == NPUMM_C_FLOAT32;
  for (npumm_walk walk = npumm_walk_row(t, r, c, n); walk.length > 0; npumm_walk_on(&walk)) {
    const int64_t done = at + n - walk.left;
    if (is_whole) {
      const uint32_t *from = (const uint32_t *)src + walk.offset;
      for (int64_t i = 0; i < rows; i++) npumm_copy(into[i].whole + done, from + i * t->tile_cols, walk.length * 4);
    } else {
      for (int64_t i = 0; i < rows; i++) widen(type, src, walk.offset + i * t->tile_cols, walk.length, &into[i], done);
    }
  }
}

/*
 * Columns c to c + n of some rows of C from row r on, gathered from their native groups: group by group, because rows of
 * one group share cache lines. The rows are those of one tile.
 */
static void gather(const npumm_tiling *t, npumm_result_type type, const void *src, int64_t r, int64_t rows, int64_t c,
                   int64_t n, piece *into) {
  const int is_whole = type == NPUMM_C_INT32 || type == NPUMM_C_FLOAT32;
  const int64_t group_bytes = t->tile_cols * 4, groups = n / t->tile_cols;
  if (is_whole && rows > 1 && groups > 0 && c % t->tile_cols == 0 && (group_bytes == 16 || group_bytes == 32)) {
    /* groups side by side become rows of groups: pieces of a line that change places */
    const npumm_pieces of = {group_bytes, groups, rows, t->tile_rows * group_bytes, (int64_t)sizeof *into};
    npumm_rows()->pieces(&of, (const char *)src + npumm_tiling_offset(t, r, c) * 4, (char *)into, 0);
    const int64_t done = groups * t->tile_cols;
    if (done < n) gather_pieces(t, type, src, r, rows, c + done, n - done, done, into);
    return;
  }
  gather_pieces(t, type, src, r, rows, c, n, 0, into);
}

/* A row of integers: both halves of it where it was split, less what the zero points make. */
static void complete(const npumm_tiling *t, const npumm_term *term, const void *src, int64_t rows, int64_t r, int64_t c,
                     int64_t n, piece *sums) {
  uint32_t *whole = sums->whole;
  if (term->row_images == 2) {
    piece low;
    gather(t, term->type, src, rows + r, 1, c, n, &low);
    /* NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): gather() filled n of them */
    for (int64_t i = 0; i < n; i++) whole[i] = 16u * whole[i] + low.whole[i];
  }
  if (term->row_zero && term->column_sums) {
    const uint32_t zero = (uint32_t)term->row_zero[r];
    for (int64_t i = 0; i < n; i++) whole[i] -= zero * (uint32_t)term->column_sums[c + i];
  }
  if (term->row_sum && term->column_zero) {
    const uint32_t sum = (uint32_t)term->row_sum[r];
    for (int64_t i = 0; i < n; i++) whole[i] -= sum * (uint32_t)term->column_zero[c + i];
  }
}

static int64_t bytes_written(const npumm_result *result) {
  return result->widen ? (int64_t)sizeof(float) : npumm_bytes_of(result->type);
}

/* Row r of the tile, which becomes row `at` of the result's memory. */
static void write_result(const npumm_result *result, int as_float, int64_t r, int64_t at, int64_t c, int64_t n,
                         piece *sums) {
  void *to = (char *)result->data + at * result->row_stride + c * bytes_written(result);
  if (result->type == NPUMM_INT32) {
    memcpy(to, sums->whole, (size_t)n * 4);
    return;
  }
  if (result->type == NPUMM_INT8) {
    int8_t *codes = to;
    for (int64_t i = 0; i < n; i++) codes[i] = (int8_t)sums->integers[i]; /* they were int8 before */
    return;
  }
  const npumm_epilogue *epilogue = result->epilogue;
  const double row = (result->row_factor ? result->row_factor[r] : 1.0) * (epilogue ? epilogue->scale : 1.0);
  const float *columns = result->column_scale ? result->column_scale + c : NULL;
  float values[NPUMM_BLOCK];
  float *finished = !epilogue && result->type == NPUMM_FLOAT32 ? to : values;
  if (!as_float) {
    npumm_finish()->scale_int32(sums->integers, n, row, columns, finished);
  } else if (columns || row != 1.0) {
    npumm_finish()->scale_float32(sums->floats, n, row, columns, finished);
  } else {
    memcpy(finished, sums->floats, (size_t)n * 4);
  }
  if (epilogue) npumm_epilogue_apply(epilogue, result->row + r, result->column + c, values, n);
  if (finished != values) return;
  if (!result->widen) {
    npumm_cast(values, n, result->type, to);
    return;
  }
  uint16_t halves[NPUMM_BLOCK];
  npumm_cast(values, n, result->type, halves);
  if (result->type == NPUMM_FLOAT16) npumm_finish()->from_f16(halves, n, to);
  else npumm_finish()->from_bf16(halves, n, to);
}

static int is_aligned(const void *data, int64_t row_stride, int64_t bytes) {
  return data && (uintptr_t)data % (uintptr_t)bytes == 0 && row_stride % bytes == 0;
}

static int arguments_are_valid(const npumm_term *term, int as_float, const npumm_partial *partial,
                               const npumm_result *result) {
  if (!partial && !result) return 0;
  if (partial && !is_aligned(partial->data, partial->row_stride, 4)) return 0;
  if (is_float(term->type) && (term->row_images != 1 || term->row_zero || term->row_sum)) return 0;
  if (!result) return 1;
  const int64_t bytes = bytes_written(result);
  if (result->widen && result->type != NPUMM_FLOAT16 && result->type != NPUMM_BFLOAT16) return 0;
  if (!bytes || !is_aligned(result->data, result->row_stride, bytes)) return 0;
  if ((result->type == NPUMM_INT32 || result->type == NPUMM_INT8) &&
      (as_float || result->row_factor || result->column_scale || result->epilogue)) {
    return 0;
  }
  if (result->type == NPUMM_INT8 &&
      (term->type != NPUMM_C_INT8 || term->row_images != 1 || term->row_zero || term->row_sum || partial)) {
    return 0;
  }
  return !result->epilogue || npumm_epilogue_is_valid(result->epilogue);
}

/* Columns c to c + n of row r, whose elements of C were gathered; it becomes row `at` of the result's memory. */
static void store_piece(const npumm_tiling *tiling, const npumm_term *term, const void *src, int64_t rows, int64_t r,
                        int64_t at, int64_t c, int64_t n, int as_float, const npumm_partial *partial,
                        const npumm_result *result, piece *sums) {
  char *before = partial ? (char *)partial->data + r * partial->row_stride + c * 4 : NULL;
  if (!is_float(term->type)) complete(tiling, term, src, rows, r, c, n, sums);
  if (as_float) {
    const float *columns = term->column_scale ? term->column_scale + c : NULL;
    const double row = term->row_factor ? term->row_factor[r] : 1.0;
    if (!is_float(term->type)) npumm_finish()->scale_int32(sums->integers, n, row, columns, sums->floats);
    else if (columns || row != 1.0) npumm_finish()->scale_float32(sums->floats, n, row, columns, sums->floats);
  }
  if (partial && partial->add) {
    piece earlier;
    memcpy(earlier.whole, before, (size_t)n * 4);
    if (as_float) npumm_finish()->add(sums->floats, earlier.floats, n);
    else
      for (int64_t i = 0; i < n; i++) sums->whole[i] += earlier.whole[i];
  }
  if (result) write_result(result, as_float, r, at, c, n, sums);
  else memcpy(before, sums->whole, (size_t)n * 4);
}

int npumm_store_rows(const npumm_tiling *tiling, const npumm_term *term, const void *src, int64_t src_bytes,
                     int64_t first, int64_t count, const npumm_partial *partial, const npumm_result *result) {
  if (!term || (term->row_images != 1 && term->row_images != 2)) return NPUMM_BAD_ARGUMENT;
  const int64_t needed = bytes_needed(tiling, term->type);
  /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): without a tiling the bytes are -1 */
  if (needed < 0 || !src || tiling->rows % term->row_images != 0) return NPUMM_BAD_ARGUMENT;
  if (src_bytes < needed) return NPUMM_BUFFER_TOO_SMALL;
  if (tiling->rows == 0 || tiling->cols == 0) return NPUMM_OK;
  const int as_float = is_float(term->type) || term->column_scale || term->row_factor || (partial && partial->as_float);
  if (!arguments_are_valid(term, as_float, partial, result)) return NPUMM_BAD_ARGUMENT;

  const int64_t rows = tiling->rows / term->row_images;
  if (first < 0 || count < 0 || first > rows - count) return NPUMM_BAD_ARGUMENT;
  piece sums[ROWS_AT_ONCE];
  for (int64_t r = first, at_once; r < first + count; r += at_once) {
    at_once = tiling->tile_rows - r % tiling->tile_rows;
    if (at_once > ROWS_AT_ONCE) at_once = ROWS_AT_ONCE;
    if (at_once > first + count - r) at_once = first + count - r;
    for (int64_t c = 0; c < tiling->cols; c += NPUMM_BLOCK) {
      const int64_t n = tiling->cols - c < NPUMM_BLOCK ? tiling->cols - c : NPUMM_BLOCK;
      gather(tiling, term->type, src, r, at_once, c, n, sums);
      for (int64_t i = 0; i < at_once; i++) {
        store_piece(tiling, term, src, rows, r + i, r + i - first, c, n, as_float, partial, result, &sums[i]);
      }
    }
  }
  return NPUMM_OK;
}

int npumm_store(const npumm_tiling *tiling, const npumm_term *term, const void *src, int64_t src_bytes,
                const npumm_partial *partial, const npumm_result *result) {
  const int64_t images = term && term->row_images == 2 ? 2 : 1;
  return npumm_store_rows(tiling, term, src, src_bytes, 0, tiling ? tiling->rows / images : 0, partial, result);
}
