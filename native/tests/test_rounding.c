/*
 * Sums over rounded rows: both instruction sets against each other bit by bit and against sums in double, and what has
 * to be refused. Compile: gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_rounding.c
 * native/kernels/[a-z]*.c -lm
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "count.h"
#include "npumatmul_kernels.h"
#include "rounding.h"

static uint32_t state = 4711;
static float random_float(void) {
  state = state * 1664525u + 1013904223u;
  return (float)((int32_t)(state >> 8) - (1 << 23)) / (float)(1 << 20);
}

static void *need(size_t bytes) { /* exactly as large as asked for, so that the sanitizers see a step too far */
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) abort();
  return memory;
}

static float *random_floats(int64_t n) {
  float *x = need((size_t)n * sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = random_float();
  return x;
}

/* The definition, in double but for the quotient, whose rounding decides the code. */
static void in_double(const float *values, const float *weights, int64_t n, float scale, int low, int high,
                      double sums[3]) {
  sums[0] = sums[1] = sums[2] = 0.0;
  for (int64_t i = 0; i < n; i++) {
    const float t = values[i] / scale;
    const double rounded = nearbyint((double)t), w = (double)weights[i];
    const double q = rounded < low ? low : rounded > high ? high : rounded;
    sums[0] += w * ((double)t - q) * ((double)t - q);
    sums[1] += w * (double)t * q;
    sums[2] += w * q * q;
  }
}

static void one_row(int64_t n, float scale, int low, int high) {
  float *values = random_floats(n), *weights = random_floats(n);
  for (int64_t i = 0; i < n; i++) weights[i] = fabsf(weights[i]);
  double base[3], expected[3];
  npumm_rounding_sums_base(values, weights, n, scale, (float)low, (float)high, base);
  in_double(values, weights, n, scale, low, high, expected);
  for (int i = 0; i < 3; i++) { /* a lane adds up to 64 float32; the summands of the products have both signs */
    const double size = i == 1 ? sqrt(expected[2] * (expected[0] + expected[2]) * 4.0) : expected[i];
    CHECK(fabs(base[i] - expected[i]) <= 70 * ldexp(size, -24), "n %d, scale %g: sum %d is %.9g, not %.9g", (int)n,
          (double)scale, i, base[i], expected[i]);
  }
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {
    double fast[3];
    npumm_rounding_sums_avx2(values, weights, n, scale, (float)low, (float)high, fast);
    CHECK(memcmp(fast, base, sizeof fast) == 0, "n %d, scale %g: instruction sets differ", (int)n, (double)scale);
  }
#endif
  free(values);
  free(weights);
}

static void candidates_of_rows(int64_t rows, int64_t cols, int64_t candidates) {
  float *values = random_floats(rows * cols), *weights = random_floats(cols), *scale = random_floats(rows * candidates);
  int32_t *zero = need((size_t)(rows * candidates) * sizeof *zero);
  double *sums = need((size_t)(3 * rows * candidates) * sizeof *sums);
  for (int64_t i = 0; i < cols; i++) weights[i] = fabsf(weights[i]);
  for (int64_t i = 0; i < rows * candidates; i++) scale[i] = 0.1f + fabsf(scale[i]), zero[i] = (int32_t)(i % 16) - 8;
  HOLDS(npumm_rounding_sums(values, rows, cols, weights, candidates, scale, zero, -8, 7, sums) == NPUMM_OK);
  for (int64_t i = 0; i < rows * candidates; i++) {
    double expected[3];
    const double s = (double)scale[i];
    in_double(values + i % rows * cols, weights, cols, scale[i], -8 - zero[i], 7 - zero[i], expected);
    CHECK(fabs(sums[3 * i] - s * s * expected[0]) <= 1e-5 * s * s * expected[0], "error of candidate %d", (int)i);
    CHECK(fabs(sums[3 * i + 2] - expected[2]) <= 1e-5 * expected[2], "squares of candidate %d", (int)i);
  }
  free(values), free(weights), free(scale), free(zero), free(sums);
}

static void refusals(void) {
  const float one = 1, bad[] = {0, -1, INFINITY, NAN};
  const int32_t none = 0, outside = 8;
  double sums[3];
  HOLDS(npumm_rounding_sums(&one, 1, 1, &one, 1, &one, &none, -8, 7, sums) == NPUMM_OK && sums[0] == 0 && sums[1] == 1);
  for (int i = 0; i < 4; i++) {
    HOLDS(npumm_rounding_sums(&one, 1, 1, &one, 1, &bad[i], &none, -8, 7, sums) == NPUMM_BAD_ARGUMENT);
  }
  HOLDS(npumm_rounding_sums(&one, 1, 1, &one, 1, &one, &outside, -8, 7, sums) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_rounding_sums(NULL, 1, 1, &one, 1, &one, &none, -8, 7, sums) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_rounding_sums(&one, 1, 1, NULL, 1, &one, &none, -8, 7, sums) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_rounding_sums(&one, -1, 1, &one, 1, &one, &none, -8, 7, sums) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_rounding_sums(&one, 1, 1, &one, 1, &one, &none, -129, 7, sums) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_rounding_sums(NULL, 0, 1, NULL, 1, NULL, NULL, -8, 7, NULL) == NPUMM_OK);
}

int main(void) {
  for (int64_t n = 0; n < 70; n++) one_row(n, 0.37f, -8, 7), one_row(n, 0.0625f, -119, 127);
  one_row(1023, 1.0f, -8, 7), one_row(1024, 0.7f, -15, 0), one_row(1025, 2.0f, 0, 15), one_row(5000, 0.3f, -7, 7);
  candidates_of_rows(1, 1, 1), candidates_of_rows(3, 33, 5), candidates_of_rows(2, 0, 2);
  refusals();
  return report("test_rounding");
}
