/*
 * Results: the store kernel against a plain evaluation of its formula over odd shapes, types and numbers of slices, and
 * epilogues against numbers worked out exactly. Compile: gcc -std=c17 -Inative/include -Inative/kernels
 * native/tests/test_store.c native/kernels/[a-z]*.c -lm
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "count.h"
#include "epilogue.h"
#include "finish.h"
#include "npumatmul_store.h"

static uint32_t state = 4711;
static uint32_t random_bits(void) {
  state = state * 1664525u + 1013904223u;
  return state ^ (state >> 15);
}
static int below(int limit) { return (int)(random_bits() % (uint32_t)limit); }
static int within(int low, int high) { return low + below(high - low + 1); }

static void *need(size_t bytes) { /* exactly as large as asked for, so that the sanitizers see a step too far */
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) abort();
  return memory;
}

/* ---- the store kernel ----------------------------------------------------------------------------------------------- */

enum { ROWS_MOST = 9, COLS_MOST = 600, SLICES_MOST = 3 };

/* Everything about one result of up to SLICES_MOST slices, chosen at random. */
typedef struct {
  int rows, cols, images, slices;
  npumm_result_type type;
  int scaled_each, rows_scaled_each, zeros_a, zeros_b;
  npumm_element out_type;
  int32_t c[SLICES_MOST][2 * ROWS_MOST][COLS_MOST]; /* values of C, also where it holds floats */
  int32_t row_zero[SLICES_MOST][ROWS_MOST], row_sum[SLICES_MOST][ROWS_MOST];
  int32_t column_zero[SLICES_MOST][COLS_MOST], column_sums[SLICES_MOST][COLS_MOST];
  float scale[SLICES_MOST][COLS_MOST];
  double factor[SLICES_MOST][ROWS_MOST];
} example;

static int is_float(npumm_result_type type) { return type == NPUMM_C_FLOAT32 || type == NPUMM_C_FLOAT16; }

static uint16_t half_of_small_int(int32_t value) { /* exact for magnitudes up to 2048 */
  const uint16_t sign = value < 0 ? 0x8000 : 0;
  uint32_t magnitude = (uint32_t)(value < 0 ? -value : value);
  if (magnitude == 0) return sign;
  int exponent = 0;
  while (magnitude >> (exponent + 1)) exponent++;
  return (uint16_t)(sign | (uint32_t)(exponent + 15) << 10 | ((magnitude << 10 >> exponent) & 0x3ff));
}

/* C of a slice in its tiles; padding holds what must not show. */
static void *packed(const example *e, int slice, const npumm_tiling *t, int64_t *bytes) {
  const int64_t size = e->type == NPUMM_C_INT8 ? 1 : e->type == NPUMM_C_INT16 || e->type == NPUMM_C_FLOAT16 ? 2 : 4;
  *bytes = t->padded_rows * t->padded_cols * size;
  char *memory = need((size_t)*bytes);
  memset(memory, 0x5a, (size_t)*bytes);
  for (int r = 0; r < t->rows; r++) {
    for (int c = 0; c < t->cols; c++) {
      const int64_t at = ((int64_t)(c / t->tile_cols) * t->padded_rows + r) * t->tile_cols + c % t->tile_cols;
      const int32_t value = e->c[slice][r][c];
      if (e->type == NPUMM_C_INT8) ((int8_t *)memory)[at] = (int8_t)value;
      if (e->type == NPUMM_C_INT16) ((int16_t *)(void *)memory)[at] = (int16_t)value;
      if (e->type == NPUMM_C_INT32) ((int32_t *)(void *)memory)[at] = value;
      if (e->type == NPUMM_C_FLOAT32) ((float *)(void *)memory)[at] = (float)value;
      if (e->type == NPUMM_C_FLOAT16) ((uint16_t *)(void *)memory)[at] = half_of_small_int(value);
    }
  }
  return memory;
}

