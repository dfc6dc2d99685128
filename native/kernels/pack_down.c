/*
 * Packing a source whose columns are contiguous. A block of it is converted column by column, as it lies in memory, and
 * then transposed into the tiles: squares go through registers, and elements are as short as they become. See pack.h.
 */
#include <string.h>

#include "pack.h"
#include "tiling.h"

/*
 * So many columns at a time, and of each as many elements as become that many bytes: a block that stays in the first
 * cache. The next block is what follows in the same columns, for a run of elements, so that each column is a stream of
 * the memory; it is asked for into the second cache, since columns often stand a power of two apart and would push each
 * other out of the first one. Columns of a block stand a cache line further apart than they are long.
 */
enum { COLUMN_BYTES = NPUMM_COLUMN_BYTES, PITCH = NPUMM_PITCH, COLUMNS = 32, RUN = 4096 };

typedef struct {
  _Alignas(64) uint8_t image[COLUMNS][PITCH]; /* converted elements, column by column */
  _Alignas(64) uint8_t low[COLUMNS][PITCH];   /* low halves of a split; pairs of the high ones go to `image` */
  _Alignas(64) float scaled[COLUMN_BYTES];
  /* of the rows of a run, for conversions from float32 */
  float scale[RUN], reciprocal[RUN], least[RUN], most[RUN];
  int32_t zero[RUN];
  int usual, alike, scaled_by_one;
} workspace;

static void steps_of_rows(workspace *w, const npumm_values *values, const npumm_recipe *how, int64_t r0, int64_t rows) {
  w->usual = w->scaled_by_one = 1;
  w->alike = !values->row_zero;
  for (int64_t r = 0; r < rows; r++) {
    const npumm_quantizer of = npumm_quantizer_of(values, how->levels, r0 + r);
    w->scale[r] = of.scale;
    w->reciprocal[r] = 1.0f / of.scale;
    w->least[r] = of.low;
    w->most[r] = of.high;
    w->zero[r] = of.zero;
    w->usual &= npumm_is_usual_scale(of.scale);
    w->scaled_by_one &= of.scale == 1.0f;
  }
}

/* One column of the block: elements as wide as they become, or integers that are still to be paired. */
static int convert(const npumm_row_kernels *kernels, workspace *w, const npumm_recipe *how, const void *src, int64_t at,
                   int64_t rows, uint8_t *image) {
  const float *floats = src;
  if (how->kind == NPUMM_COPIED || how->kind == NPUMM_INT4_PAIRS) {
    memcpy(image, src, (size_t)(rows * how->source_bytes));
    return 1;
  }
  if (how->levels > 0.0f) {
    const npumm_quantizers steps = {w->scale + at, w->reciprocal + at, w->least + at, w->most + at,
                                    w->zero + at,  w->usual,           w->alike};
    return kernels->quantize_columns(floats, (int8_t *)image, rows, &steps);
  }
  if (!w->scaled_by_one) {
    for (int64_t r = 0; r < rows; r++) w->scaled[r] = floats[r] * w->scale[at + r];
    floats = w->scaled;
  }
  uint16_t *halves = (uint16_t *)(void *)image;
  if (how->kind == NPUMM_TO_HALF) kernels->f32_to_f16(floats, halves, rows, 1.0f);
  if (how->kind == NPUMM_TO_HALF_HIGH) kernels->f32_to_f16_high(floats, halves, rows, 1.0f);
  if (how->kind == NPUMM_TO_HALF_LOW) kernels->f32_to_f16_low(floats, halves, rows, 1.0f);
  return 1;
}

static void add_sums(const uint8_t *image, int64_t rows, int32_t *sums) {
  const int8_t *codes = (const int8_t *)image;
  for (int64_t r = 0; r < rows; r++) sums[r] = (int32_t)((uint32_t)sums[r] + (uint32_t)(int32_t)codes[r]);
}

/*
 * A block of rows into the tiles of the columns that `walk` goes through in row 0: element by element, or in pairs. Its
 * first row is row r of the image.
 */
static void lay_columns(const npumm_row_kernels *kernels, const npumm_tiling *t, int64_t bits, int64_t r, int64_t rows,
                        npumm_walk walk, const uint8_t (*from)[PITCH], void *dst, int past_caches) {
  const int64_t per_byte = bits == 4 ? 2 : 1, element = bits == 4 ? 1 : bits / 8;
  const int64_t row_bytes = t->tile_cols * bits / 8, to_next = t->tile_rows * t->padded_cols * bits / 8;
  const int64_t tile = r / t->tile_rows, in_tile = r % t->tile_rows;
  const int64_t begun = !in_tile ? 0 : t->tile_rows - in_tile < rows ? t->tile_rows - in_tile : rows;
  npumm_transposed of = {rows, 0, element, PITCH, t->tile_rows, row_bytes, to_next};
  for (int64_t column = 0; walk.length > 0; npumm_walk_on(&walk)) {
    const char *src = (const char *)from[column / per_byte];
    char *to = (char *)dst + walk.offset * bits / 8 + tile * to_next;
    column += walk.length;
    of.cols = walk.length / per_byte;
    if (begun) { /* what is left of a tile */
      of.rows = begun;
      kernels->transpose(&of, src, to + in_tile * row_bytes, past_caches);
      src += begun * element;
      to += to_next;
    }
    of.rows = rows - begun;
    if (of.rows) kernels->transpose(&of, src, to, past_caches);
  }
}

