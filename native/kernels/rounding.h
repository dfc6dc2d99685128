/*
 * The inner loop of searching scales of a weight: sums over one row of values, for one scale and zero point. There is
 * one source, rounding_loops.h, compiled for the base instruction set (NEON on aarch64) and for AVX2: both give the same
 * bits.
 */
#ifndef NPUMATMUL_ROUNDING_H
#define NPUMATMUL_ROUNDING_H

#include <stdint.h>

/*
 * With t = values[i] / scale and q = the whole number nearest to t (half to even), clamped to low..high:
 * sums[0] = sum of weights[i] (t - q)^2, sums[1] = sum of weights[i] t q, sums[2] = sum of weights[i] q^2.
 * low and high are whole numbers of magnitudes below 2^22.
 */
typedef void (*npumm_rounding_sums_row)(const float *values, const float *weights, int64_t n, float scale, float low,
                                        float high, double sums[3]);

void npumm_rounding_sums_base(const float *values, const float *weights, int64_t n, float scale, float low, float high,
                              double sums[3]);
#if defined(__x86_64__)
void npumm_rounding_sums_avx2(const float *values, const float *weights, int64_t n, float scale, float low, float high,
                              double sums[3]);
#endif

#endif
