/*
 * One call of every kernel of 64-bit ARM, in memory of its own: tools/neon_report.py counts the instructions of each.
 * Prints the name and the bytes that a call has to read and to write; enter_call and leave_call stand around it.
 */
#if defined(__aarch64__)

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "../kernels/checksum.h"
#include "../kernels/finish.h"
#include "../kernels/hadamard.h"
#include "../kernels/multiply.h"
#include "../kernels/rounding.h"
#include "../kernels/rows.h"
#include "../layers/attend.h"
#include "../layers/loops.h"

enum { N = 2048, ORDER = 44, HEAD = 64, TOKENS = NPUMM_ATTEND_BLOCK, MOST_ROWS = 4, SPACE = 1 << 15 };

#define BUFFER(type, name, count) static _Alignas(64) type name[count]
BUFFER(float, x, SPACE);
BUFFER(float, y, SPACE);
BUFFER(float, z, SPACE);
BUFFER(float, out, SPACE);
BUFFER(int32_t, whole, N);
BUFFER(uint16_t, halves, SPACE);
BUFFER(int8_t, codes, SPACE);
BUFFER(uint8_t, bytes, SPACE);

/* Places in the program where the count of a call begins and ends. */
__attribute__((noinline)) void enter_call(void) { __asm__ volatile(""); }
__attribute__((noinline)) void leave_call(void) { __asm__ volatile(""); }

#define CALL(name, reads, writes, ...)                                         \
  do {                                                                         \
    printf("%s %lld %lld\n", (name), (long long)(reads), (long long)(writes)); \
    enter_call();                                                              \
    __VA_ARGS__;                                                               \
    leave_call();                                                              \
  } while (0)

static void call_rows(const npumm_row_kernels *rows) {
  int finite = 1;
  float range[2] = {0, 0};
  const npumm_quantizer how = {0.01f, -127, 127, 0};
  const npumm_quantizers each = {y, z, out, out + N, whole, 1, 0};
  for (int i = 0; i < N; i++) y[i] = 0.01f, z[i] = 1.0f / 0.01f, out[i] = -127, out[N + i] = 127, whole[i] = 0;
  CALL("rows f32_to_f16", 4 * N, 2 * N, rows->f32_to_f16(x, halves, N, 1));
  CALL("rows f32_to_f16_high", 4 * N, 2 * N, rows->f32_to_f16_high(x, halves, N, 1));
  CALL("rows f32_to_f16_low", 4 * N, 2 * N, rows->f32_to_f16_low(x, halves, N, 1));
  CALL("rows quantize", 4 * N, N, rows->quantize(x, codes, N, &how));
  CALL("rows quantize_columns", 24 * N, N, rows->quantize_columns(x, codes, N, &each));
  CALL("rows pairs", N, N / 2, rows->pairs(codes, bytes, N, 1, 0));
  CALL("rows pair_columns", N, N / 2, rows->pair_columns(codes, codes + N / 2, bytes, N / 2, 1, 0));
  CALL("rows sum", N, 0, rows->sum(codes, N));
  CALL("rows absmax", 4 * N, 0, rows->absmax(x, N, &finite));
  CALL("rows minmax", 4 * N, 0, rows->minmax(x, N, range, &finite));
  CALL("rows absmax_columns", 8 * N, 4 * N, rows->absmax_columns(x, N, (uint32_t *)bytes));
  static const char *const transposes[3] = {"rows transpose 1", "rows transpose 2", "rows transpose 4"};
  for (int i = 0; i < 3; i++) {
    const int64_t side = 64, element = 1 << i;
    const npumm_transposed of = {side, side, element, 1024, side, side * element, 0};
    CALL(transposes[i], side * side * element, side * side * element,
         rows->transpose(&of, (const char *)x, (char *)out, 0));
  }
  const npumm_columns columns = {1024, 512, 16, 0, 0, 0};
  CALL("rows copy_columns", 16 * 512, 16 * 512,
       rows->copy_columns(&columns, (const char *)x, (char *)out, NPUMM_PITCH));
  static const char *const pieces[3] = {"rows pieces 16", "rows pieces 32", "rows pieces 64"};
  for (int i = 0; i < 3; i++) {
    const npumm_pieces of = {16 << i, 32, 64 >> i, 1024, 32 * (16 << i)};
    CALL(pieces[i], 32 * 1024, 32 * 1024, rows->pieces(&of, (const char *)x, (char *)out, 0));
  }
}

