/* Tiles of C -> rows of the caller's matrix: corrections, sums over the slices, scales and epilogue in one pass. */
#include <math.h>
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
    npumm_finish()->subtract(sums->integers, n, term->row_zero[r], term->column_sums + c);
  }
  if (term->row_sum && term->column_zero) {
    npumm_finish()->subtract(sums->integers, n, term->row_sum[r], term->column_zero + c);
  }
}

/*
 * The step that scales; none where nothing would change. Steps are written where they are read: a copy in longer pieces
 * than they were written in waits until those are in the cache.
 */
static void scaling(double row, const double *columns, int of_integers, npumm_steps *steps) {
  steps->row = row;
  steps->columns = columns || !(of_integers || row != 1.0) ? columns : npumm_no_scales;
  steps->bias = steps->factor = steps->summand = NULL;
  steps->function = NPUMM_IDENTITY;
  steps->low = -INFINITY, steps->high = INFINITY;
}

static int64_t bytes_written(const npumm_result *result) {
  return result->widen ? (int64_t)sizeof(float) : npumm_bytes_of(result->type);
}

/* What is done to columns c to c + n of row r on their way into the result. */
static void steps_of(const npumm_result *result, int of_integers, int64_t r, int64_t c, int64_t n,
                     const double *columns, npumm_widened *room, npumm_steps *steps) {
  const npumm_epilogue *epilogue = result->epilogue;
  const double row = (result->row_factor ? result->row_factor[r] : 1.0) * (epilogue ? epilogue->scale : 1.0);
  scaling(row, columns, of_integers, steps);
  if (epilogue) npumm_epilogue_steps(epilogue, result->row + r, result->column + c, n, room, steps);
}

static int overlaps(const float *one, const float *other, int64_t n) {
  return one && (uintptr_t)one < (uintptr_t)(other + n) && (uintptr_t)other < (uintptr_t)(one + n);
}

/* Where n values are finished: in the result, unless they are cast or the result is a matrix that is still to be read. */
static float *place_of(const npumm_result *result, const npumm_steps *steps, int64_t n, void *to, float *values) {
  if (result->type != NPUMM_FLOAT32 || overlaps(steps->factor, to, n) || overlaps(steps->summand, to, n)) return values;
  return to;
}

static void cast_result(const npumm_result *result, const float *values, int64_t n, void *to) {
  uint16_t halves[NPUMM_BLOCK];
  npumm_cast(values, n, result->type, result->widen ? halves : to);
  if (!result->widen) return;
  if (result->type == NPUMM_FLOAT16) npumm_finish()->from_f16(halves, n, to);
  else npumm_finish()->from_bf16(halves, n, to);
}

/* Row r of the tile, which becomes row `at` of the result's memory. `src` holds its values or sums. */
static void write_result(const npumm_result *result, int as_float, int64_t r, int64_t at, int64_t c, int64_t n,
                         const double *columns, const void *src) {
  void *to = (char *)result->data + at * result->row_stride + c * bytes_written(result);
  if (result->type == NPUMM_INT32) {
    memcpy(to, src, (size_t)n * 4);
    return;
  }
  if (result->type == NPUMM_INT8) {
    const int32_t *integers = src;
    int8_t *codes = to;
    for (int64_t i = 0; i < n; i++) codes[i] = (int8_t)integers[i]; /* they were int8 before */
    return;
  }
  npumm_widened room;
  npumm_steps steps;
  steps_of(result, !as_float, r, c, n, columns, &room, &steps);
  float values[NPUMM_BLOCK];
  float *finished = place_of(result, &steps, n, to, values);
  if (as_float) npumm_finish()->finish_float32(src, n, &steps, finished);
  else npumm_finish()->finish_int32(src, n, &steps, finished);
  if (finished == values) cast_result(result, values, n, to);
}

/* Rows of whole groups of integers that need no more than the steps: straight from C, of which `src` is the first group. */
static void store_groups(const int32_t *src, int64_t next, int64_t r, int64_t rows, int64_t at, int64_t c, int64_t n,
                         const double *columns, const npumm_result *result) {
  npumm_widened room[NPUMM_GROUP_ROWS];
  npumm_steps steps[NPUMM_GROUP_ROWS];
  float values[NPUMM_GROUP_ROWS][NPUMM_BLOCK], *finished[NPUMM_GROUP_ROWS];
  char *to = (char *)result->data + at * result->row_stride + c * bytes_written(result);
  for (int64_t i = 0; i < rows; i++) {
    steps_of(result, 1, r + i, c, n, columns, &room[i], &steps[i]);
    finished[i] = place_of(result, &steps[i], n, to + i * result->row_stride, values[i]);
  }
  npumm_finish()->finish_groups(src, next, n / 4, (int)rows, steps, finished);
  for (int64_t i = 0; i < rows; i++) {
    if (finished[i] == values[i]) cast_result(result, values[i], n, to + i * result->row_stride);
  }
}

