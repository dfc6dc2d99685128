/*
 * The loops of attend.h. A file of an instruction set includes its lanes_*.h, defines ATTEND_NAME, ATTEND_LOOPS and
 *
 *   ATTEND_ROWS           queries at once at most
 *   ATTEND_TOGETHER       times KEYS keys at once; ATTEND_ALONE where there is one query
 *   ATTEND_PASSES         over a row of keys
 *   ATTEND_COLUMNS        vectors of values at once
 *   ATTEND_WEIGHTS_FIRST  whether registers keep weights of queries, or values, while the other ones come
 *   ATTEND_EVENLY         whether queries are shared out evenly, or as many as possible at once
 *   ATTEND_FETCH_FAR      whether memory that is needed soon goes to the second cache only
 *   ATTEND_FEW            up to so many queries read keys and values where they stand
 *
 * and includes this.
 *
 * A score is summed in 16 lanes, of which each takes every 16th product; a value's sum is one chain over the tokens. Both
 * orders leave room for registers of any width, and for any number of rows at once.
 */
#include <math.h>
#include <string.h>

#include "attend.h"
#include "exp.h"

#define INLINE static inline __attribute__((always_inline)) LANES_TARGET

enum {
  BLOCK = NPUMM_ATTEND_BLOCK,
  KEYS = WIDTH / 4,
  TOGETHER = ATTEND_TOGETHER,
  ALONE = ATTEND_ALONE,
  ROWS = ATTEND_ROWS,
  COLUMNS = ATTEND_COLUMNS,
  PASSES = ATTEND_PASSES
};

INLINE vec load_as(npumm_kv_type type, const void *row, int64_t at) {
  if (type == NPUMM_KV_FLOAT16) return vec_of_halves((const uint16_t *)row + at);
  if (type == NPUMM_KV_INT8) return vec_of_codes((const int8_t *)row + at);
  return vec_load((const float *)row + at);
}

INLINE int64_t size_of(npumm_kv_type type) { return type == NPUMM_KV_FLOAT32 ? 4 : type == NPUMM_KV_FLOAT16 ? 2 : 1; }

/* Before loops of a constant length: what they work on stays in registers, which is not sure otherwise. */
#if defined(__clang__)
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif

/*
 * Memory that is needed soon comes while other tokens are computed: processors do not look that far ahead by themselves,
 * since keys and values come in turns. To the second cache of x86-64 more lines are on their way at once than to the
 * first; int8 has so much to compute for each line that fewer suffice.
 */
INLINE void fetch(npumm_kv_type type, const void *row, int64_t ahead, int64_t bytes) {
  const char *at = (const char *)((uintptr_t)row + (uintptr_t)ahead);
  UNROLLED
  for (int64_t i = 0; i < bytes; i += 64) {
    if (ATTEND_FETCH_FAR && type != NPUMM_KV_INT8) {
      __builtin_prefetch(at + i, 0, 1);
    } else {
      __builtin_prefetch(at + i);
    }
  }
}

/* ---- scores -------------------------------------------------------------------------------------------------------- */

/*
 * Sums in lanes of `rows` queries with `together` times KEYS keys, of which KEYS that are 4 apart are folded. In several
 * passes, each over its part of the lanes, registers have room for more keys.
 */
INLINE void products(npumm_kv_type type, int rows, int together, int passes, const float *q, int64_t dim,
                     const void *const *keys, vec folded[4][ROWS]) {
  vec sums[4][ROWS][KEYS][GROUP];
  UNROLLED
  for (int pass = 0; pass < passes; pass++) {
    UNROLLED
    for (int t = 0; t < together; t++) {
      UNROLLED
      for (int r = 0; r < rows; r++) {
        UNROLLED
        for (int k = 0; k < KEYS; k++) {
          UNROLLED
          for (int g = pass; g < GROUP; g += passes) sums[t][r][k][g] = vec_all(0.0f);
        }
      }
    }
    for (int64_t d = 0; d < dim; d += 16) {
      UNROLLED
      for (int g = pass; g < GROUP; g += passes) {
        const int64_t at = d + g * WIDTH;
        vec queries[ROWS];
        UNROLLED
        for (int r = 0; r < rows; r++) queries[r] = vec_load(q + r * dim + at);
        UNROLLED
        for (int t = 0; t < together; t++) {
          UNROLLED
          for (int k = 0; k < KEYS; k++) {
            const vec key = load_as(type, keys[t + 4 * k], at);
            UNROLLED
            for (int r = 0; r < rows; r++) sums[t][r][k][g] = vec_fma(queries[r], key, sums[t][r][k][g]);
          }
        }
      }
    }
  }
  UNROLLED
  for (int t = 0; t < together; t++) {
    UNROLLED
    for (int r = 0; r < rows; r++) folded[t][r] = vec_fold(sums[t][r]);
  }
}

