/* Keys and values on their way into a cache. */
#include <stdint.h>
#include <string.h>

#include "../executor/profile.h"
#include "../kernels/rows.h"
#include "npumatmul_attention.h"

static const float BEYOND_HALVES = 65520.0f; /* from here on values are rounded to an infinity */
static const float LEAST_SCALE = 0x1p-126f;

typedef struct {
  const npumm_kv_rows *rows;
  int32_t type;
  int64_t heads, dim;
  int64_t first, count; /* rows that are written */
  const char *from;
  int64_t head_stride, row_stride;
} store;

static const float *source(const store *s, int64_t head, int64_t i) {
  return (const float *)(const void *)(s->from + head * s->head_stride + i * s->row_stride);
}

static int are_sizes(const store *s) {
  if (!s->from || !s->rows->data || s->dim < 1) return 0;
  return s->type != NPUMM_KV_INT8 || s->rows->scales;
}

/* Whether all can be kept: nothing is written before that is known. */
static int check(const store *s) {
  if (s->type == NPUMM_KV_FLOAT32) return NPUMM_OK;
  for (int64_t head = 0; head < s->heads; head++) {
    for (int64_t i = 0; i < s->count; i++) {
      int finite = 1;
      const float most = npumm_rows()->absmax(source(s, head, i), s->dim, &finite);
      if (s->type == NPUMM_KV_INT8 && !finite) return NPUMM_NOT_FINITE;
      if (s->type == NPUMM_KV_FLOAT16 && most >= BEYOND_HALVES) return NPUMM_OUT_OF_RANGE;
    }
  }
  return NPUMM_OK;
}

static void quantize(const float *from, int64_t dim, int8_t *to, float *scale) {
  int finite = 1;
  const float share = npumm_rows()->absmax(from, dim, &finite) / 127.0f;
  *scale = share < LEAST_SCALE ? LEAST_SCALE : share;
  npumm_rows()->quantize(from, to, dim, &(npumm_quantizer){*scale, -127.0f, 127.0f, 0});
}

static void write(const store *s) {
  for (int64_t head = 0; head < s->heads; head++) {
    char *to = (char *)s->rows->data + head * s->rows->head_stride + s->first * s->rows->row_stride;
    char *scale = (char *)s->rows->scales;
    if (scale) scale += head * s->rows->scale_head_stride + s->first * s->rows->scale_row_stride;
    for (int64_t i = 0; i < s->count; i++, to += s->rows->row_stride) {
      const float *from = source(s, head, i);
      if (s->type == NPUMM_KV_FLOAT16) {
        npumm_rows()->f32_to_f16(from, (uint16_t *)(void *)to, s->dim, 1.0f);
      } else if (s->type == NPUMM_KV_INT8) {
        quantize(from, s->dim, (int8_t *)to, (float *)(void *)scale);
        scale += s->rows->scale_row_stride;
      } else {
        memcpy(to, from, (size_t)s->dim * sizeof *from);
      }
    }
  }
}

int npumm_kv_append(const npumm_kv_layer *layer, int64_t offset, int64_t count, const float *k, int64_t k_head_stride,
                    int64_t k_row_stride, const float *v, int64_t v_head_stride, int64_t v_row_stride) {
  if (!layer || layer->type < NPUMM_KV_FLOAT32 || layer->type > NPUMM_KV_INT8 || count < 0) return NPUMM_BAD_ARGUMENT;
  if (count == 0) return NPUMM_OK;
  const int64_t first = offset - layer->base;
  if (first < layer->shared || first < 0 || count > layer->capacity - first) return NPUMM_NO_ROOM;
  const store keys = {&layer->keys, layer->type,     layer->heads,  layer->key_dim, first,
                      count,        (const char *)k, k_head_stride, k_row_stride};
  const store values = {&layer->values, layer->type,     layer->heads,  layer->value_dim, first,
                        count,          (const char *)v, v_head_stride, v_row_stride};
  if (!are_sizes(&keys) || !are_sizes(&values)) return NPUMM_BAD_ARGUMENT;
  const int64_t begun = npumm_profile_begin();
  int code = check(&keys);
  if (!code) code = check(&values);
  if (code) return code;
  write(&keys);
  write(&values);
  const int64_t bytes = count * layer->heads * (layer->key_dim + layer->value_dim) * (int64_t)sizeof(float);
  npumm_profile_end(begun, NPUMM_SPAN_APPEND, 0, -1, bytes, 0);
  return NPUMM_OK;
}
