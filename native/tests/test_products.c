/*
 * The simulator's SIMD inner loops against its scalar reference. From native/:
 *   gcc -std=c17 -O2 -Wall -Wextra -Werror -Iinclude -Isimulator -o test_products tests/test_products.c
 *       simulator/products_*.c -lm && ./test_products
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "products.h"

static unsigned passed, failed;

#define CHECK(condition, ...)                         \
  do {                                                \
    if (condition) {                                  \
      passed++;                                       \
    } else {                                          \
      failed++;                                       \
      fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
      fprintf(stderr, __VA_ARGS__);                   \
      fprintf(stderr, "\n");                          \
    }                                                 \
  } while (0)

static uint32_t random_state = 1;

static uint32_t next_random(void) {
  random_state = random_state * 1664525u + 1013904223u;
  return random_state >> 8;
}

/* An allocation that ends the test program when there is no memory. */
static void *need(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) abort();
  return memory;
}

/* The same at a cache line. */
static void *need_lines(size_t bytes) {
  void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!memory) abort();
  return memory;
}

/* Shapes around the loops' own steps: rows in fours, sixes and eights and rests, one tile and many, all tiles of the
 * chips and narrower ones. */
static const size_t row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 19};
static const size_t tile_counts[] = {1, 2, 3, 18};
static const struct { size_t n, k; } tile_shapes[] = {{16, 32}, {32, 32}, {64, 32}, {8, 32}, {8, 16}, {16, 16}};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Finite halves of all exponents up to 2^3, and zero. */
static uint16_t random_half(void) { return (uint16_t)((next_random() & 0x8000u) | next_random() % 0x4800u); }

static void check_f16(const sim_products *products, size_t rows, size_t k_tiles, size_t tile_n, size_t tile_k,
                      bool rearranges) {
  size_t K = k_tiles * tile_k, a_stride = K + next_random() % 9, c_stride = tile_n + next_random() % 5;
  size_t misaligned = next_random() % 3; /* B may start at any byte */
  void *spare = rearranges ? need_lines(SIM_SPARE_BYTES(K * tile_n)) : NULL;
  float *a = need(rows * a_stride * sizeof *a);
  uint8_t *b = need(K * tile_n * 2 + misaligned);
  float *c = need(rows * c_stride * sizeof *c), *expected = need(rows * c_stride * sizeof *c);
  for (size_t i = 0; i < rows * a_stride; i++) a[i] = sim_half_to_float(random_half());
  for (size_t i = 0; i < K * tile_n; i++) {
    uint16_t half = random_half();
    memcpy(b + misaligned + 2 * i, &half, 2);
  }
  for (size_t i = 0; i < rows * c_stride; i++) c[i] = expected[i] = (float)(next_random() % 100);
  sim_tiles tiles = {.b = b + misaligned, .k_tiles = k_tiles, .tile_n = tile_n, .tile_k = tile_k, .spare = spare};
  sim_rows of = {.values = a, .stride = a_stride, .rows = rows};
  sim_products_scalar.f16(of, tiles, expected, c_stride);
  products->f16(of, tiles, c, c_stride);
  double worst = 0;
  for (size_t i = 0; i < rows * c_stride; i++) {
    /* Sums of K products of at most 64, in another order: a few units of float32's 2^-24 of their magnitude. */
    double error = fabs((double)c[i] - (double)expected[i]) / (64.0 * (double)K + 100);
    if (error > worst) worst = error;
  }
  CHECK(worst < 1e-5, "%s f16 rows %zu, %zu tiles [%zu, %zu]: error %g", products->name, rows, k_tiles, tile_n, tile_k,
        worst);
  free(a);
  free(b);
  free(c);
  free(expected);
  free(spare);
}