static void call_finish(const npumm_finish_kernels *finish) {
  enum { PIECE = NPUMM_BLOCK };
  for (int i = 0; i < N; i++) whole[i] = i;
  npumm_steps steps[NPUMM_GROUP_ROWS] = {{.row = 0.5, .columns = npumm_no_scales, .low = -INFINITY, .high = INFINITY}};
  CALL("finish_int32", 12 * PIECE, 4 * PIECE, finish->finish_int32(whole, PIECE, steps, out));
  CALL("finish_float32", 12 * PIECE, 4 * PIECE, finish->finish_float32(x, PIECE, steps, out));
  float *rows[NPUMM_GROUP_ROWS];
  for (int r = 0; r < NPUMM_GROUP_ROWS; r++) steps[r] = steps[0], rows[r] = out + r * PIECE;
  CALL("finish_groups", (4 * NPUMM_GROUP_ROWS + 8) * PIECE, 4 * NPUMM_GROUP_ROWS * PIECE,
       finish->finish_groups(whole, 16, PIECE / 4, NPUMM_GROUP_ROWS, steps, rows));
  static const char *const functions[7] = {"finish factor, summand", "finish relu", "finish gelu",
                                           "finish gelu_tanh",       "finish silu", "finish relu2",
                                           "finish sigmoid"};
  for (int i = 0; i < 7; i++) {
    const npumm_steps how = {.bias = npumm_no_summands,
                             .factor = y,
                             .summand = z,
                             .function = (npumm_function)i,
                             .low = -INFINITY,
                             .high = INFINITY};
    CALL(functions[i], 16 * PIECE, 4 * PIECE, finish->finish_float32(x, PIECE, &how, out));
  }
  CALL("finish subtract", 8 * N, 4 * N, finish->subtract(whole, N, 3, whole));
  CALL("finish add", 8 * N, 4 * N, finish->add(out, x, N));
  CALL("finish to_doubles", 4 * N, 8 * N, finish->to_doubles(x, N, (double *)(void *)out));
  CALL("finish from_f16", 2 * N, 4 * N, finish->from_f16(halves, N, out));
  CALL("finish from_bf16", 2 * N, 4 * N, finish->from_bf16(halves, N, out));
  CALL("finish to_bf16", 4 * N, 2 * N, finish->to_bf16(x, N, halves));
}

static void call_hadamard(const npumm_hadamard_kernels *hadamard) {
  CALL("hadamard scale", 8 * N, 4 * N, hadamard->power(x, y, out, N, 1));
  CALL("hadamard divide", 8 * N, 4 * N, hadamard->divide(x, y, out, N));
  CALL("hadamard power", 4 * N, 4 * N, hadamard->power(out, NULL, out, N, N));
  for (int i = 0; i < ORDER * ORDER / 4; i++) bytes[i] = (uint8_t)(i * 7 % 16 * 16);
  CALL("hadamard dense", 4 * ORDER * NPUMM_LANES, 4 * ORDER * NPUMM_LANES,
       hadamard->dense(bytes, ORDER, out, NPUMM_LANES));
  CALL("hadamard known", 4 * ORDER * NPUMM_LANES, 4 * ORDER * NPUMM_LANES, hadamard->known(ORDER, out, NPUMM_LANES));
}

static void call_layers(const npumm_layer_loops *layers) {
  CALL("layers sum", 4 * N, 0, layers->sum(x, N));
  CALL("layers sum_of_squares", 4 * N, 0, layers->sum_of_squares(x, N));
  CALL("layers subtract", 4 * N, 4 * N, layers->subtract(x, 0.5f, out, N));
  CALL("layers divide", 8 * N, 4 * N, layers->divide(x, 0.5f, y, out, N));
  CALL("layers turn", 8 * N, 4 * N, layers->turn(x, y, z, out, N / 2));
  CALL("layers turn_pairs", 8 * N, 4 * N, layers->turn_pairs(x, y, z, out, N / 2));
  CALL("layers add", 8 * N, 4 * N, layers->add(x, y, out, N));
  CALL("layers add_scaled", 8 * N, 4 * N, layers->add_scaled(x, y, 0.5f, out, N));
  CALL("layers scale", 4 * N, 4 * N, layers->scale(x, 0.5f, out, N));
}

