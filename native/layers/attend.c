/* Attention to a cache: which queries and tokens come together; the arithmetic is in attend_loops.h. */
#include "attend.h"

#include <stdint.h>
#include <string.h>

enum {
  BLOCK = NPUMM_ATTEND_BLOCK,
  PANEL = 96,     /* queries whose sums stay in a core's caches while the tokens go by */
  MOST = 1 << 20, /* values of a row, and heads: sizes below never overflow */
};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t padded(int64_t dim) { return (dim + 15) & ~(int64_t)15; }

/* ---- scratch ------------------------------------------------------------------------------------------------------- */

/* What a thread needs; arrays begin at multiples of 64 bytes. */
typedef struct {
  float *q, *sums, *scores, *most, *total, *factor, *keys, *values;
  int32_t *low, *high; /* within a block */
  int64_t *from, *to;  /* tokens that a row sees */
  int64_t rows, bytes;
} room;

static void *take(char *start, int64_t *used, int64_t bytes) {
  char *at = start ? start + *used : NULL;
  *used += (bytes + 63) & ~(int64_t)63;
  return at;
}

static room lay_out(void *scratch, int64_t rows, int64_t key_dim, int64_t value_dim) {
  const int64_t a_float = sizeof(float), a_number = sizeof(int64_t);
  int64_t used = 0;
  room made = {.rows = rows};
  made.q = take(scratch, &used, rows * key_dim * a_float);
  made.sums = take(scratch, &used, rows * value_dim * a_float);
  made.scores = take(scratch, &used, rows * BLOCK * a_float);
  made.keys = take(scratch, &used, BLOCK * key_dim * a_float);
  made.values = take(scratch, &used, BLOCK * value_dim * a_float);
  made.most = take(scratch, &used, rows * a_float);
  made.total = take(scratch, &used, rows * a_float);
  made.factor = take(scratch, &used, rows * a_float);
  made.low = take(scratch, &used, rows * (int64_t)sizeof(int32_t));
  made.high = take(scratch, &used, rows * (int64_t)sizeof(int32_t));
  made.from = take(scratch, &used, rows * a_number);
  made.to = take(scratch, &used, rows * a_number);
  made.bytes = used;
  return made;
}

static int are_sizes(const npumm_attention *how, const npumm_kv_layer *layer) {
  if (!how || !layer || layer->type < NPUMM_KV_FLOAT32 || layer->type > NPUMM_KV_INT8) return 0;
  if (layer->heads < 1 || how->heads < 1 || how->heads > MOST || how->heads % layer->heads) return 0;
  return layer->key_dim >= 1 && layer->key_dim <= MOST && layer->value_dim >= 1 && layer->value_dim <= MOST;
}

int64_t npumm_attend_scratch(const npumm_attention *how, const npumm_kv_layer *layer, int64_t count) {
  if (!are_sizes(how, layer) || count < 0) return NPUMM_BAD_ARGUMENT;
  const int64_t group = how->heads / layer->heads, rows = count > PANEL / group ? PANEL : count * group;
  return lay_out(NULL, largest(rows, 1), padded(layer->key_dim), padded(layer->value_dim)).bytes;
}

/* ---- tokens of a block --------------------------------------------------------------------------------------------- */

/* Point places first to last to rows of a head, from row `row` of one stretch of memory on. */
static void point(const npumm_kv_rows *rows, int64_t head, int64_t row, int64_t first, int64_t last, const void **to,
                  float *scales) {
  const uintptr_t at = (uintptr_t)rows->data + (uintptr_t)(head * rows->head_stride + row * rows->row_stride);
  const uintptr_t stride = (uintptr_t)rows->row_stride;
  for (int64_t j = first; j < last; j++) to[j] = (const void *)(at + (uintptr_t)(j - first) * stride);
  if (!scales) return;
  const char *scale = (const char *)rows->scales + head * rows->scale_head_stride + row * rows->scale_row_stride;
  if (rows->scale_row_stride == (int64_t)sizeof(float)) {
    for (int64_t i = 0; i < 4; i++)
      __builtin_prefetch((const void *)((uintptr_t)scale + 2 * BLOCK * 4 + (uintptr_t)i * 64));
    memcpy(scales + first, scale, (size_t)(last - first) * sizeof(float));
    return;
  }
  for (int64_t j = first; j < last; j++)
    memcpy(scales + j, scale + (j - first) * rows->scale_row_stride, sizeof(float));
}

static void point_both(npumm_block *block, const npumm_kv_rows *keys, const npumm_kv_rows *values, int64_t head,
                       int64_t row, int64_t first, int64_t last) {
  if (first >= last) return;
  point(keys, head, row, first, last, block->keys, block->scaled ? block->key_scales : NULL);
  point(values, head, row, first, last, block->values, block->scaled ? block->value_scales : NULL);
}