static void check_i8(const sim_products *products, size_t rows, size_t k_tiles, size_t tile_n, size_t tile_k,
                     bool rearranges, bool extreme) {
  size_t K = k_tiles * tile_k, a_stride = K + next_random() % 9, c_stride = tile_n + next_random() % 5;
  int8_t *a = need(rows * a_stride);
  void *ready = need(rows * a_stride * products->int_bytes),
       *spare = rearranges ? need_lines(SIM_SPARE_BYTES(K * tile_n)) : NULL;
  int32_t *sums = need(rows * sizeof *sums);
  uint8_t *b = need(K * tile_n + 1) + 1;
  int32_t *c = need(rows * c_stride * sizeof *c), *expected = need(rows * c_stride * sizeof *c);
  for (size_t i = 0; i < rows * a_stride; i++) a[i] = extreme ? -128 : (int8_t)next_random();
  for (size_t i = 0; i < K * tile_n; i++) b[i] = extreme ? 0x80 : (uint8_t)next_random();
  for (size_t i = 0; i < rows * c_stride; i++) c[i] = expected[i] = extreme ? INT32_MAX : (int32_t)next_random();
  sim_tiles tiles = {.b = b, .k_tiles = k_tiles, .tile_n = tile_n, .tile_k = tile_k, .spare = spare};
  sim_rows of = {.values = a, .stride = a_stride, .rows = rows, .sums = sums};
  for (size_t r = 0; r < rows; r++) sums[r] = products->sum_ints(a + r * a_stride, K);
  sim_products_scalar.i8(of, tiles, expected, c_stride);
  products->ready_ints(a, ready, rows * a_stride);
  of.values = ready;
  products->i8(of, tiles, c, c_stride);
  CHECK(memcmp(c, expected, rows * c_stride * sizeof *c) == 0, "%s i8 rows %zu, %zu tiles [%zu, %zu], extreme %d",
        products->name, rows, k_tiles, tile_n, tile_k, extreme);
  if (extreme) {
    int32_t wrapped = (int32_t)((uint32_t)INT32_MAX + (uint32_t)K * 16384u);
    CHECK(c[0] == wrapped, "%s i8 wraps to %d, not %d", products->name, c[0], wrapped);
  }
  free(a);
  free(ready);
  free(spare);
  free(sums);
  free(b - 1);
  free(c);
  free(expected);
}

static void check_conversions(const sim_products *products) {
  /* Every half there is, in counts that leave a rest. */
  uint16_t *halves = need(65536 * sizeof *halves);
  float *floats = need(65536 * sizeof *floats);
  for (uint32_t i = 0; i < 65536; i++) halves[i] = (uint16_t)i;
  products->halves_to_floats((const uint8_t *)halves, floats, 65535);
  unsigned wrong = 0;
  for (uint32_t i = 0; i < 65535; i++) {
    float expected = sim_half_to_float((uint16_t)i);
    wrong += memcmp(&expected, &floats[i], sizeof expected) != 0;
  }
  CHECK(wrong == 0, "%s: %u halves converted wrongly", products->name, wrong);
  free(halves);
  free(floats);

  uint8_t pairs[277];
  int8_t out[2 * sizeof pairs], expected[2 * sizeof pairs];
  for (size_t i = 0; i < sizeof pairs; i++) pairs[i] = (uint8_t)i;
  for (int low_first = 0; low_first < 2; low_first++) {
    products->unpack_pairs(pairs, low_first, out, sizeof pairs);
    sim_products_scalar.unpack_pairs(pairs, low_first, expected, sizeof pairs);
    CHECK(memcmp(out, expected, sizeof out) == 0, "%s: int4 unpacked wrongly, low %d", products->name, low_first);
  }

  int8_t values[531];
  for (size_t i = 0; i < sizeof values; i++) values[i] = (int8_t)(next_random() % 2 ? next_random() : 0x80);
  for (size_t count = 0; count <= sizeof values; count += 59) {
    int32_t sum = 0;
    for (size_t i = 0; i < count; i++) sum += values[i];
    CHECK(products->sum_ints(values, count) == sum, "%s: sum of %zu integers", products->name, count);
  }

  /* Every int8 less every zero point, in a count that leaves a rest. */
  wrong = 0;
  for (int zero_point = -128; zero_point <= 127; zero_point++) {
    int8_t ints[255];
    uint8_t results[2 * sizeof ints];
    for (int i = 0; i < 255; i++) ints[i] = (int8_t)(i - 128);
    products->ints_to_halves(ints, zero_point, results, sizeof ints);
    for (int i = 0; i < 255; i++) {
      uint16_t half;
      memcpy(&half, results + 2 * i, sizeof half);
      wrong += sim_half_to_float(half) != (float)(i - 128 - zero_point);
    }
  }
  CHECK(wrong == 0, "%s: %u integers converted wrongly", products->name, wrong);
}

