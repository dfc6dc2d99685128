/*
 * Products on the CPU with native tiles: every instruction set that the machine has, against sums that are made here from
 * the definition of the layout, in integers and in double; against each other and for every number of rows bit by bit; and
 * what has to be refused. Compile: gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_multiply.c
 * native/kernels/[a-z]*.c -lm
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "count.h"
#include "npumatmul_kernels.h"

static uint32_t state = 4711;
static uint32_t next_random(void) {
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

static void *need(size_t bytes) { /* exactly as large as asked for, so that the sanitizers see a step too far */
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) abort();
  return memory;
}

static int is_float(npumm_operands of) { return of >= NPUMM_F16_F16; }
static int a_bits(npumm_operands of) { return is_float(of) ? 16 : of == NPUMM_I4_I4 ? 4 : 8; }
static int b_bits(npumm_operands of) {
  return of == NPUMM_F16_F16 ? 16 : of == NPUMM_I8_I8 || of == NPUMM_F16_I8 ? 8 : 4;
}

/* Halves with few bits, subnormals among them, as the sign, exponent and fraction say: no conversion is trusted. */
static double half_value(uint16_t half) {
  const int exponent = (half >> 10) & 31, fraction = half & 0x3ff;
  const double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
  return half & 0x8000 ? -size : size;
}

static double value_at(const uint8_t *memory, int64_t index, int bits, int high_first) {
  if (bits == 8) return (int8_t)memory[index];
  if (bits == 4) {
    const int nibble = memory[index / 2] >> ((index % 2 != 0) != high_first ? 4 : 0) & 15;
    return nibble < 8 ? nibble : nibble - 16;
  }
  uint16_t half;
  memcpy(&half, memory + 2 * index, sizeof half);
  return half_value(half);
}

/* Any bits; halves are finite and of all sizes. Every seventh byte is the least integer that there is. */
static uint8_t *random_bytes(int64_t bytes, int bits) {
  uint8_t *memory = need((size_t)bytes);
  for (int64_t i = 0; i < bytes; i++) {
    memory[i] = i % 7 ? (uint8_t)next_random() : bits == 4 ? 0x88 : 0x80;
    if (bits == 16 && i % 2) memory[i] = (uint8_t)((memory[i] & 0x80) | (next_random() % 64)); /* below 2 */
  }
  return memory;
}

/* Where element (k, n) stands in B. */
static int64_t place(const npumm_native_b *of, int64_t k, int64_t n) {
  const int64_t tile = n / of->tile_n * (of->k / of->tile_k) + k / of->tile_k;
  return (tile * of->tile_n + n % of->tile_n) * of->tile_k + k % of->tile_k;
}

static void check_value(const npumm_native_b *of, const uint8_t *row, const uint8_t *b, int64_t n, const void *c,
                        const char *set) {
  int64_t whole = 0;
  double sum = 0, size = 0;
  for (int64_t k = 0; k < of->k; k++) {
    const double product = value_at(row, k, a_bits(of->operands), of->high_first) *
                           value_at(b, place(of, k, n), b_bits(of->operands), of->high_first);
    whole += is_float(of->operands) ? 0 : (int64_t)product;
    sum += product, size += fabs(product);
  }
  if (is_float(of->operands)) {
    const double got = (double)((const float *)c)[n];
    CHECK(fabs(got - sum) <= size * ldexp((double)(of->k / 16 + 4), -24), "%s, operands %d, K %d: %.9g is not %.9g",
          set, (int)of->operands, (int)of->k, got, sum);
  } else {
    const int32_t got = ((const int32_t *)c)[n];
    CHECK(got == whole, "%s, operands %d, K %d: %d is not %lld", set, (int)of->operands, (int)of->k, got,
          (long long)whole);
  }
}