/* The tokens from number `start` + first to `start` + last, and in the other places that are read one of these. */
static void find(npumm_block *block, const npumm_kv_layer *layer, int64_t head, int64_t start, int64_t first,
                 int64_t last) {
  int64_t begins = 0;
  for (int32_t i = 0; i < layer->before_count && begins < start + last; i++) {
    const npumm_kv_segment *segment = &layer->before[i];
    const int64_t from = largest(start + first, begins), to = least(start + last, begins + segment->rows);
    point_both(block, &segment->keys, &segment->values, head, from - begins, from - start, to - start);
    begins += segment->rows;
  }
  const int64_t from = largest(start + first, layer->base);
  point_both(block, &layer->keys, &layer->values, head, from - layer->base, from - start, last);
  for (int64_t j = first & ~(int64_t)15; j < ((last + 15) & ~(int64_t)15); j++) {
    if (j >= first && j < last) continue;
    block->keys[j] = block->keys[first];
    block->values[j] = block->values[first];
    block->key_scales[j] = block->value_scales[j] = 0.0f;
  }
}

/* ---- queries ------------------------------------------------------------------------------------------------------- */

typedef struct {
  const npumm_attend_loops *loops;
  const npumm_attention *how;
  const npumm_kv_layer *layer;
  int64_t offset, count;
  const char *q;
  int64_t q_head_stride, q_row_stride;
  char *out;
  int64_t out_head_stride, out_row_stride;
} task;

/* The tokens that query i sees: from *from up to, not including, *to. */
static void seen(const npumm_attention *how, int64_t number, int64_t *from, int64_t *to) {
  const int64_t last = how->causal ? number + 1 : how->window ? least(number + how->window, how->keys) : how->keys;
  *to = largest(last, 0);
  *from = how->window ? largest(number - how->window + 1, 0) : 0;
  if (*from > *to) *from = *to;
}

/* Take queries, scaled; the row r is that of head r % heads of the token r / heads. */
static void begin(const task *t, int64_t head, int64_t heads, int64_t first, int64_t rows, const room *at) {
  const int64_t dim = t->layer->key_dim, wide = padded(dim), value_wide = padded(t->layer->value_dim);
  for (int64_t r = 0; r < rows; r++) {
    const int64_t i = (first + r) / heads, h = head + (first + r) % heads;
    const float *from = (const float *)(const void *)(t->q + h * t->q_head_stride + i * t->q_row_stride);
    float *to = at->q + r * wide;
    for (int64_t d = 0; d < dim; d++) to[d] = from[d] * t->how->scale;
    for (int64_t d = dim; d < wide; d++) to[d] = 0.0f;
    at->most[r] = t->how->sinks ? t->how->sinks[h] : -__builtin_inff();
    at->total[r] = t->how->sinks ? 1.0f : 0.0f;
    seen(t->how, t->offset + i, &at->from[r], &at->to[r]);
  }
  memset(at->sums, 0, (size_t)(rows * value_wide) * sizeof(float));
}

static void finish(const task *t, int64_t head, int64_t heads, int64_t first, int64_t rows, const room *at) {
  const int64_t dim = t->layer->value_dim, wide = padded(dim);
  for (int64_t r = 0; r < rows; r++) {
    const int64_t i = (first + r) / heads, h = head + (first + r) % heads;
    float *to = (float *)(void *)(t->out + h * t->out_head_stride + i * t->out_row_stride);
    const float total = at->total[r] == 0.0f ? 1.0f : at->total[r], *from = at->sums + r * wide;
    for (int64_t d = 0; d < dim; d++) to[d] = from[d] / total;
  }
}

/* Heads that share head `kv` of the keys; `head` is the first of `heads`. */
static void attend_to(const task *t, int64_t kv, int64_t head, int64_t heads, const room *at) {
  const npumm_kv_layer *layer = t->layer;
  const int64_t key_wide = padded(layer->key_dim), value_wide = padded(layer->value_dim);
  npumm_block block = {.softcap = t->how->softcap,
                       .key_dim = key_wide,
                       .value_dim = value_wide,
                       .q = at->q,
                       .scores = at->scores,
                       .most = at->most,
                       .total = at->total,
                       .factor = at->factor,
                       .sums = at->sums,
                       .low = at->low,
                       .high = at->high,
                       .scaled = layer->type == NPUMM_KV_INT8};
  const int fits = key_wide == layer->key_dim && value_wide == layer->value_dim;
  for (int64_t first = 0; first < t->count * heads; first += at->rows) {
    const int64_t rows = least(at->rows, t->count * heads - first);
    begin(t, head, heads, first, rows, at);
    int64_t from = INT64_MAX, to = 0;
    for (int64_t r = 0; r < rows; r++) {
      if (at->from[r] < at->to[r]) from = least(from, at->from[r]);
      to = largest(to, at->to[r]);
    }
    block.rows = rows;
    const int direct = fits && (rows <= t->loops->few || layer->type == NPUMM_KV_FLOAT32);
    for (int64_t start = from & ~(int64_t)(BLOCK - 1); start < to; start += BLOCK) {
      const int64_t low = largest(from - start, 0), high = least(to - start, BLOCK);
      for (int64_t r = 0; r < rows; r++) {
        at->low[r] = (int32_t)largest(least(at->from[r] - start, BLOCK), 0);
        at->high[r] = (int32_t)largest(least(at->to[r] - start, BLOCK), 0);
      }
      find(&block, layer, kv, start, low, high);
      block.type = (npumm_kv_type)layer->type;
      const int goes_on = direct && start >= layer->base && start + 2 * BLOCK < to;
      block.key_ahead = goes_on ? 2 * BLOCK * layer->keys.row_stride : 0;
      block.value_ahead = goes_on ? 2 * BLOCK * layer->values.row_stride : 0;
      if (!direct) {
        t->loops->widen(block.type, block.keys + low, high - low, layer->key_dim, key_wide, at->keys + low * key_wide);
        t->loops->widen(block.type, block.values + low, high - low, layer->value_dim, value_wide,
                        at->values + low * value_wide);
        block.type = NPUMM_KV_FLOAT32;
        for (int64_t j = low & ~(int64_t)15; j < ((high + 15) & ~(int64_t)15); j++) {
          const int64_t row = j < low || j >= high ? low : j;
          block.keys[j] = at->keys + row * key_wide;
          block.values[j] = at->values + row * value_wide;
        }
      }
      t->loops->block(&block);
    }
    finish(t, head, heads, first, rows, at);
  }
}