static void choose(example *e) {
  const npumm_result_type types[] = {NPUMM_C_INT32, NPUMM_C_FLOAT32, NPUMM_C_INT16, NPUMM_C_FLOAT16, NPUMM_C_INT8};
  e->type = types[below(5)];
  e->rows = within(1, ROWS_MOST), e->cols = below(4) ? within(1, 40) : within(200, COLS_MOST);
  e->slices = within(1, SLICES_MOST);
  e->images = is_float(e->type) ? 1 : within(1, 2);
  e->rows_scaled_each = below(3) == 0, e->scaled_each = e->rows_scaled_each || below(2);
  e->zeros_a = !is_float(e->type) && below(2), e->zeros_b = !is_float(e->type) && below(2);
  e->out_type = (npumm_element)below(4);
  if (e->out_type == NPUMM_INT32 && (is_float(e->type) || e->scaled_each)) e->out_type = NPUMM_FLOAT32;
  const int largest = e->type == NPUMM_C_INT8 ? 127 : 2000;
  for (int s = 0; s < e->slices; s++) {
    for (int r = 0; r < e->rows * e->images; r++) {
      for (int c = 0; c < e->cols; c++) e->c[s][r][c] = within(-largest, largest);
    }
    for (int r = 0; r < e->rows; r++) {
      e->row_sum[s][r] = within(-9999, 9999), e->row_zero[s][r] = within(-128, 127);
      e->factor[s][r] = e->rows_scaled_each || s == 0 ? within(1, 999) / 64.0 : e->factor[0][r];
    }
    for (int c = 0; c < e->cols; c++) {
      e->column_zero[s][c] = within(-128, 127), e->column_sums[s][c] = within(-9999, 9999);
      e->scale[s][c] = e->scaled_each || s == 0 ? (float)within(1, 999) / 256.0f : e->scale[0][c];
    }
  }
}

/* The formula, in float64 and integers: everything here is exact but the last rounding and sums of scaled slices. */
static double expected(const example *e, int r, int c, double *magnitude) {
  double sum = 0;
  *magnitude = 0;
  for (int s = 0; s < e->slices; s++) {
    int64_t term = e->c[s][r][c];
    if (e->images == 2) term = 16 * term + e->c[s][e->rows + r][c];
    if (e->zeros_a) term -= (int64_t)e->row_zero[s][r] * e->column_sums[s][c];
    if (e->zeros_b) term -= (int64_t)e->column_zero[s][c] * e->row_sum[s][r];
    const double factor = e->out_type == NPUMM_INT32 ? 1.0 : (double)e->scale[s][c] * e->factor[s][r];
    sum += (double)term * factor;
    *magnitude += fabs((double)term * factor);
  }
  return sum;
}

static double value_at(const void *out, npumm_element type, int64_t index) {
  float value;
  switch (type) {
    case NPUMM_INT32:
      return ((const int32_t *)out)[index];
    case NPUMM_FLOAT16:
      npumm_finish()->from_f16((const uint16_t *)out + index, 1, &value);
      return (double)value;
    case NPUMM_BFLOAT16:
      npumm_finish()->from_bf16((const uint16_t *)out + index, 1, &value);
      return (double)value;
    default:
      return (double)((const float *)out)[index];
  }
}