static void one_shape(npumm_native_b of, int64_t rows, int64_t a_gap, int64_t c_gap) {
  const int64_t a_stride = of.k * a_bits(of.operands) / 8 + a_gap, c_stride = (of.n + c_gap) * 4;
  const int64_t c_bytes = rows * c_stride - c_gap * 4;
  uint8_t *a = random_bytes(rows * a_stride - a_gap, a_bits(of.operands));
  uint8_t *b = random_bytes(of.k * of.n * b_bits(of.operands) / 8, b_bits(of.operands));
  uint8_t *reference = need((size_t)c_bytes), *c = need((size_t)c_bytes), *alone = need((size_t)of.n * 4);
  for (int32_t set = 0; npumm_multiply_set(set); set++) {
    const char *name = npumm_multiply_set(set);
    memset(c, 0x5a, (size_t)c_bytes); /* gaps stay as they are */
    CHECK(npumm_multiply_by(set, &of, rows, a, a_stride, b, c, c_stride) == NPUMM_OK, "%s", name);
    if (set == 0) {
      memcpy(reference, c, (size_t)c_bytes);
      for (int64_t r = 0; r < rows; r += 1 + rows / 3) {
        for (int64_t n = r % 5; n < of.n; n += 5) check_value(&of, a + r * a_stride, b, n, c + r * c_stride, name);
      }
    }
    CHECK(memcmp(reference, c, (size_t)c_bytes) == 0,
          "%s, operands %d, %d x %d x %d, tile %d x %d: not as the scalar one", name, (int)of.operands, (int)rows,
          (int)of.k, (int)of.n, (int)of.tile_n, (int)of.tile_k);
    for (int64_t r = 0; r < rows; r += 1 + rows / 3) {
      CHECK(npumm_multiply_by(set, &of, 1, a + r * a_stride, a_stride, b, alone, c_stride) == NPUMM_OK, "%s", name);
      CHECK(memcmp(alone, c + r * c_stride, (size_t)of.n * 4) == 0, "%s, operands %d: row %d alone is another", name,
            (int)of.operands, (int)r);
    }
  }
  CHECK(npumm_multiply(&of, rows, a, a_stride, b, c, c_stride) == NPUMM_OK, "the fastest");
  CHECK(memcmp(reference, c, (size_t)c_bytes) == 0, "the fastest is not as the scalar one");
  free(a), free(b), free(c), free(reference), free(alone);
}

/* The tiles of all chips (facts 4.2, 4.5), and deeper ones that none has. */
static const npumm_native_b shapes[] = {
    {NPUMM_I8_I8, 0, 0, 0, 32, 32},  {NPUMM_I8_I8, 0, 0, 0, 16, 32},  {NPUMM_I8_I8, 0, 0, 0, 48, 64},
    {NPUMM_I8_I8, 0, 0, 0, 64, 32},  {NPUMM_I8_I4, 0, 0, 0, 64, 32},
    {NPUMM_I8_I4, 0, 0, 0, 32, 32},  {NPUMM_I8_I4, 1, 0, 0, 32, 32},  {NPUMM_I8_I4, 0, 0, 0, 16, 96},
    {NPUMM_I4_I4, 0, 0, 0, 64, 32},  {NPUMM_I4_I4, 1, 0, 0, 64, 32},  {NPUMM_F16_F16, 0, 0, 0, 16, 32},
    {NPUMM_F16_F16, 0, 0, 0, 8, 16}, {NPUMM_F16_F16, 0, 0, 0, 8, 32}, {NPUMM_F16_F16, 0, 0, 0, 24, 48},
    {NPUMM_F16_I8, 0, 0, 0, 16, 32}, {NPUMM_F16_I8, 0, 0, 0, 8, 16},  {NPUMM_F16_I4, 0, 0, 0, 16, 32},
    {NPUMM_F16_I4, 1, 0, 0, 16, 32}, {NPUMM_F16_I4, 0, 0, 0, 8, 64},
};

static void odd_shapes(void) {
  static const int64_t rows[] = {1, 2, 3, 4, 5, 7, 8, 13, 33};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    for (size_t m = 0; m < sizeof rows / sizeof *rows; m++) {
      npumm_native_b of = shapes[s];
      of.k = of.tile_k * (1 + (int64_t)(s + m) % 4), of.n = of.tile_n * (1 + (int64_t)(s + 2 * m) % 3);
      one_shape(of, rows[m], m % 2 ? 6 : 0, m % 3 ? 3 : 0);
    }
  }
}

/* Every product as large as it can be: sums of pairs in int16 would saturate, and many of them wrap around int32. */
static void extremes(void) {
  enum { DEPTH = 160 * 1024 };
  int8_t *a = need(DEPTH);
  uint8_t *b = need(DEPTH * 32);
  for (int sign = 0; sign < 2; sign++) {
    memset(a, sign ? 0x80 : 0x7f, DEPTH);
    for (npumm_operands operands = NPUMM_I8_I8; operands <= NPUMM_I8_I4; operands++) {
      memset(b, operands == NPUMM_I8_I8 ? 0x80 : 0x88, DEPTH * 32);
      for (int64_t depth = 32; depth <= DEPTH; depth *= 5120) {
        const npumm_native_b of = {operands, 0, depth, 32, 32, 32};
        const int64_t sum = depth * (sign ? -128 : 127) * (operands == NPUMM_I8_I8 ? -128 : -8);
        for (int32_t set = depth == 32 ? 0 : 1; npumm_multiply_set(set); set++) {
          int32_t c[2][32];
          CHECK(npumm_multiply_by(set, &of, 1, a, depth, b, c[0], sizeof c[0]) == NPUMM_OK, "extremes");
          CHECK((uint32_t)c[0][31] == (uint32_t)sum, "%s: %d is not %lld modulo 2^32", npumm_multiply_set(set),
                c[0][31], (long long)sum);
        }
      }
    }
  }
  free(a), free(b);
}

