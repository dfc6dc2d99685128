/*
 * The inner loops: rows of A times one N tile of native B. A scalar reference stands beside every SIMD version, and
 * native/tests/test_products.c compares them.
 */
#ifndef SIM_PRODUCTS_H
#define SIM_PRODUCTS_H

#include <stddef.h>
#include <stdint.h>

/*
 * The part of one N tile that a call works on: k_tiles tiles one after another, each [tile_n, tile_k] with k the
 * fastest. b needs no alignment (slices may start at any byte). tile_k is a multiple of 16; tile_n a multiple of 2, at
 * most SIM_TILE_N_MAX.
 */
typedef struct {
  const uint8_t *b;
  size_t k_tiles, tile_n, tile_k;
} sim_tiles;

#define SIM_TILE_N_MAX 64

typedef struct {
  const char *name;

  /* c[r * c_stride + n] += sum over k of a[r * a_stride + k] * b(n, k); b holds IEEE halves. */
  void (*f16)(const float *a, size_t a_stride, size_t rows, sim_tiles tiles, float *c, size_t c_stride);

  /* The same with int8; sums wrap modulo 2^32. */
  void (*i8)(const int8_t *a, size_t a_stride, size_t rows, sim_tiles tiles, int32_t *c, size_t c_stride);

  void (*halves_to_floats)(const uint8_t *halves, float *out, size_t count);

  /* in[i] - zero_point as halves, which hold every difference of two int8 exactly. */
  void (*ints_to_halves)(const int8_t *in, int32_t zero_point, uint8_t *halves, size_t count);

  /* bytes pairs of int4, the first element of a pair in the low nibble, to 2 * bytes int8. */
  void (*unpack_low_first)(const uint8_t *pairs, int8_t *out, size_t bytes);
} sim_products;

extern const sim_products sim_products_scalar;
#if defined(__x86_64__)
extern const sim_products sim_products_avx2;
#elif defined(__aarch64__)
extern const sim_products sim_products_neon;
extern const sim_products sim_products_neon_dotprod;
#endif

/* The fastest that this CPU can do. */
const sim_products *sim_best_products(void);

/* All that this CPU can do, the scalar reference first; for tests. Returns how many were written, at most max. */
size_t sim_all_products(const sim_products **list, size_t max);

/* IEEE binary16 to binary32, exact, with subnormals, infinities and NaNs. */
float sim_half_to_float(uint16_t half);

/* The nearest half, ties to even; too large a number gives infinity. */
uint16_t sim_float_to_half(float value);

#endif