/* Rows of the source that are packed together: elements that follow each other in each column. */
typedef struct {
  const char *src; /* the first one's in column 0 */
  int64_t col_stride;
  int64_t first, rows; /* where the first one goes to in the image, and how many there are */
  int32_t *sums;       /* theirs, or NULL */
} run;

/* How many columns of the source a block has that begins with column c. */
static int64_t columns_from(const npumm_tiling *t, int64_t c) {
  if (c >= t->cols) return 0;
  return t->cols - c < COLUMNS ? t->cols - c : COLUMNS;
}

/* `rows` rows from row `at` of the run on, in the columns of a block. What is read next stands below, or in the next columns. */
static npumm_columns columns_of(const npumm_tiling *t, const npumm_recipe *how, const run *of, int64_t at, int64_t rows,
                                int64_t c0) {
  const int is_last = at + rows == of->rows;
  const int64_t next = is_last ? c0 + COLUMNS : c0, next_at = is_last ? 0 : at + rows;
  const int64_t next_rows = of->rows - next_at < rows ? of->rows - next_at : rows;
  const npumm_columns result = {of->col_stride,
                                rows * how->source_bytes,
                                columns_from(t, c0),
                                (next - c0) * of->col_stride + (next_at - at) * how->source_bytes,
                                next_rows * how->source_bytes,
                                columns_from(t, next)};
  return result;
}

/* A block: `rows` rows from row `at` of the run on. */
static int pack_block(workspace *w, const npumm_tiling *t, const npumm_recipe *how, const run *of, int64_t at,
                      int64_t rows, int64_t c0, npumm_walk walk, void *dst) {
  const npumm_row_kernels *kernels = npumm_rows();
  const int64_t cols = columns_from(t, c0), padded = walk.left;
  const int64_t r = of->first + at; /* in the image */
  const char *src = of->src + c0 * of->col_stride + at * how->source_bytes;
  const npumm_columns columns = columns_of(t, how, of, at, rows, c0);
  const int is_copied = how->kind == NPUMM_COPIED && !of->sums;
  const int pairs_are_read = how->kind == NPUMM_INT4_PAIRS && !of->sums && cols == padded;
  if (is_copied) kernels->copy_columns(&columns, src, (char *)w->image, PITCH);
  for (int64_t c = 0; !is_copied && c < cols; c++) {
    const char *column = src + c * of->col_stride;
    npumm_ask_ahead(&columns, column, c);
    if (pairs_are_read) continue;
    if (!convert(kernels, w, how, column, at, rows, w->image[c])) return NPUMM_NOT_FINITE;
    if (of->sums) add_sums(w->image[c], rows, of->sums + at);
  }
  if (cols < padded) memset(w->image[cols], 0, (size_t)(padded - cols) * PITCH);
  for (int64_t c = 0; how->bits == 4 && c < padded; c += 2) {
    const int split = how->kind == NPUMM_QUANTIZED_SPLIT;
    const int8_t *even = (const int8_t *)w->image[c], *odd = (const int8_t *)w->image[c + 1];
    if (pairs_are_read) {
      even = (const int8_t *)src + c * of->col_stride;
      odd = even + of->col_stride;
    }
    if (split) kernels->pair_columns(even, odd, w->low[c / 2], rows, 0, how->high_first);
    kernels->pair_columns(even, odd, w->image[c / 2], rows, split, how->high_first);
  }
  if (how->kind == NPUMM_QUANTIZED_SPLIT) {
    lay_columns(kernels, t, 4, t->rows / 2 + r, rows, walk, w->low, dst, how->past_caches);
  }
  lay_columns(kernels, t, how->bits, r, rows, walk, w->image, dst, how->past_caches);
  return NPUMM_OK;
}

int npumm_pack_down(const npumm_tiling *t, const npumm_values *values, const npumm_recipe *how, const char *src,
                    int64_t col_stride, int64_t first, int64_t rows, void *dst) {
  workspace w;
  w.scaled_by_one = 1; /* what is copied has no scales */
  const int64_t most = COLUMN_BYTES * 8 / (how->bits == 4 ? 8 : how->bits);
  if (values->row_sum) memset(values->row_sum, 0, (size_t)rows * sizeof *values->row_sum);
  for (int64_t r0 = 0; r0 < rows; r0 += RUN) {
    const run of = {src + r0 * how->source_bytes, col_stride, first + r0, rows - r0 < RUN ? rows - r0 : RUN,
                    values->row_sum ? values->row_sum + r0 : NULL};
    if (how->source_bytes == 4) steps_of_rows(&w, values, how, r0, of.rows);
    for (int64_t c0 = 0; c0 < t->padded_cols; c0 += COLUMNS) {
      const int64_t padded = t->padded_cols - c0 < COLUMNS ? t->padded_cols - c0 : COLUMNS;
      const npumm_walk walk = npumm_walk_row(t, 0, c0, padded);
      for (int64_t at = 0; at < of.rows; at += most) {
        const int64_t count = of.rows - at < most ? of.rows - at : most;
        const int code = pack_block(&w, t, how, &of, at, count, c0, walk, dst);
        if (code) return code;
      }
    }
  }
  return NPUMM_OK;
}
