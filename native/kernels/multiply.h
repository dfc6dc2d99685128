/*
 * The inner loops of products on the CPU: some rows of A times one column of native tiles of B. A scalar reference stands
 * beside each version per instruction set; all give the same bits.
 *
 * Floats are added in sixteen lanes: lane i of an element of C adds the products of places i, i + 16, i + 32, ... of the
 * row of A, as it is given here, one after the other. Products of two float16 are exact in float32, so it makes no
 * difference whether they are rounded before they are added. Lanes i and i + 8 are added then, of those i and i + 4,
 * i and i + 2, and the last two.
 */
#ifndef NPUMATMUL_MULTIPLY_H
#define NPUMATMUL_MULTIPLY_H

#include <stdint.h>

/* k_tiles tiles of B one after the other, each [tile_n][tile_k] elements. */
typedef struct {
  const uint8_t *b;
  int64_t k_tiles, tile_n, tile_k;
} npumm_tile_column;

/*
 * So many bytes ahead of what one row reads, every other line of B is asked into the L2 cache, which brings its neighbour
 * with it: the processor by itself does not look beyond the end of a page.
 */
enum { NPUMM_AHEAD = 6144 };

/* c[r * c_stride + n] = sum over k of a[r * a_stride + k] * b(n, k). Strides in elements. row_sums holds the sum of every
 * row of a, modulo 2^32. Where B is int4, places of a are in the order in which nibbles are taken: of every 32, first the
 * 16 that are in low halves, then those in high ones. */
typedef void npumm_int_loop(const int8_t *a, int64_t a_stride, const int32_t *row_sums, int64_t rows,
                            npumm_tile_column tiles, int32_t *c, int64_t c_stride);
typedef void npumm_float_loop(const float *a, int64_t a_stride, int64_t rows, npumm_tile_column tiles, float *c,
                              int64_t c_stride);

typedef struct {
  const char *name;
  npumm_int_loop *i8, *i4;
  npumm_float_loop *f16, *f16_i8, *f16_i4;
  void (*halves_to_floats)(const uint16_t *halves, float *out, int64_t count);
} npumm_multipliers;

extern const npumm_multipliers npumm_multipliers_scalar;
#if defined(__x86_64__)
extern const npumm_multipliers npumm_multipliers_avx2, npumm_multipliers_avx512;
#elif defined(__aarch64__)
extern const npumm_multipliers npumm_multipliers_neon, npumm_multipliers_neon_dotprod;
#endif

/* Those that this machine can do, the scalar reference first and the fastest last; NULL beyond it. */
const npumm_multipliers *npumm_multipliers_at(int32_t index);

/* The fastest. */
const npumm_multipliers *npumm_multipliers_best(void);

#endif