/* Scores of `rows` queries and the keys first to last. */
INLINE void scores_of_rows(npumm_kv_type type, int rows, const npumm_block *block, int64_t row, int64_t first,
                           int64_t last) {
  const int64_t dim = block->key_dim;
  const int fetches = block->key_ahead && row == 0, together = rows == 1 ? ALONE : TOGETHER;
  for (int64_t j = first; j < last; j += WIDTH) {
    vec folded[4][ROWS];
    for (int i = 0; i < 4; i += together) {
      for (int k = 0; fetches && k < together * KEYS; k++) {
        fetch(type, block->keys[j + i * KEYS + k], block->key_ahead, dim * size_of(type));
      }
      products(type, rows, together, PASSES, block->q + row * dim, dim, block->keys + j + i, folded + i);
    }
    for (int r = 0; r < rows; r++) {
      vec_store(block->scores + (row + r) * BLOCK + j,
                vec_join(folded[0][r], folded[1][r], folded[2][r], folded[3][r]));
    }
  }
}

/* ---- values -------------------------------------------------------------------------------------------------------- */

/* A token's values times the weights of rows. */
INLINE void add_token(npumm_kv_type type, int rows, int columns, const float *weights, const void *from, int64_t column,
                      vec sums[ROWS][COLUMNS]) {
#if ATTEND_WEIGHTS_FIRST
  vec each[ROWS];
  UNROLLED
  for (int r = 0; r < rows; r++) each[r] = vec_all(weights[r * BLOCK]);
  UNROLLED
  for (int c = 0; c < columns; c++) {
    const vec value = load_as(type, from, column + c * WIDTH);
    UNROLLED
    for (int r = 0; r < rows; r++) sums[r][c] = vec_fma(each[r], value, sums[r][c]);
  }
#else
  vec values[COLUMNS];
  UNROLLED
  for (int c = 0; c < columns; c++) values[c] = load_as(type, from, column + c * WIDTH);
  UNROLLED
  for (int r = 0; r < rows; r++) {
    const vec weight = vec_all(weights[r * BLOCK]);
    UNROLLED
    for (int c = 0; c < columns; c++) sums[r][c] = vec_fma(weight, values[c], sums[r][c]);
  }
#endif
}

/* Add tokens first to last to sums of `rows` queries and `columns` vectors; `shrinks` those with their factors before. */
INLINE void sums_of(npumm_kv_type type, int rows, int columns, const npumm_block *block, int64_t row, int64_t column,
                    int64_t first, int64_t last, int shrinks, int fetches) {
  vec sums[ROWS][COLUMNS];
  const int64_t dim = block->value_dim;
  float *at = block->sums + row * dim + column;
  const float *weights = block->scores + row * BLOCK;
  UNROLLED
  for (int r = 0; r < rows; r++) {
    const vec factor = vec_all(block->factor[row + r]);
    UNROLLED
    for (int c = 0; c < columns; c++) {
      const vec sum = vec_load(at + r * dim + c * WIDTH);
      sums[r][c] = shrinks ? vec_mul(sum, factor) : sum;
    }
  }
  for (int64_t j = first; j < last; j++) {
    if (fetches) {
      fetch(type, block->values[j], block->value_ahead + column * size_of(type), columns * WIDTH * size_of(type));
    }
    add_token(type, rows, columns, weights + j, block->values[j], column, sums);
  }
  UNROLLED
  for (int r = 0; r < rows; r++) {
    UNROLLED
    for (int c = 0; c < columns; c++) vec_store(at + r * dim + c * WIDTH, sums[r][c]);
  }
}