/* inf and nan go through as in float32 arithmetic, whoever computes it. */
static void not_finite(void) {
  const npumm_native_b of = {NPUMM_F16_F16, 0, 32, 8, 8, 32};
  uint16_t a[32], b[8 * 32];
  for (int i = 0; i < 32; i++) a[i] = 0x3c00; /* 1 */
  for (int i = 0; i < 8 * 32; i++) b[i] = 0x3c00;
  b[3] = 0x7c00;                           /* inf in column 0 */
  b[32 + 3] = 0x7c00, b[32 + 20] = 0xfc00; /* inf - inf in column 1 */
  b[2 * 32 + 31] = 0x7e00;                 /* nan in column 2 */
  for (int32_t set = 0; npumm_multiply_set(set); set++) {
    float c[8];
    HOLDS(npumm_multiply_by(set, &of, 1, a, sizeof a, b, c, sizeof c) == NPUMM_OK);
    HOLDS(isinf(c[0]) && isnan(c[1]) && isnan(c[2]) && c[3] == 32 && c[7] == 32);
  }
}

static void refusals(void) {
  const npumm_native_b good = {NPUMM_I8_I8, 0, 32, 32, 32, 32};
  int8_t a[32] = {0}, b[32 * 32] = {0};
  int32_t c[32];
  HOLDS(npumm_multiply(&good, 1, a, 32, b, c, sizeof c) == NPUMM_OK);
  HOLDS(npumm_multiply(&good, 0, a, 32, b, c, sizeof c) == NPUMM_OK);
  HOLDS(npumm_multiply(NULL, 1, a, 32, b, c, sizeof c) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_multiply(&good, 1, NULL, 32, b, c, sizeof c) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_multiply(&good, 1, a, 32, NULL, c, sizeof c) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_multiply(&good, 1, a, 32, b, NULL, sizeof c) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_multiply(&good, -1, a, 32, b, c, sizeof c) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_multiply(&good, 1, a, 32, b, c, 130) == NPUMM_BAD_ARGUMENT);
  const npumm_native_b wrong[] = {
      {(npumm_operands)6, 0, 32, 32, 32, 32}, {NPUMM_I8_I8, 0, 33, 32, 32, 32},
      {NPUMM_I8_I8, 0, 32, 31, 32, 32},       {NPUMM_I8_I8, 0, 32, 32, 8, 32},
      {NPUMM_I8_I8, 0, 32, 32, 32, 16},       {NPUMM_I8_I8, 0, 32, 32, 0, 32},
      {NPUMM_F16_I4, 0, 32, 32, 16, 16},      {NPUMM_F16_F16, 0, 32, 32, 4, 32},
      {NPUMM_I8_I8, 0, -32, 32, 32, 32},      {NPUMM_I8_I8, 0, 32, (int64_t)1 << 40, 32, 32},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    CHECK(npumm_multiply(&wrong[i], 1, a, 32, b, c, sizeof c) == NPUMM_BAD_ARGUMENT, "wrong shape %d", (int)i);
  }
  const npumm_native_b halves = {NPUMM_F16_F16, 0, 16, 8, 8, 16};
  HOLDS(npumm_multiply(&halves, 1, a, 33, b, c, sizeof c) == NPUMM_BAD_ARGUMENT); /* rows at odd addresses */
  HOLDS(npumm_multiply_by(-1, &good, 1, a, 32, b, c, sizeof c) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_multiply_by(99, &good, 1, a, 32, b, c, sizeof c) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_multiply_set(-1) == NULL && strcmp(npumm_multiply_set(0), "scalar") == 0);
}

int main(void) {
  odd_shapes();
  extremes();
  not_finite();
  refusals();
  for (int32_t set = 0; npumm_multiply_set(set); set++) printf("%s ", npumm_multiply_set(set));
  return report("test_multiply");
}
