/* The scalar inner loops of the Hadamard transform: the reference, and what the others leave over. See hadamard.h. */
#include "hadamard.h"

static void scale(const float *src, const float *factor, float *dst, int64_t n) {
  for (int64_t i = 0; i < n; i++) dst[i] = factor ? src[i] * factor[i] : src[i];
}

static void divide(const float *src, const float *divisor, float *dst, int64_t n) {
  for (int64_t i = 0; i < n; i++) dst[i] = src[i] / divisor[i];
}

static void power(float *x, int64_t n, int64_t block) {
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

static void dense(const float *matrix, int64_t order, const float (*in)[NPUMM_LANES], float (*out)[NPUMM_LANES]) {
  for (int64_t i = 0; i < order; i++) {
    const float *signs = matrix + i * order;
    for (int lane = 0; lane < NPUMM_LANES; lane++) {
      float sum = 0.0f;
      for (int64_t j = 0; j < order; j++) sum += signs[j] * in[j][lane];
      out[i][lane] = sum;
    }
  }
}

const npumm_hadamard_kernels npumm_hadamard_scalar = {scale, divide, power, dense};