/* ---- the call ------------------------------------------------------------------------------------------------------ */

static int are_rows(const npumm_kv_rows *rows, int32_t type) {
  return rows->data && (type != NPUMM_KV_INT8 || rows->scales);
}

/* Whether a layer has the tokens from number `from` on up to `to`. */
static int has(const npumm_kv_layer *layer, int64_t from, int64_t to) {
  if (to <= from) return 1;
  int64_t before = 0;
  if (layer->before_count < 0 || (layer->before_count && !layer->before)) return 0;
  for (int32_t i = 0; i < layer->before_count; i++) {
    const npumm_kv_segment *segment = &layer->before[i];
    if (segment->rows < 0 || !are_rows(&segment->keys, layer->type) || !are_rows(&segment->values, layer->type)) {
      return 0;
    }
    before += segment->rows;
  }
  if (layer->base < 0 || to > layer->base + layer->capacity) return 0;
  if (layer->before_count ? before != layer->base : from < layer->base) return 0;
  return to <= layer->base || (are_rows(&layer->keys, layer->type) && are_rows(&layer->values, layer->type));
}

int npumm_attend_by(const npumm_attend_loops *loops, const npumm_attention *how, const npumm_kv_layer *layer,
                    int64_t offset, int64_t count, const float *q, int64_t q_head_stride, int64_t q_row_stride,
                    float *out, int64_t out_head_stride, int64_t out_row_stride, int64_t first_head, int64_t head_count,
                    void *scratch, int64_t scratch_bytes) {
  if (!are_sizes(how, layer) || count < 0 || first_head < 0 || head_count < 0) return NPUMM_BAD_ARGUMENT;
  if (first_head + head_count > how->heads || how->window < 0 || !(how->softcap >= 0.0f)) return NPUMM_BAD_ARGUMENT;
  if (!how->causal && how->keys < 0) return NPUMM_BAD_ARGUMENT;
  if (count == 0 || head_count == 0) return NPUMM_OK;
  if (!q || !out || !scratch) return NPUMM_BAD_ARGUMENT;
  int64_t from, to, last_from, last_to;
  seen(how, offset, &from, &to);
  seen(how, offset + count - 1, &last_from, &last_to);
  if (!has(layer, from, last_to)) return NPUMM_BAD_ARGUMENT;
  if (scratch_bytes < npumm_attend_scratch(how, layer, count)) return NPUMM_BUFFER_TOO_SMALL;
  const task t = {loops,         how,          layer,       offset,          count,         (const char *)q,
                  q_head_stride, q_row_stride, (char *)out, out_head_stride, out_row_stride};
  const int64_t group = how->heads / layer->heads, rows = count > PANEL / group ? PANEL : count * group;
  const room at = lay_out(scratch, largest(rows, 1), padded(layer->key_dim), padded(layer->value_dim));
  for (int64_t head = first_head; head < first_head + head_count;) {
    const int64_t kv = head / group, heads = least((kv + 1) * group, first_head + head_count) - head;
    attend_to(&t, kv, head, heads, &at);
    head += heads;
  }
  return NPUMM_OK;
}

int npumm_attend(const npumm_attention *how, const npumm_kv_layer *layer, int64_t offset, int64_t count, const float *q,
                 int64_t q_head_stride, int64_t q_row_stride, float *out, int64_t out_head_stride,
                 int64_t out_row_stride, int64_t first_head, int64_t head_count, void *scratch, int64_t scratch_bytes) {
  return npumm_attend_by(npumm_attend_chosen(), how, layer, offset, count, q, q_head_stride, q_row_stride, out,
                         out_head_stride, out_row_stride, first_head, head_count, scratch, scratch_bytes);
}
