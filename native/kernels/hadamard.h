/*
 * The inner loops of the Hadamard transform, one table per instruction set. Every result is the same tree of additions
 * in all of them, so all give the same bits.
 */
#ifndef NPUMATMUL_HADAMARD_H
#define NPUMATMUL_HADAMARD_H

#include <stdint.h>

enum { NPUMM_LANES = 8 };

typedef struct {
  /* dst[i] = src[i] * factor[i]; factor NULL: src[i]. src may be dst. */
  void (*scale)(const float *src, const float *factor, float *dst, int64_t n);
  /* dst[i] = src[i] / divisor[i]. src may be dst. */
  void (*divide)(const float *src, const float *divisor, float *dst, int64_t n);
  /* Butterflies in place: Sylvester's matrix times each block of n floats; a block is a power of two and divides n. */
  void (*power)(float *x, int64_t n, int64_t block);
  /* out[i][lane] = sum over j, in order, of matrix[i * order + j] * in[j][lane]; entries are 1 and -1 */
  void (*dense)(const float *matrix, int64_t order, const float (*in)[NPUMM_LANES], float (*out)[NPUMM_LANES]);
} npumm_hadamard_kernels;

extern const npumm_hadamard_kernels npumm_hadamard_scalar;
#if defined(__x86_64__)
extern const npumm_hadamard_kernels npumm_hadamard_avx2;
#elif defined(__aarch64__)
extern const npumm_hadamard_kernels npumm_hadamard_neon;
#endif

const npumm_hadamard_kernels *npumm_hadamard_here(void);

#endif
