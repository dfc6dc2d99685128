/*
 * The loop of rounding.h, included once per instruction set with ROUNDING_SUMS defined. Sums have an order of their own,
 * which is that of no instruction set: LANES of float32 over a block, then float64. Every operation is one of IEEE 754
 * and none is fused (-ffp-contract=off), so all versions give the same bits.
 */
#include "rounding.h"

enum { LANES = 16, BLOCK = 1024 };

void ROUNDING_SUMS(const float *values, const float *weights, int64_t n, float scale, float low, float high,
                   double sums[3]) {
  const float shift = 0x1.8p23f; /* brings a number below 2^22 to where float32 has whole numbers only */
  sums[0] = sums[1] = sums[2] = 0.0;
  for (int64_t start = 0; start < n; start += BLOCK) {
    const int64_t end = n - start < BLOCK ? n : start + BLOCK;
    float error[LANES] = {0}, product[LANES] = {0}, square[LANES] = {0};
    for (int64_t i = start; i < end; i += LANES) {
      float v[LANES] = {0}, w[LANES] = {0};
      const int lanes = end - i < LANES ? (int)(end - i) : LANES;
      if (lanes == LANES) {
        for (int l = 0; l < LANES; l++) v[l] = values[i + l], w[l] = weights[i + l];
      } else {
        for (int l = 0; l < lanes; l++) v[l] = values[i + l], w[l] = weights[i + l];
      }
      for (int l = 0; l < LANES; l++) {
        const float t = v[l] / scale;
        float q = t < low ? low : t;
        q = q > high ? high : q;
        q = q + shift - shift;
        const float d = t - q, wq = w[l] * q;
        error[l] += w[l] * d * d;
        product[l] += wq * t;
        square[l] += wq * q;
      }
    }
    for (int l = 0; l < LANES; l++) {
      sums[0] += (double)error[l];
      sums[1] += (double)product[l];
      sums[2] += (double)square[l];
    }
  }
}
