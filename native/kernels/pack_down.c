/*
 * Packing a source whose columns are contiguous. A block of it is converted column by column, as it lies in memory, and
 * then transposed into the tiles: squares go through registers, and elements are as short as they become. See pack.h.
 */
#include <string.h>

#include "pack.h"
#include "tiling.h"

/*
 * So many columns at a time, and of each as many elements as become that many bytes: long enough for the memory to be read
 * in streams, and a block that stays in the near caches. Columns of a block stand a cache line further apart than they are
 * long. The next columns but one are asked for: more of them, which often stand a power of two apart in the source, push
 * each other out.
 */
enum { COLUMN_BYTES = 1024, COLUMNS = 32, PITCH = COLUMN_BYTES + 64, AHEAD = 2 };

typedef struct {
  _Alignas(64) uint8_t image[COLUMNS][PITCH]; /* converted elements, column by column */
  _Alignas(64) uint8_t low[COLUMNS][PITCH];   /* low halves of a split; pairs of the high ones go to `image` */
  _Alignas(64) float scaled[COLUMN_BYTES];
  /* of the rows at hand, for conversions from float32 */
  float scale[COLUMN_BYTES], reciprocal[COLUMN_BYTES], least[COLUMN_BYTES], most[COLUMN_BYTES];
  int32_t zero[COLUMN_BYTES];
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
static int convert(const npumm_row_kernels *kernels, workspace *w, const npumm_recipe *how, const void *src,
                   int64_t rows, uint8_t *image) {
  const float *floats = src;
  if (how->kind == NPUMM_COPIED || how->kind == NPUMM_INT4_PAIRS) {
    memcpy(image, src, (size_t)(rows * how->source_bytes));
    return 1;
  }
  if (how->levels > 0.0f) {
    const npumm_quantizers steps = {w->scale, w->reciprocal, w->least, w->most, w->zero, w->usual, w->alike};
    return kernels->quantize_columns(floats, (int8_t *)image, rows, &steps);
  }
  if (!w->scaled_by_one) {
    for (int64_t r = 0; r < rows; r++) w->scaled[r] = floats[r] * w->scale[r];
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

/* Two columns of integers -> one of pairs: their low halves, or with `bias` the upper ones of (q + 8). */
static void pair_columns(const uint8_t *even, const uint8_t *odd, int64_t rows, int split, int high_first,
                         uint8_t *pairs) {
  const uint8_t *low = high_first ? odd : even, *high = high_first ? even : odd;
  if (split) {
    for (int64_t r = 0; r < rows; r++) pairs[r] = (uint8_t)((uint8_t)(low[r] + 8) >> 4 | ((high[r] + 8) & 0xf0));
  } else {
    for (int64_t r = 0; r < rows; r++) pairs[r] = (uint8_t)((low[r] & 0x0f) | high[r] << 4);
  }
}

/* `cols` columns of the block, which are those of the image from c on, into their tiles: element by element or in pairs. */
static void lay_columns(const npumm_row_kernels *kernels, const npumm_tiling *t, int64_t bits, int64_t r, int64_t rows,
                        int64_t c, int64_t cols, const uint8_t (*from)[PITCH], void *dst, int past_caches) {
  const int64_t per_byte = bits == 4 ? 2 : 1, element = bits == 4 ? 1 : bits / 8;
  for (int64_t done = 0, count; done < rows; done += count) {
    const int64_t in_tile = t->tile_rows - (r + done) % t->tile_rows;
    count = in_tile < rows - done ? in_tile : rows - done;
    int64_t column = 0;
    for (npumm_walk walk = npumm_walk_row(t, r + done, c, cols); walk.length > 0; npumm_walk_on(&walk)) {
      kernels->transpose((const char *)&from[column / per_byte][done * element], PITCH, count, walk.length / per_byte,
                         element, (char *)dst + walk.offset * bits / 8, t->tile_cols * bits / 8, past_caches);
      column += walk.length;
    }
  }
}

static int pack_block(workspace *w, const npumm_tiling *t, const npumm_values *values, const npumm_recipe *how,
                      const char *src, int64_t col_stride, int64_t first, int64_t r0, int64_t rows, int64_t c0,
                      void *dst) {
  const npumm_row_kernels *kernels = npumm_rows();
  const int64_t padded = t->padded_cols - c0 < COLUMNS ? t->padded_cols - c0 : COLUMNS;
  const int64_t cols = c0 >= t->cols ? 0 : t->cols - c0 < padded ? t->cols - c0 : padded;
  const char *from = src + r0 * how->source_bytes;
  for (int64_t c = 0; c < cols; c++) {
    const char *column = from + (c0 + c) * col_stride;
    for (int64_t line = 0; c0 + c + AHEAD < t->cols && line < rows * how->source_bytes; line += 64)
      __builtin_prefetch(column + AHEAD * col_stride + line);
    if (!convert(kernels, w, how, column, rows, w->image[c])) return NPUMM_NOT_FINITE;
    if (values->row_sum) add_sums(w->image[c], rows, values->row_sum + r0);
  }
  if (cols < padded) memset(w->image[cols], 0, (size_t)(padded - cols) * PITCH);
  if (how->bits == 4) {
    const int split = how->kind == NPUMM_QUANTIZED_SPLIT;
    for (int64_t c = 0; c < padded; c += 2) {
      if (split) pair_columns(w->image[c], w->image[c + 1], rows, 0, how->high_first, w->low[c / 2]);
      pair_columns(w->image[c], w->image[c + 1], rows, split, how->high_first, w->image[c / 2]);
    }
    if (split) lay_columns(kernels, t, 4, t->rows / 2 + first + r0, rows, c0, padded, w->low, dst, how->past_caches);
  }
  lay_columns(kernels, t, how->bits, first + r0, rows, c0, padded, w->image, dst, how->past_caches);
  return NPUMM_OK;
}

int npumm_pack_down(const npumm_tiling *t, const npumm_values *values, const npumm_recipe *how, const char *src,
                    int64_t col_stride, int64_t first, int64_t rows, void *dst) {
  workspace w;
  w.scaled_by_one = 1; /* what is copied has no scales */
  const int64_t most = COLUMN_BYTES * 8 / (how->bits == 4 ? 8 : how->bits);
  if (values->row_sum) memset(values->row_sum, 0, (size_t)rows * sizeof *values->row_sum);
  for (int64_t r0 = 0; r0 < rows; r0 += most) {
    const int64_t count = rows - r0 < most ? rows - r0 : most;
    if (how->source_bytes == 4) steps_of_rows(&w, values, how, r0, count);
    for (int64_t c0 = 0; c0 < t->padded_cols; c0 += COLUMNS) {
      const int code = pack_block(&w, t, values, how, src, col_stride, first, r0, count, c0, dst);
      if (code) return code;
    }
  }
  return NPUMM_OK;
}
