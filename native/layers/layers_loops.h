/*
 * The loops of loops.h, included once per instruction set with LAYERS_NAME and LAYERS_LOOPS defined. Written so that
 * compilers make vector code of them. Sums have 16 lanes, which are added in pairs at the end, whatever the width of the
 * registers is, and no operation is fused with another (-ffp-contract=off): all versions give the same bits.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "loops.h"

enum { LANES = 16 };

/* The sum of 16 lanes, by halves. */
static inline float joined(float *lanes) {
  for (int width = LANES / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

static float sum(const float *x, int64_t n) {
  float lanes[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; j++) lanes[j] += x[i + j];
  }
  for (int j = 0; i + j < n; j++) lanes[j] += x[i + j];
  return joined(lanes);
}

static float sum_of_squares(const float *x, int64_t n) {
  float lanes[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; j++) lanes[j] += x[i + j] * x[i + j];
  }
  for (int j = 0; i + j < n; j++) lanes[j] += x[i + j] * x[i + j];
  return joined(lanes);
}

static float subtract(const float *x, float mean, float *out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = x[i] - mean;
  return sum_of_squares(out, n);
}

static void divide(const float *x, float divisor, const float *factor, float *out, int64_t n) {
  if (factor) {
    for (int64_t i = 0; i < n; i++) out[i] = x[i] / divisor * factor[i];
  } else {
    for (int64_t i = 0; i < n; i++) out[i] = x[i] / divisor;
  }
}

static void turn(const float *restrict x, const float *restrict cos, const float *restrict sin, float *restrict out,
                 int64_t half) {
  for (int64_t i = 0; i < half; i++) {
    const float first = x[i], second = x[half + i];
    out[i] = first * cos[i] - second * sin[i];
    out[half + i] = second * cos[i] + first * sin[i];
  }
}

static void turn_pairs(const float *restrict x, const float *restrict cos, const float *restrict sin,
                       float *restrict out, int64_t half) {
  for (int64_t i = 0; i < half; i++) {
    const float first = x[2 * i], second = x[2 * i + 1];
    out[2 * i] = first * cos[i] - second * sin[i];
    out[2 * i + 1] = second * cos[i] + first * sin[i];
  }
}

static void add(const float *x, const float *y, float *out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = x[i] + y[i];
}

static void add_scaled(const float *x, const float *y, float scale, float *out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = x[i] + y[i] * scale;
}

static void scale(const float *x, float factor, float *out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = x[i] * factor;
}

const npumm_layer_loops LAYERS_LOOPS = {LAYERS_NAME, sum, sum_of_squares, subtract, divide, turn,
                                        turn_pairs,  add, add_scaled,     scale};