INLINE void all_columns(npumm_kv_type type, int rows, const npumm_block *block, int64_t row, int64_t first,
                        int64_t last, int shrinks) {
  int64_t column = 0;
  for (; column + COLUMNS * WIDTH <= block->value_dim; column += COLUMNS * WIDTH) {
    if (block->value_ahead && row == 0) {
      sums_of(type, rows, COLUMNS, block, row, column, first, last, shrinks, 1);
    } else {
      sums_of(type, rows, COLUMNS, block, row, column, first, last, shrinks, 0);
    }
  }
  for (; column < block->value_dim; column += WIDTH)
    sums_of(type, rows, 1, block, row, column, first, last, shrinks, 0);
}

/* Tokens that not all rows see come for each row by itself, before and after those that they all see. */
INLINE void values_of_rows(npumm_kv_type type, int rows, const npumm_block *block, int64_t row) {
  const int32_t *low = block->low + row, *high = block->high + row;
  int32_t first = low[0], last = high[0];
  for (int r = 1; r < rows; r++) {
    first = low[r] > first ? low[r] : first;
    last = high[r] < last ? high[r] : last;
  }
  if (last < first) last = first;
  int shrinks = 1;
  for (int r = 0; r < rows; r++) {
    if (low[r] < first) shrinks = 0;
  }
  if (!shrinks) {
    for (int r = 0; r < rows; r++) all_columns(type, 1, block, row + r, low[r], high[r] < first ? high[r] : first, 1);
  }
  all_columns(type, rows, block, row, first, last, shrinks);
  for (int r = 0; r < rows; r++) {
    const int32_t from = low[r] > last ? low[r] : last;
    if (from < high[r]) all_columns(type, 1, block, row + r, from, high[r], 0);
  }
}

/* ---- the softmax --------------------------------------------------------------------------------------------------- */

LANES float exp_of_one(float x) {
  float y[WIDTH];
  vec_store(y, vec_exp(vec_all(x)));
  return y[0];
}

/* Scores of a row become exponentials. */
LANES void weigh(const npumm_block *block, int64_t row) {
  const int32_t low = block->low[row], high = block->high[row];
  const int32_t first = low & ~15, last = (high + 15) & ~15;
  float *scores = block->scores + row * BLOCK;
  block->factor[row] = 1.0f;
  if (low >= high) return;
  if (block->scaled) {
    for (int32_t j = first; j < last; j += WIDTH) {
      vec_store(scores + j, vec_mul(vec_load(scores + j), vec_load(block->key_scales + j)));
    }
  }
  if (block->softcap > 0.0f) {
    const vec cap = vec_all(block->softcap);
    for (int32_t j = first; j < last; j += WIDTH) {
      vec_store(scores + j, vec_mul(cap, vec_tanh(vec_div(vec_load(scores + j), cap))));
    }
  }
  for (int32_t j = first; j < low; j++) scores[j] = -INFINITY;
  for (int32_t j = high; j < last; j++) scores[j] = -INFINITY;
  vec most[GROUP], sums[GROUP];
  for (int g = 0; g < GROUP; g++) {
    most[g] = vec_all(block->most[row]);
    sums[g] = vec_all(0.0f);
  }
  for (int32_t j = first; j < last; j += 16) {
    for (int g = 0; g < GROUP; g++) most[g] = vec_max(most[g], vec_load(scores + j + g * WIDTH));
  }
  const float before = block->most[row], now = vec_most(most);
  const float base = now == -INFINITY ? 0.0f : now; /* where all scores are minus infinity */
  for (int32_t j = first; j < last; j += 16) {
    for (int g = 0; g < GROUP; g++) {
      const vec each = vec_exp(vec_sub(vec_load(scores + j + g * WIDTH), vec_all(base)));
      sums[g] = vec_add(sums[g], each);
      vec_store(scores + j + g * WIDTH, each);
    }
  }
  if (now != before) block->factor[row] = exp_of_one(before - base);
  block->most[row] = now;
  block->total[row] = block->total[row] * block->factor[row] + vec_sum(sums);
  if (block->scaled) {
    for (int32_t j = first; j < last; j += WIDTH) {
      vec_store(scores + j, vec_mul(vec_load(scores + j), vec_load(block->value_scales + j)));
    }
  }
}

/* ---- a block ------------------------------------------------------------------------------------------------------- */

