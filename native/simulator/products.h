/*
 * The inner loops: rows of A times one N tile of native B. A scalar reference stands beside every SIMD version, and
 * native/tests/test_products.c compares them.
 */
#ifndef SIM_PRODUCTS_H
#define SIM_PRODUCTS_H

#include <stdbool.h>
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
  void *spare; /* SIM_SPARE_BYTES of its elements, at a cache line; NULL where the loops shall not rearrange B */
} sim_tiles;

#define SIM_TILE_N_MAX 64

/*
 * So many bytes ahead of what one row reads, every other line of B is asked into the L2 cache, which brings its neighbour
 * with it: the processor by itself does not look beyond the end of a page.
 */
#define SIM_AHEAD 6144

/* Where loops may rearrange elements of B, as wide as floats at most. */
#define SIM_SPARE_BYTES(elements) (4 * (elements))

/* Rows of A, each as deep as the tiles. */
typedef struct {
  const void *values;  /* float for f16, for i8 what ready_ints made */
  size_t stride, rows; /* stride in values */
  const int32_t *sums; /* for i8: of each row, over the depth of the tiles */
} sim_rows;

typedef struct {
  const char *name;

  /* From so many rows on rearranging B is worth it, in blocks that stay in the L1 cache. With less the loops read it
   * strictly in the order in which it lies in memory. */
  size_t blocks_from;

  /* c[r * c_stride + n] += sum over k of a(r, k) * b(n, k); b holds IEEE halves. */
  void (*f16)(sim_rows a, sim_tiles tiles, float *c, size_t c_stride);

  /* The same with int8; sums wrap modulo 2^32. */
  void (*i8)(sim_rows a, sim_tiles tiles, int32_t *c, size_t c_stride);

  /* Rows of int8 as i8 takes them, int_bytes each. */
  size_t int_bytes;
  void (*ready_ints)(const int8_t *in, void *out, size_t count);

  int32_t (*sum_ints)(const int8_t *in, size_t count);

  void (*halves_to_floats)(const uint8_t *halves, float *out, size_t count);

  /* in[i] - zero_point as halves, which hold every difference of two int8 exactly. */
  void (*ints_to_halves)(const int8_t *in, int32_t zero_point, uint8_t *halves, size_t count);

  /* bytes pairs of int4 to 2 * bytes int8; the first element of a pair is in the low nibble or in the high one. */
  void (*unpack_pairs)(const uint8_t *pairs, bool low_first, int8_t *out, size_t bytes);
} sim_products;

extern const sim_products sim_products_scalar;
#if defined(__x86_64__)
extern const sim_products sim_products_avx2, sim_products_avx512;
#if defined(__linux__) && ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define SIM_KNOWS_AMX
extern const sim_products sim_products_amx;
bool sim_has_amx(void); /* with AVX-512, if the system lets us, and if it multiplies as the reference does */
#endif
#elif defined(__aarch64__)
extern const sim_products sim_products_neon;
extern const sim_products sim_products_neon_dotprod;
#endif

/* Those that this CPU can do, the scalar reference first and the fastest last; NULL beyond it. */
const sim_products *sim_products_at(size_t index);

/* The fastest that this CPU can do. */
const sim_products *sim_best_products(void);

/* IEEE binary16 to binary32, exact, with subnormals, infinities and NaNs. */
float sim_half_to_float(uint16_t half);

/* The nearest half, ties to even; too large a number gives infinity. */
uint16_t sim_float_to_half(float value);

#endif