static void store_one(example *e) {
  choose(e);
  const int group = below(2) ? 4 : 8, in_place = below(2);
  const int64_t padded_rows = (e->rows * e->images + 3) / 4 * 4, padded_cols = (e->cols + group - 1) / group * group;
  const int native = below(2);
  const npumm_tiling tiling = {e->rows * e->images, e->cols,     padded_rows,
                               padded_cols,         padded_rows, native ? group : padded_cols};
  const int widen = npumm_bytes_of(e->out_type) == 2 && below(2);
  const int64_t bytes = widen ? 4 : npumm_bytes_of(e->out_type);
  char *out = need((size_t)(e->rows * e->cols * bytes));
  void *sums = need((size_t)e->rows * (size_t)e->cols * 4);
  int code = 0;
  for (int s = 0; s < e->slices; s++) {
    int64_t size;
    void *c = packed(e, s, &tiling, &size);
    const npumm_term term = {e->type,
                             e->images,
                             e->zeros_a ? e->row_zero[s] : NULL,
                             e->zeros_a ? e->column_sums[s] : NULL,
                             e->zeros_b ? e->row_sum[s] : NULL,
                             e->zeros_b ? e->column_zero[s] : NULL,
                             e->scaled_each ? e->scale[s] : NULL,
                             e->rows_scaled_each ? e->factor[s] : NULL};
    const npumm_partial partial = {in_place && bytes == 4 && !widen ? out : sums, e->cols * 4, s > 0, e->scaled_each};
    const int plain = e->out_type == NPUMM_INT32;
    npumm_result result = {out,
                           e->cols * bytes,
                           e->out_type,
                           plain || e->rows_scaled_each ? NULL : e->factor[0],
                           plain || e->scaled_each ? NULL : e->scale[0],
                           NULL,
                           0,
                           0,
                           widen};
    const npumm_partial *so_far = e->slices == 1 ? NULL : &partial;
    if (s < e->slices - 1 || below(2)) {
      code |= npumm_store(&tiling, &term, c, size, so_far, s == e->slices - 1 ? &result : NULL);
    } else { /* some rows at a time */
      for (int row = 0, count; row < e->rows; row += count) {
        count = within(1, e->rows - row);
        result.data = out + row * e->cols * bytes;
        code |= npumm_store_rows(&tiling, &term, c, size, row, count, so_far, &result);
      }
      code |= npumm_store_rows(&tiling, &term, c, size, 1, e->rows, so_far, &result) != NPUMM_BAD_ARGUMENT;
    }
    free(c);
  }
  CHECK(code == NPUMM_OK, "npumm_store returned %d", code);
  /* one rounding to the result's type, and one per sum and term where slices are scaled one by one */
  const double unit = e->out_type == NPUMM_FLOAT16 ? 0x1p-11 : e->out_type == NPUMM_BFLOAT16 ? 0x1p-8 : 0;
  const double sums_unit = e->out_type == NPUMM_INT32 ? 0 : (e->scaled_each ? 2 * SLICES_MOST : 1) * 0x1p-24;
  int right = 1;
  for (int r = 0; r < e->rows; r++) {
    for (int c = 0; c < e->cols; c++) {
      double magnitude;
      const double want = expected(e, r, c, &magnitude),
                   got = value_at(out, widen ? NPUMM_FLOAT32 : e->out_type, (int64_t)r * e->cols + c);
      const double error = (e->scaled_each ? magnitude : fabs(want)) * sums_unit;
      if (e->out_type == NPUMM_FLOAT16 && fabs(want) > 65000) right &= fabs(got) > 64000;
      else right &= fabs(got - want) <= error + (fabs(want) + error) * unit;
    }
  }
  CHECK(right, "type %d, out %d, %d slices, %d images, each scaled %d", e->type, e->out_type, e->slices, e->images,
        e->scaled_each);
  free(out), free(sums);
}

static void int32_sums_wrap(void) {
  const npumm_tiling tiling = {1, 1, 1, 4, 1, 4};
  const int32_t c[4] = {INT32_MAX, 0, 0, 0};
  int32_t out = 1;
  const npumm_term term = {.type = NPUMM_C_INT32, .row_images = 1};
  const npumm_partial partial = {&out, 4, 1, 0};
  const npumm_result result = {.data = &out, .row_stride = 4, .type = NPUMM_INT32};
  CHECK(npumm_store(&tiling, &term, c, sizeof c, &partial, &result) == NPUMM_OK, "store");
  CHECK(out == INT32_MIN, "INT32_MAX + 1 is %d", out);
}