/* A switch over the rows that are left, so that the number is a constant of each loop. */
#if ATTEND_ROWS == 6
#define FOR_ROWS(rows, what) \
  switch (rows) {            \
    case 1:                  \
      what(1);               \
      break;                 \
    case 2:                  \
      what(2);               \
      break;                 \
    case 3:                  \
      what(3);               \
      break;                 \
    case 4:                  \
      what(4);               \
      break;                 \
    case 5:                  \
      what(5);               \
      break;                 \
    default:                 \
      what(6);               \
  }
#else
#define FOR_ROWS(rows, what) \
  switch (rows) {            \
    case 1:                  \
      what(1);               \
      break;                 \
    case 2:                  \
      what(2);               \
      break;                 \
    default:                 \
      what(3);               \
  }
#endif

INLINE void block_as(npumm_kv_type type, const npumm_block *block) {
  int64_t rows;
  for (int64_t row = 0; row < block->rows; row += rows) {
    const int64_t left = block->rows - row, turns = (left + ROWS - 1) / ROWS;
    rows = ATTEND_EVENLY ? (left + turns - 1) / turns : left < ROWS ? left : ROWS;
    int32_t low = BLOCK, high = 0;
    for (int64_t r = row; r < row + rows; r++) {
      if (block->low[r] >= block->high[r]) continue;
      low = block->low[r] < low ? block->low[r] : low;
      high = block->high[r] > high ? block->high[r] : high;
    }
    if (low >= high) continue;
    low &= ~15;
    high = (high + 15) & ~15;
#define SCORES(count) scores_of_rows(type, count, block, row, low, high)
    FOR_ROWS(rows, SCORES)
    for (int64_t r = row; r < row + rows; r++) weigh(block, r);
#define VALUES(count) values_of_rows(type, count, block, row)
    FOR_ROWS(rows, VALUES)
  }
}

LANES_TARGET static void block_of_floats(const npumm_block *block) { block_as(NPUMM_KV_FLOAT32, block); }
LANES_TARGET static void block_of_halves(const npumm_block *block) { block_as(NPUMM_KV_FLOAT16, block); }
LANES_TARGET static void block_of_codes(const npumm_block *block) { block_as(NPUMM_KV_INT8, block); }

LANES_TARGET static void block_of(const npumm_block *block) {
  if (block->type == NPUMM_KV_FLOAT16) {
    block_of_halves(block);
  } else if (block->type == NPUMM_KV_INT8) {
    block_of_codes(block);
  } else {
    block_of_floats(block);
  }
}

INLINE void widen_as(npumm_kv_type type, const void *row, int64_t dim, int64_t padded, float *out) {
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) { /* all loaded before the first is stored */
    vec x[GROUP];
    UNROLLED
    for (int g = 0; g < GROUP; g++) x[g] = load_as(type, row, d + g * WIDTH);
    UNROLLED
    for (int g = 0; g < GROUP; g++) vec_store(out + d + g * WIDTH, x[g]);
  }
  for (; d + WIDTH <= dim; d += WIDTH) vec_store(out + d, load_as(type, row, d));
  if (d < dim) { /* the rest of a row may be where memory ends */
    const int64_t size = type == NPUMM_KV_FLOAT16 ? 2 : type == NPUMM_KV_INT8 ? 1 : 4;
    union {
      float floats[WIDTH];
      uint16_t halves[WIDTH];
      int8_t codes[WIDTH];
    } rest; /* of whatever type it is read as: zeros that are stored as floats only are nothing to who reads halves */
    memset(&rest, 0, sizeof rest);
    memcpy(&rest, (const char *)row + d * size, (size_t)((dim - d) * size));
    vec_store(out + d, load_as(type, &rest, 0));
    d += WIDTH;
  }
  for (; d < padded; d += WIDTH) vec_store(out + d, vec_all(0.0f));
}

LANES_TARGET static void widen(npumm_kv_type type, const void *const *rows, int64_t count, int64_t dim, int64_t padded,
                               float *out) {
  for (int64_t i = 0; i < count; i++, out += padded) {
    if (type == NPUMM_KV_FLOAT16) {
      widen_as(NPUMM_KV_FLOAT16, rows[i], dim, padded, out);
    } else if (type == NPUMM_KV_INT8) {
      widen_as(NPUMM_KV_INT8, rows[i], dim, padded, out);
    } else {
      widen_as(NPUMM_KV_FLOAT32, rows[i], dim, padded, out);
    }
  }
}

const npumm_attend_loops ATTEND_LOOPS = {ATTEND_NAME, ATTEND_FEW, widen, block_of};
