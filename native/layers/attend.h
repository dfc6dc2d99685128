/* What attend.c has done by loops that are compiled once for each instruction set. */
#ifndef NPUMATMUL_ATTEND_H
#define NPUMATMUL_ATTEND_H

#include <stdint.h>

#include "npumatmul_attention.h"

/*
 * Tokens that are worked on at once: those from a multiple of so many on. Sums of a query go on from block to block, so
 * the number is part of what decides their bits.
 */
#define NPUMM_ATTEND_BLOCK 64

/* Queries ("rows") of one head of keys, and a block of tokens. */
typedef struct {
  npumm_kv_type type; /* of what the pointers point to */
  int scaled;         /* whether keys and values have scales */
  int64_t rows;
  int64_t key_dim, value_dim;           /* of rows in scratch: multiples of 16 */
  const void *keys[NPUMM_ATTEND_BLOCK]; /* of all 64; where there is no such token, of another one */
  const void *values[NPUMM_ATTEND_BLOCK];
  float key_scales[NPUMM_ATTEND_BLOCK], value_scales[NPUMM_ATTEND_BLOCK];
  const int32_t *low, *high;      /* tokens of the block that a row sees: low <= number < high */
  int64_t key_ahead, value_ahead; /* how far behind a row's memory that is which is needed next; 0: it is not known */
  float softcap;
  const float *q; /* scaled */
  float *scores;  /* rows of 64 */
  float *most, *total,
      *factor; /* of each row: its largest score, its sum of exponentials, what that is to be made of */
  float *sums; /* of values times exponentials */
} npumm_block;

typedef struct {
  const char *name;
  int64_t few; /* up to so many rows read keys and values where they stand */
  /* Rows of `dim` values as float32, without scales, and zeros up to `padded` of them, a multiple of 16. */
  void (*widen)(npumm_kv_type type, const void *const *rows, int64_t count, int64_t dim, int64_t padded, float *out);
  /* Let all rows see their tokens of a block. */
  void (*block)(const npumm_block *block);
} npumm_attend_loops;

extern const npumm_attend_loops npumm_attend_scalar, npumm_attend_avx2, npumm_attend_avx512, npumm_attend_neon;

/* Those for this machine. */
const npumm_attend_loops *npumm_attend_chosen(void);

/* npumm_attend with certain loops. */
int npumm_attend_by(const npumm_attend_loops *loops, const npumm_attention *how, const npumm_kv_layer *layer,
                    int64_t offset, int64_t count, const float *q, int64_t q_head_stride, int64_t q_row_stride,
                    float *out, int64_t out_head_stride, int64_t out_row_stride, int64_t first_head, int64_t head_count,
                    void *scratch, int64_t scratch_bytes);

#endif
