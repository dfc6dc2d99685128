/*
 * The inner loops of the Hadamard transform, one table per instruction set. Every result is the same tree of additions
 * in all of them, so all give the same bits.
 */
#ifndef NPUMATMUL_HADAMARD_H
#define NPUMATMUL_HADAMARD_H

#include <stdint.h>

/*
 * A dense factor takes NPUMM_LANES columns at a time. Its matrix is given as codes, one for four entries of a row: bit
 * 4 + j says that entry j is -1. The 16 signed sums of four inputs are computed once, so that a code is where its sum
 * begins, and every row adds up one of each four; NPUMM_FOURS of them at a time, so that they stay in the first cache.
 */
enum { NPUMM_LANES = 16, NPUMM_FOURS = 24, NPUMM_SUMS = 16 * NPUMM_LANES };

typedef struct {
  /* dst[i] = src[i] / divisor[i]. src may be dst. */
  void (*divide)(const float *src, const float *divisor, float *dst, int64_t n);
  /*
   * Butterflies: Sylvester's matrix times each block of n floats src[i] * factor[i], or with factor NULL src[i]; a block is
   * a power of two and divides n. src may be dst.
   */
  void (*power)(const float *src, const float *factor, float *dst, int64_t n, int64_t block);
  /*
   * Row j of x, at x + j * stride, holds NPUMM_LANES floats. Each row i becomes the sum over f, in order, of
   * (x[4f] +- x[4f + 1]) +- (x[4f + 2] +- x[4f + 3]) or its negative, with the signs of codes[i * order / 4 + f]. order
   * is a multiple of 4, at most NPUMM_HADAMARD_ORDER.
   */
  void (*dense)(const uint8_t *codes, int64_t order, float *x, int64_t stride);
  /* The same with the codes of npumm_known_codes, which are compiled in; of orders that have some. */
  void (*known)(int64_t order, float *x, int64_t stride);
} npumm_hadamard_kernels;

/* Codes of the matrix that is compiled in for an order; NULL where there is none. */
const uint8_t *npumm_known_codes(int64_t order);

extern const npumm_hadamard_kernels npumm_hadamard_scalar;
#if defined(__x86_64__)
extern const npumm_hadamard_kernels npumm_hadamard_avx2;
extern const npumm_hadamard_kernels npumm_hadamard_avx512;
#elif defined(__aarch64__)
extern const npumm_hadamard_kernels npumm_hadamard_neon;
#endif

/* Those that this machine can run, by number: 0 is the scalar reference, the last one is the best. NULL beyond it. */
const npumm_hadamard_kernels *npumm_hadamard_at(int index);

const npumm_hadamard_kernels *npumm_hadamard_here(void);

#endif
