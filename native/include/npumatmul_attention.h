/*
 * Caches of keys and values, and attention to them.
 *
 * The result of a query does not depend on which others are computed in the same call, on which heads are, or on the
 * instruction set: sums are made in an order that is fixed by the numbers of the tokens, and every level of instructions
 * computes them with the same operations of IEEE 754. Only the bits of nans may differ.
 */
#ifndef NPUMATMUL_ATTENTION_H
#define NPUMATMUL_ATTENTION_H

#include <stdint.h>

#include "npumatmul_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  NPUMM_NO_ROOM = -106,     /* a cache has no memory of its own for the rows; nothing was changed */
  NPUMM_OUT_OF_RANGE = -107 /* a finite value that would be an infinity in float16; nothing was changed */
};

/* As what keys and values are kept. Codes of int8 have a scale for each token and head: a value is code * scale. */
typedef enum { NPUMM_KV_NONE = 0, NPUMM_KV_FLOAT32 = 1, NPUMM_KV_FLOAT16 = 2, NPUMM_KV_INT8 = 3 } npumm_kv_type;

/* Keys or values: row i of head h begins at data + h * head_stride + i * row_stride; strides are in bytes. */
typedef struct {
  void *data;
  int64_t head_stride, row_stride;
  float *scales; /* of int8 */
  int64_t scale_head_stride, scale_row_stride;
} npumm_kv_rows;

/* Rows of tokens that follow each other, which other caches read, too. */
typedef struct {
  npumm_kv_rows keys, values;
  int64_t rows;
} npumm_kv_segment;

/* Keys and values of one layer. Tokens have numbers from 0 on. */
typedef struct {
  int32_t type;         /* npumm_kv_type; NPUMM_KV_NONE where a layer has none */
  int32_t before_count; /* segments with all tokens before `base`; 0 with a window */
  int64_t heads, key_dim, value_dim;
  int64_t window;           /* tokens that are looked back at most, itself included; 0: all */
  int64_t base;             /* number of the first token in memory of its own */
  int64_t shared, capacity; /* rows of its own that must not be written, as others read them, and that there are */
  npumm_kv_rows keys, values;
  const npumm_kv_segment *before;
} npumm_kv_layer;

/*
 * Store keys and values of `count` tokens from number `offset` on; the float32 row i of head h begins at k +
 * h * k_head_stride + i * k_row_stride (bytes). An int8 code is round_half_even(x / scale) with scale =
 * max(absmax / 127, 2^-126) of the row.
 *
 * NPUMM_NO_ROOM: who owns the layer has to make room, and call again. NPUMM_NOT_FINITE: an inf or nan among what is to
 * be kept as int8. NPUMM_OUT_OF_RANGE: see there. Nothing was changed then.
 */
NPUMM_EXPORT int npumm_kv_append(const npumm_kv_layer *layer, int64_t offset, int64_t count, const float *k,
                                 int64_t k_head_stride, int64_t k_row_stride, const float *v, int64_t v_head_stride,
                                 int64_t v_row_stride);

typedef struct {
  int64_t heads;  /* of queries: a multiple of the layer's; that many follow each other which share a head of keys */
  int64_t window; /* 0: none. Causal: keys that a query sees, its own included; else those less than it away */
  float scale;
  float softcap;      /* 0: none; scores become softcap * tanh(score / softcap) */
  const float *sinks; /* NULL, or for each head the score of a key without a value */
  int32_t causal;     /* whether queries see no tokens after their own */
  int64_t keys;       /* not causal: tokens that there are, all of which a query sees that has no window */
} npumm_attention;

/*
 * softmax(scale * q @ k.T) @ v of `count` queries, the tokens from number `offset` on, whose keys and values were
 * appended before: query i sees the tokens up to number offset + i. Rows of q and out stand as those of
 * npumm_kv_append; zeros where a query sees no key. Only head_count heads from first_head on are computed, so threads
 * share a call by heads; or by queries, with offset, count, q and out of their own.
 *
 * `scratch` has at least npumm_attend_scratch bytes, aligned to 64, for each thread.
 */
NPUMM_EXPORT int npumm_attend(const npumm_attention *how, const npumm_kv_layer *layer, int64_t offset, int64_t count,
                              const float *q, int64_t q_head_stride, int64_t q_row_stride, float *out,
                              int64_t out_head_stride, int64_t out_row_stride, int64_t first_head, int64_t head_count,
                              void *scratch, int64_t scratch_bytes);

/* Bytes of scratch for up to `count` queries; it does not grow with the tokens of the cache. */
NPUMM_EXPORT int64_t npumm_attend_scratch(const npumm_attention *how, const npumm_kv_layer *layer, int64_t count);

/*
 * npumm_attend of all heads, with scratch of its own, by up to `threads` threads. They are the library's, one set for the
 * process; while they are busy for one caller, others work by themselves.
 */
NPUMM_EXPORT int npumm_attend_all(const npumm_attention *how, const npumm_kv_layer *layer, int64_t offset,
                                  int64_t count, const float *q, int64_t q_head_stride, int64_t q_row_stride,
                                  float *out, int64_t out_head_stride, int64_t out_row_stride, int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