/* Every half comes back from its float; between two neighbours the nearer one, and in the middle the even one. */
static void check_rounding(void) {
  unsigned wrong = 0;
  for (uint32_t half = 0; half < 0x7c00; half++) {
    float here = sim_half_to_float((uint16_t)half);
    float above = half == 0x7bff ? 65536 : sim_half_to_float((uint16_t)(half + 1));
    float middle = (here + above) / 2; /* exact: halves have 11 bits */
    uint32_t even = half % 2 ? half + 1 : half;
    wrong += sim_float_to_half(here) != half || sim_float_to_half(-here) != (half | 0x8000);
    wrong += sim_float_to_half(middle) != even;
    wrong += sim_float_to_half(nextafterf(middle, 0)) != half;
    wrong += sim_float_to_half(nextafterf(middle, 1e9f)) != half + 1;
  }
  wrong += sim_float_to_half(1e30f) != 0x7c00 || sim_float_to_half(-HUGE_VALF) != 0xfc00;
  wrong += sim_float_to_half(1e-30f) != 0 || sim_float_to_half(-1e-30f) != 0x8000;
  wrong += !isnan(sim_half_to_float(sim_float_to_half(NAN)));
  CHECK(wrong == 0, "%u floats rounded wrongly", wrong);
}

/* The reference itself, against the definition of binary16 and of two's complement. */
static void check_reference(void) {
  unsigned wrong = 0;
  for (uint32_t half = 0; half < 65536; half++) {
    int exponent = half >> 10 & 31, fraction = half & 1023;
    double sign = half & 0x8000 ? -1 : 1;
    float value = sim_half_to_float((uint16_t)half);
    if (exponent == 31) {
      bool right = fraction ? isnan(value) : (double)value == sign * HUGE_VAL;
      wrong += !right;
    } else {
      double expected = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
      wrong += (double)value != sign * expected || !signbit(value) != (sign > 0);
    }
  }
  CHECK(wrong == 0, "%u halves differ from the definition", wrong);

  const uint8_t pairs[2] = {0x8f, 0x70};
  int8_t out[4];
  sim_products_scalar.unpack_pairs(pairs, true, out, 2);
  CHECK(out[0] == -1 && out[1] == -8 && out[2] == 0 && out[3] == 7, "int4 reference");
  sim_products_scalar.unpack_pairs(pairs, false, out, 2);
  CHECK(out[0] == -8 && out[1] == -1 && out[2] == 7 && out[3] == 0, "int4 reference, high first");
}

int main(void) {
  check_reference();
  check_rounding();
  for (size_t v = 0; sim_products_at(v); v++) {
    const sim_products *products = sim_products_at(v);
    check_conversions(products);
    for (size_t r = 0; r < COUNT(row_counts); r++) {
      for (size_t t = 0; t < COUNT(tile_counts); t++) {
        for (size_t s = 0; s < COUNT(tile_shapes); s++) {
          size_t n = tile_shapes[s].n, k = tile_shapes[s].k;
          for (int rearranges = 0; rearranges < 2; rearranges++) {
            check_f16(products, row_counts[r], tile_counts[t], n, k, rearranges);
            check_i8(products, row_counts[r], tile_counts[t], n, k, rearranges, false);
            check_i8(products, row_counts[r], tile_counts[t], n, k, rearranges, true);
          }
        }
      }
    }
    printf("%s: compared\n", products->name);
  }
#if defined(SETS_ARE_EMULATED) /* by tools/c_tests.py */
  CHECK(strcmp(sim_best_products()->name, "amx") == 0, "AMX is emulated, and does not agree with the reference");
#endif
  printf("test_products: %u passed, %u failed\n", passed, failed);
  return failed != 0;
}