/* Codes that the device made of sums already: as they are, with nothing around them touched. */
static void int8_results_are_copied(void) {
  enum { M = 5, N = 300, PADDED = 304, STRIDE = 303 };
  static int8_t c[M * PADDED], out[M * STRIDE];
  static int32_t sums[M * N];
  static const double factors[M] = {1, 1, 1, 1, 1};
  const npumm_tiling tilings[] = {{M, N, M, PADDED, M, PADDED}, {M, N, M, PADDED, M, 16}};
  npumm_term term = {.type = NPUMM_C_INT8, .row_images = 1};
  npumm_result result = {.data = out, .row_stride = STRIDE, .type = NPUMM_INT8};
  for (int i = 0; i < M * PADDED; i++) c[i] = (int8_t)within(-128, 127);
  for (int native = 0; native < 2; native++) {
    const npumm_tiling *t = &tilings[native];
    memset(out, 0x55, sizeof out);
    CHECK(npumm_store(t, &term, c, sizeof c, NULL, &result) == NPUMM_OK, "int8");
    int right = 1;
    for (int r = 0; r < M; r++) {
      for (int64_t col = 0; col < N; col++) {
        right &= out[r * STRIDE + col] == c[(col / t->tile_cols * M + r) * t->tile_cols + col % t->tile_cols];
      }
      for (int col = N; col < STRIDE; col++) right &= out[r * STRIDE + col] == 0x55;
    }
    CHECK(right, "int8, native %d", native);
  }
  const npumm_tiling row = {1, N, 1, PADDED, 1, PADDED};
  const npumm_partial partial = {sums, N * 4, 0, 0};
  CHECK(npumm_store(tilings, &term, c, sizeof c, &partial, &result) == NPUMM_BAD_ARGUMENT, "sums of codes");
  result.row_factor = factors;
  CHECK(npumm_store(tilings, &term, c, sizeof c, NULL, &result) == NPUMM_BAD_ARGUMENT, "factors of codes");
  result.row_factor = NULL, term.row_zero = sums;
  CHECK(npumm_store(tilings, &term, c, sizeof c, NULL, &result) == NPUMM_BAD_ARGUMENT, "zero points of codes");
  term.row_zero = NULL, term.type = NPUMM_C_INT16;
  CHECK(npumm_store(&row, &term, c, sizeof c, NULL, &result) == NPUMM_BAD_ARGUMENT, "int16 as int8");
}

/* ---- epilogues -------------------------------------------------------------------------------------------------------- */

/* All steps at once on numbers that float32 holds exactly, so that the order shows. */
static void epilogue_by_hand(void) {
  enum { M = 2, N = 300 };
  static float c[M][N], multiply[M][N + 3], bias[N], out[M][N];
  static uint16_t residual[M][N]; /* bfloat16 */
  for (int i = 0; i < M * N; i++) {
    c[i / N][i % N] = (float)within(-64, 64);
    multiply[i / N][i % N] = (float)within(-8, 8);
    residual[i / N][i % N] = (uint16_t)((within(0, 1) ? 0x8000 : 0) | 0x4000); /* 2 or -2 */
    bias[i % N] = (float)within(-8, 8) / 4;
  }
  const npumm_tiling tiling = {M, N, M, N, M, N};
  const npumm_term term = {.type = NPUMM_C_FLOAT32, .row_images = 1};
  const npumm_epilogue epilogue = {.scale = 0.5,
                                   .bias = bias,
                                   .function = NPUMM_RELU,
                                   .multiply = {multiply, sizeof multiply[0], NPUMM_FLOAT32},
                                   .residual = {residual, sizeof residual[0], NPUMM_BFLOAT16},
                                   .low = -100,
                                   .high = 90};
  npumm_result result = {.data = out, .row_stride = sizeof out[0], .type = NPUMM_FLOAT32, .epilogue = &epilogue};
  CHECK(npumm_store(&tiling, &term, c, sizeof c, NULL, &result) == NPUMM_OK, "store");
  int right = 1;
  for (int r = 0; r < M; r++) {
    for (int i = 0; i < N; i++) {
      double want = c[r][i] * 0.5 + bias[i];
      want = (want < 0 ? 0 : want) * multiply[r][i] + (residual[r][i] & 0x8000 ? -2 : 2);
      want = want < -100 ? -100 : want > 90 ? 90 : want;
      right &= (double)out[r][i] == want;
    }
  }
  CHECK(right, "epilogue");

  /* a tile that begins elsewhere finds its own part of the operands */
  float one;
  const npumm_tiling last = {1, 1, 1, 1, 1, 1};
  npumm_result corner = result;
  corner.data = &one, corner.row = M - 1, corner.column = N - 1;
  CHECK(npumm_store(&last, &term, &c[M - 1][N - 1], 4, NULL, &corner) == NPUMM_OK, "store");
  CHECK(one == out[M - 1][N - 1], "corner");
}

