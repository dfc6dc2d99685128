/* The scalar inner loops of the Hadamard transform: the reference, and what the others leave over. See hadamard.h. */
#include "hadamard.h"

#include <stddef.h>

#include "hadamard_codes.h"
#include "npumatmul_kernels.h"

static void divide(const float *src, const float *divisor, float *dst, int64_t n) {
  for (int64_t i = 0; i < n; i++) dst[i] = src[i] / divisor[i];
}

static void power(const float *src, const float *factor, float *x, int64_t n, int64_t block) {
  for (int64_t i = 0; i < n; i++) x[i] = factor ? src[i] * factor[i] : src[i];
  for (int64_t half = 1; half < block; half *= 2) {
    for (int64_t start = 0; start < n; start += 2 * half) {
      for (int64_t i = start; i < start + half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
}

/* (x0 +- x1) +- (x2 +- x3) with the signs of a code; where x0's is -, the negative of the opposite signs' sum. */
static float sum_of_four(unsigned code, float x0, float x1, float x2, float x3) {
  const unsigned signs = code & 1u ? ~code : code;
  const float first = signs & 2u ? x0 - x1 : x0 + x1;
  const float second = !(signs & 4u) == !(signs & 8u) ? x2 + x3 : x2 - x3;
  const float sum = signs & 4u ? first - second : first + second;
  return code & 1u ? -sum : sum;
}

static void dense(const uint8_t *codes, int64_t order, float *x, int64_t stride) {
  float in[NPUMM_HADAMARD_ORDER] = {0}; /* whatever the order, for the analyzer */
  for (int lane = 0; lane < NPUMM_LANES; lane++) {
    for (int64_t j = 0; j < order; j++) in[j] = x[j * stride + lane];
    for (int64_t i = 0; i < order; i++) {
      const uint8_t *row = codes + i * (order / 4);
      float sum = sum_of_four(row[0] >> 4, in[0], in[1], in[2], in[3]);
      for (int64_t j = 4; j < order; j += 4)
        sum += sum_of_four(row[j / 4] >> 4, in[j], in[j + 1], in[j + 2], in[j + 3]);
      x[i * stride + lane] = sum;
    }
  }
}

const uint8_t *npumm_known_codes(int64_t order) {
  return order == 12   ? npumm_codes_12
         : order == 20 ? npumm_codes_20
         : order == 28 ? npumm_codes_28
         : order == 44 ? npumm_codes_44
                       : NULL;
}

static void known(int64_t order, float *x, int64_t stride) { dense(npumm_known_codes(order), order, x, stride); }

const npumm_hadamard_kernels npumm_hadamard_scalar = {divide, power, dense, known};