/* B counts as read: rows of A and C stay in caches. */
static void call_multipliers(const npumm_multipliers *by) {
  enum { K = 512, B_BYTES = K * 32 };
  static const int row_counts[2] = {1, MOST_ROWS};
  static const int32_t row_sums[MOST_ROWS];
  char name[64];
#define PRODUCT(field, a, tile_n_, tile_k_, row_bytes, ...)                                            \
  do {                                                                                                 \
    const npumm_tile_column tiles = {bytes, K / (tile_k_), (tile_n_), (tile_k_)};                      \
    snprintf(name, sizeof name, "%s %s %d rows", by->name, #field, rows);                              \
    CALL(name, (tile_n_) * (row_bytes), 0, by->field(a, K, __VA_ARGS__ rows, tiles, (void *)out, 64)); \
  } while (0)
  for (int i = 0; i < 2; i++) {
    const int rows = row_counts[i];
    PRODUCT(i8, codes, 32, 32, K, row_sums, );
    PRODUCT(i4, codes, 64, 32, K / 2, row_sums, );
    PRODUCT(f16, x, 16, 32, 2 * K, );
    PRODUCT(f16_i8, x, 16, 32, K, );
    PRODUCT(f16_i4, x, 16, 32, K / 2, );
  }
  snprintf(name, sizeof name, "%s halves_to_floats", by->name);
  CALL(name, 2 * N, 4 * N, by->halves_to_floats(halves, out, N));
}

/* Keys and values count as read. */
static void call_attention(const npumm_attend_loops *attend) {
  static const char *const types[4] = {"", "float32", "float16", "int8"};
  static const int32_t sizes[4] = {0, 4, 2, 1};
  static const int row_counts[2] = {1, MOST_ROWS};
  static float factor[MOST_ROWS], most[MOST_ROWS], total[MOST_ROWS], sums[MOST_ROWS * HEAD], scores[MOST_ROWS * TOKENS];
  static const int32_t low[MOST_ROWS] = {0}, high[MOST_ROWS] = {TOKENS, TOKENS, TOKENS, TOKENS};
  static npumm_block block;
  char name[64];
  for (int type = 1; type <= 3; type++) {
    const void *const data[4] = {0, x, halves, codes};
    for (int i = 0; i < TOKENS; i++) {
      block.keys[i] = (const char *)data[type] + (int64_t)i * HEAD * sizes[type];
      block.values[i] = (const char *)data[type] + (int64_t)(TOKENS + i) * HEAD * sizes[type];
      block.key_scales[i] = block.value_scales[i] = 1;
    }
    block.type = (npumm_kv_type)type, block.scaled = type == 3;
    block.key_dim = block.value_dim = HEAD;
    block.low = low, block.high = high, block.q = z, block.scores = scores;
    block.most = most, block.total = total, block.factor = factor, block.sums = sums;
    for (int i = 0; i < 2; i++) {
      block.rows = row_counts[i];
      snprintf(name, sizeof name, "attend block %s %d rows", types[type], row_counts[i]);
      CALL(name, 2 * TOKENS * HEAD * sizes[type], 0, attend->block(&block));
    }
    snprintf(name, sizeof name, "attend widen %s", types[type]);
    CALL(name, TOKENS * HEAD * sizes[type], 4 * TOKENS * HEAD,
         attend->widen((npumm_kv_type)type, block.keys, TOKENS, HEAD, HEAD, out));
  }
}

int main(void) {
  double sums[3];
  for (int i = 0; i < SPACE; i++) x[i] = y[i] = z[i] = (float)(i % 255 - 127) * 0.00993f + 0.001f;
  CALL("checksum", N, 0, npumm_crc_arm(0, bytes, N));
  call_rows(&npumm_rows_neon);
  for (int i = 0; i < SPACE; i++) y[i] = z[i] = 0.5f;
  CALL("rounding_sums", 8 * N, 0, npumm_rounding_sums_base(x, y, N, 0.01f, -127, 127, sums));
  call_finish(&npumm_finish_base);
  call_hadamard(&npumm_hadamard_neon);
  call_layers(&npumm_layer_loops_base);
  call_multipliers(&npumm_multipliers_neon);
  call_multipliers(&npumm_multipliers_neon_dotprod);
  call_attention(&npumm_attend_neon);
  return 0;
}

#else
int main(void) { return 0; }
#endif