/*
 * Groups of 4 columns, which one loop reads where they stand: every number of rows, columns that fill no group, from any
 * row on, each kind of result. One float32 operation after the other tells the bits.
 */
static void groups_by_hand(void) {
  enum { M = 11, N = 272 };
  static int32_t c[(M + 1) * N];
  static float bias[N], scale[N], multiply[M][N], residual[M][N], out[M][N], whole[M][N];
  double factor[M];
  for (int i = 0; i < (M + 1) * N; i++) c[i] = (int32_t)random_bits();
  for (int i = 0; i < M * N; i++) {
    multiply[i / N][i % N] = (float)within(-99, 99) / 7, residual[i / N][i % N] = (float)within(-99, 99) * 1e6f;
    bias[i % N] = (float)within(-99, 99) * 1e7f, scale[i % N] = (float)within(1, 999) / 77;
  }
  for (int r = 0; r < M; r++) factor[r] = within(1, 999) / 99.0;
  const npumm_term term = {.type = NPUMM_C_INT32, .row_images = 1};
  for (int kind = 0; kind < 32; kind++) {
    const int rows = within(1, M), cols = below(2) ? within(1, N / 4) * 4 : within(1, N), first = below(rows);
    const int count = within(1, rows - first);
    const npumm_tiling tiling = {rows, cols, M + 1, N, M + 1, 4};
    npumm_epilogue epilogue = {.scale = 0.3, .low = -INFINITY, .high = kind & 8 ? 1e8f : INFINITY};
    if (kind & 1) epilogue.bias = bias;
    if (kind & 2) epilogue.multiply = (npumm_matrix){multiply, sizeof multiply[0], NPUMM_FLOAT32};
    if (kind & 4) epilogue.residual = (npumm_matrix){residual, sizeof residual[0], NPUMM_FLOAT32};
    if (kind & 16) epilogue.function = NPUMM_RELU;
    npumm_result result = {
        .data = out[first], .row_stride = sizeof out[0], .row_factor = factor, .epilogue = &epilogue};
    if (below(4)) result.column_scale = scale;
    memset(out, 0x5a, sizeof out), memcpy(whole, out, sizeof out);
    CHECK(npumm_store_rows(&tiling, &term, c, sizeof c, first, count, NULL, &result) == NPUMM_OK, "store");
    for (int r = first; r < first + count; r++) {
      for (int i = 0; i < cols; i++) {
        const double scaled = (double)c[(i / 4 * (M + 1) + r) * 4 + i % 4] * (factor[r] * 0.3);
        float value = (float)(result.column_scale ? scaled * (double)scale[i] : scaled);
        if (kind & 1) value += bias[i];
        if (kind & 16 && value < 0) value = 0;
        if (kind & 2) value *= multiply[r][i];
        if (kind & 4) value += residual[r][i];
        if (kind & 8 && value > 1e8f) value = 1e8f;
        whole[r][i] = value;
      }
    }
    CHECK(memcmp(out, whole, sizeof out) == 0, "kind %d, %d x %d", kind, rows, cols);
    if (kind & 4) { /* the summand is the result's own memory */
      for (int r = first; r < first + count; r++) memcpy(out[r], residual[r], sizeof out[r]);
      epilogue.residual.data = out;
      CHECK(npumm_store_rows(&tiling, &term, c, sizeof c, first, count, NULL, &result) == NPUMM_OK, "store");
      int same = 1;
      for (int r = first; r < first + count; r++) same &= memcmp(out[r], whole[r], (size_t)cols * 4) == 0;
      CHECK(same, "kind %d, %d x %d in place", kind, rows, cols);
      epilogue.residual.data = residual;
    }
    uint16_t halves[M][N], rounded[M][N];
    memset(halves, 0, sizeof halves), memset(rounded, 0, sizeof rounded);
    result.data = halves[first], result.row_stride = sizeof halves[0], result.type = NPUMM_BFLOAT16;
    CHECK(npumm_store_rows(&tiling, &term, c, sizeof c, first, count, NULL, &result) == NPUMM_OK, "store");
    for (int r = first; r < first + count; r++) npumm_cast(whole[r], cols, NPUMM_BFLOAT16, rounded[r]);
    CHECK(memcmp(halves, rounded, sizeof halves) == 0, "kind %d, %d x %d, bfloat16", kind, rows, cols);
  }
}