/* Columns c to c + n of `count` rows from row `first` on in this way, tile by tile. */
static void store_tiles(const npumm_tiling *tiling, const int32_t *src, int64_t first, int64_t count, int64_t c,
                        int64_t n, const double *columns, const npumm_result *result) {
  for (int64_t done = 0, in_tile; done < count; done += in_tile) {
    const int64_t r = first + done, left = tiling->tile_rows - r % tiling->tile_rows;
    const int32_t *from = src + npumm_tiling_offset(tiling, r, c);
    in_tile = left < count - done ? left : count - done;
    for (int64_t i = 0; i < in_tile; i += NPUMM_GROUP_ROWS) {
      const int64_t rows = in_tile - i < NPUMM_GROUP_ROWS ? in_tile - i : NPUMM_GROUP_ROWS;
      store_groups(from + 4 * i, tiling->tile_rows * 4, r + i, rows, done + i, c, n, columns, result);
    }
  }
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

/* Column scales of a piece of rows, as the loops read them: of this term, and of the result. NULL for none. */
typedef struct {
  double store[2][NPUMM_BLOCK];
  const double *of_term, *of_result;
} column_scales;

static void widen_scales(const npumm_term *term, const npumm_result *result, int64_t c, int64_t n,
                         column_scales *into) {
  into->of_term = into->of_result = NULL;
  if (term->column_scale) {
    npumm_finish()->to_doubles(term->column_scale + c, n, into->store[0]);
    into->of_term = into->store[0];
  }
  if (result && result->column_scale) {
    npumm_finish()->to_doubles(result->column_scale + c, n, into->store[1]);
    into->of_result = into->store[1];
  }
}

/* Columns c to c + n of row r, whose elements of C were gathered; it becomes row `at` of the result's memory. */
static void store_piece(const npumm_tiling *tiling, const npumm_term *term, const void *src, int64_t rows, int64_t r,
                        int64_t at, int64_t c, int64_t n, int as_float, const npumm_partial *partial,
                        const npumm_result *result, const column_scales *scales, piece *sums) {
  char *before = partial ? (char *)partial->data + r * partial->row_stride + c * 4 : NULL;
  if (!is_float(term->type)) complete(tiling, term, src, rows, r, c, n, sums);
  if (as_float) {
    npumm_steps steps;
    scaling(term->row_factor ? term->row_factor[r] : 1.0, scales->of_term, !is_float(term->type), &steps);
    if (!is_float(term->type)) npumm_finish()->finish_int32(sums->integers, n, &steps, sums->floats);
    else if (steps.columns) npumm_finish()->finish_float32(sums->floats, n, &steps, sums->floats);
  }
  if (partial && partial->add) {
    piece earlier;
    memcpy(earlier.whole, before, (size_t)n * 4);
    if (as_float) npumm_finish()->add(sums->floats, earlier.floats, n);
    else
      for (int64_t i = 0; i < n; i++) sums->whole[i] += earlier.whole[i];
  }
  if (result) write_result(result, as_float, r, at, c, n, scales->of_result, sums);
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
  const int direct = tiling->tile_cols == 4 && term->type == NPUMM_C_INT32 && term->row_images == 1 && !as_float &&
                     !term->row_zero && !term->row_sum && !partial && result->type != NPUMM_INT32;
  piece sums[ROWS_AT_ONCE];
  column_scales scales;
  for (int64_t c = 0; c < tiling->cols; c += NPUMM_BLOCK) {
    const int64_t n = tiling->cols - c < NPUMM_BLOCK ? tiling->cols - c : NPUMM_BLOCK;
    widen_scales(term, result, c, n, &scales);
    if (direct && n % 4 == 0) {
      store_tiles(tiling, src, first, count, c, n, scales.of_result, result);
      continue;
    }
    for (int64_t r = first, at_once; r < first + count; r += at_once) {
      at_once = tiling->tile_rows - r % tiling->tile_rows;
      if (at_once > ROWS_AT_ONCE) at_once = ROWS_AT_ONCE;
      if (at_once > first + count - r) at_once = first + count - r;
      gather(tiling, term->type, src, r, at_once, c, n, sums);
      for (int64_t i = 0; i < at_once; i++) {
        store_piece(tiling, term, src, rows, r + i, r + i - first, c, n, as_float, partial, result, &scales, &sums[i]);
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