static void bad_arguments_are_refused(void) {
  static float memory[64];
  const npumm_tiling tiling = {4, 4, 4, 4, 4, 4};
  const npumm_term ints = {.type = NPUMM_C_INT32, .row_images = 1}, floats = {.type = NPUMM_C_FLOAT32, .row_images = 1};
  npumm_epilogue epilogue = {.scale = 1, .function = (npumm_function)9};
  npumm_result good = {.data = memory, .row_stride = 16, .type = NPUMM_FLOAT32}, bad;
  npumm_term term;
  CHECK(npumm_store(&tiling, &ints, memory, 64, NULL, &good) == NPUMM_OK, "good");
  CHECK(npumm_store(&tiling, &ints, memory, 63, NULL, &good) == NPUMM_BUFFER_TOO_SMALL, "short buffer");
  CHECK(npumm_store(&tiling, &ints, NULL, 64, NULL, &good) == NPUMM_BAD_ARGUMENT, "no C");
  CHECK(npumm_store(&tiling, NULL, memory, 64, NULL, &good) == NPUMM_BAD_ARGUMENT, "no term");
  CHECK(npumm_store(NULL, &ints, memory, 64, NULL, &good) == NPUMM_BAD_ARGUMENT, "no tiling");
  CHECK(npumm_store(&tiling, &ints, memory, 64, NULL, NULL) == NPUMM_BAD_ARGUMENT, "nowhere to go");
  term = ints, term.type = (npumm_result_type)9;
  CHECK(npumm_store(&tiling, &term, memory, 64, NULL, &good) == NPUMM_BAD_ARGUMENT, "type");
  term = ints, term.row_images = 3;
  CHECK(npumm_store(&tiling, &term, memory, 64, NULL, &good) == NPUMM_BAD_ARGUMENT, "images");
  term = floats, term.row_images = 2;
  CHECK(npumm_store(&tiling, &term, memory, 64, NULL, &good) == NPUMM_BAD_ARGUMENT, "halves of floats");
  bad = good, bad.type = NPUMM_INT32;
  CHECK(npumm_store(&tiling, &floats, memory, 64, NULL, &bad) == NPUMM_BAD_ARGUMENT, "floats as int32");
  bad = good, bad.row_stride = 15;
  CHECK(npumm_store(&tiling, &ints, memory, 64, NULL, &bad) == NPUMM_BAD_ARGUMENT, "stride");
  bad = good, bad.type = (npumm_element)7;
  CHECK(npumm_store(&tiling, &ints, memory, 64, NULL, &bad) == NPUMM_BAD_ARGUMENT, "element");
  bad = good, bad.epilogue = &epilogue;
  CHECK(npumm_store(&tiling, &ints, memory, 64, NULL, &bad) == NPUMM_BAD_ARGUMENT, "function");
  epilogue.function = NPUMM_SILU, epilogue.multiply.data = memory, epilogue.multiply.type = NPUMM_INT32;
  CHECK(npumm_store(&tiling, &ints, memory, 64, NULL, &bad) == NPUMM_BAD_ARGUMENT, "operand");
  epilogue.multiply.type = NPUMM_INT8;
  CHECK(npumm_store(&tiling, &ints, memory, 64, NULL, &bad) == NPUMM_BAD_ARGUMENT, "operand of int8");
  const npumm_partial unaligned = {(char *)memory + 1, 16, 1, 0};
  CHECK(npumm_store(&tiling, &ints, memory, 64, &unaligned, &good) == NPUMM_BAD_ARGUMENT, "alignment");
}

int main(void) {
  int32_sums_wrap();
  int8_results_are_copied();
  epilogue_by_hand();
  groups_by_hand();
  bad_arguments_are_refused();
  example *e = need(sizeof *e);
  for (int i = 0; i < 1500; i++) store_one(e);
  free(e);
  printf("finishing loops: %s\n", npumm_finish()->name);
  return report("test_store");
}
