/*
 * The loops of layers: all instruction sets against each other, bit by bit, over odd widths and strides; functions
 * against sums in double; what has to be refused. Compile: gcc -std=c17 -Inative/include -Inative/kernels
 * native/tests/test_layers.c native/layers/[a-z]*.c native/kernels/[a-z]*.c
 * native/executor/crew.c native/executor/spin.c native/executor/profile.c -lm -lpthread
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../layers/loops.h"
#include "count.h"
#include "npumatmul_layers.h"

enum { MOST = 200 };

static uint32_t state = 12345;

static float random_float(void) {
  state = state * 1664525u + 1013904223u;
  return (float)((int32_t)state) / 65536.0f / 8192.0f;
}

static void fill(float *x, int n) {
  for (int i = 0; i < n; i++) x[i] = random_float();
}

static int same(const float *x, const float *y, int n) { return memcmp(x, y, (size_t)n * sizeof *x) == 0; }

/* Every loop of one set gives the bits of the base, at any width and alignment. */
static void compare(const npumm_layer_loops *other) {
  const npumm_layer_loops *base = &npumm_layer_loops_base;
  float x[MOST + 4], y[MOST + 4], one[MOST + 4], two[MOST + 4];
  for (int n = 0; n <= MOST; n++) {
    const int at = n % 4;
    fill(x, MOST + 4);
    fill(y, MOST + 4);
    const float sums[2] = {base->sum(x + at, n), other->sum(x + at, n)};
    const float squares[2] = {base->sum_of_squares(x + at, n), other->sum_of_squares(x + at, n)};
    HOLDS(same(&sums[0], &sums[1], 1) && same(&squares[0], &squares[1], 1));
    const float left[2] = {base->subtract(x + at, 0.3f, one, n), other->subtract(x + at, 0.3f, two, n)};
    HOLDS(same(&left[0], &left[1], 1) && same(one, two, n));
    base->divide(x + at, 1.7f, y, one, n);
    other->divide(x + at, 1.7f, y, two, n);
    HOLDS(same(one, two, n));
    base->divide(x + at, 1.7f, NULL, one, n);
    other->divide(x + at, 1.7f, NULL, two, n);
    HOLDS(same(one, two, n));
    base->add(x + at, y, one, n);
    other->add(x + at, y, two, n);
    HOLDS(same(one, two, n));
    base->add_scaled(x + at, y, 0.7f, one, n);
    other->add_scaled(x + at, y, 0.7f, two, n);
    HOLDS(same(one, two, n));
    base->scale(x + at, 0.7f, one, n);
    other->scale(x + at, 0.7f, two, n);
    HOLDS(same(one, two, n));
    base->turn(x + at, y, y + n / 2, one, n / 2);
    other->turn(x + at, y, y + n / 2, two, n / 2);
    HOLDS(same(one, two, n / 2 * 2));
    base->turn_pairs(x + at, y, y + n / 2, one, n / 2);
    other->turn_pairs(x + at, y, y + n / 2, two, n / 2);
    HOLDS(same(one, two, n / 2 * 2));
  }
}

static void norms_are_right(void) {
  enum { OUTER = 3, INNER = 2, WIDTH = 37, STRIDE = 40 };
  float x[INNER][OUTER][STRIDE], out[OUTER][INNER][WIDTH], factor[WIDTH], bias[WIDTH];
  fill(&x[0][0][0], INNER * OUTER * STRIDE);
  fill(factor, WIDTH);
  fill(bias, WIDTH);
  const npumm_rows_shape shape = {OUTER, INNER, WIDTH};
  const npumm_rows_from from = {&x[0][0][0], sizeof x[0][0], sizeof x[0]};
  const npumm_rows_to to = {&out[0][0][0], sizeof out[0], sizeof out[0][0]};
  const npumm_rows_part parts[2] = {{0, 4}, {4, OUTER * INNER}};
  for (int p = 0; p < 2; p++) HOLDS(npumm_rms_norm(&shape, &parts[p], &from, factor, 1.0f / WIDTH, 1e-5f, &to) == 0);
  for (int o = 0; o < OUTER; o++) {
    for (int i = 0; i < INNER; i++) {
      double squares = 0;
      for (int k = 0; k < WIDTH; k++) squares += (double)x[i][o][k] * (double)x[i][o][k];
      for (int k = 0; k < WIDTH; k++) {
        const double right = (double)x[i][o][k] / sqrt(squares / WIDTH + 1e-5) * (double)factor[k];
        HOLDS(fabs((double)out[o][i][k] - right) <= 3e-6 * fabs(right) + 1e-9);
      }
    }
  }
  for (int p = 0; p < 2; p++) {
    HOLDS(npumm_layer_norm(&shape, &parts[p], &from, factor, bias, 1.0f / WIDTH, 1e-5f, &to) == 0);
  }
  for (int o = 0; o < OUTER; o++) {
    for (int i = 0; i < INNER; i++) {
      double mean = 0, squares = 0;
      for (int k = 0; k < WIDTH; k++) mean += (double)x[i][o][k] / WIDTH;
      for (int k = 0; k < WIDTH; k++) squares += ((double)x[i][o][k] - mean) * ((double)x[i][o][k] - mean);
      for (int k = 0; k < WIDTH; k++) {
        const double right = ((double)x[i][o][k] - mean) / sqrt(squares / WIDTH + 1e-5) * (double)factor[k];
        HOLDS(fabs((double)out[o][i][k] - right - (double)bias[k]) <= 1e-5);
      }
    }
  }
}

static void rotation_is_right(void) {
  const float x[2][6] = {{1, 2, 3, 4, 5, 6}, {1, 2, 3, 4, 5, 6}};
  const float cos[6] = {1, 1, 0, 1, 0.5f, 1}, sin[6] = {0, 0, 1, 0, 0.5f, 0};
  float out[2][6];
  const npumm_rows_shape shape = {1, 2, 6};
  const npumm_rows_part part = {0, 2};
  const npumm_rows_from from = {&x[0][0], 0, sizeof x[0]};
  const npumm_rows_to to = {&out[0][0], 0, sizeof out[0]};
  npumm_rotation rotation = {cos, sin, 3, 2, 0};
  HOLDS(npumm_rotate(&shape, &part, &from, &rotation, 1, &to) == 0);
  const float apart[2][6] = {{-3, 2, 1, 4, 5, 6}, {-1, 2, 2, 4, 5, 6}};
  HOLDS(same(&out[0][0], &apart[0][0], 12));
  rotation.interleaved = 1;
  HOLDS(npumm_rotate(&shape, &part, &from, &rotation, 1, &to) == 0);
  const float beside[2][6] = {{-2, 1, 3, 4, 5, 6}, {-0.5f, 1.5f, 3, 4, 5, 6}};
  HOLDS(same(&out[0][0], &beside[0][0], 12));
  HOLDS(npumm_rotate(&shape, &part, &from, &rotation, 2, &to) == NPUMM_BAD_ARGUMENT); /* the table ends before */
  HOLDS(npumm_rotate(&shape, &part, &from, &rotation, -1, &to) == NPUMM_BAD_ARGUMENT);
  rotation.half = 4;
  HOLDS(npumm_rotate(&shape, &part, &from, &rotation, 0, &to) == NPUMM_BAD_ARGUMENT);
}

static void gates_and_sums_are_right(void) {
  enum { WIDTH = 2050 };
  float *x = malloc(WIDTH * sizeof *x), *up = malloc(WIDTH * sizeof *up), *out = malloc(WIDTH * sizeof *out);
  fill(x, WIDTH);
  fill(up, WIDTH);
  const npumm_rows_shape shape = {1, 1, WIDTH};
  const npumm_rows_part part = {0, 1};
  const npumm_rows_from from = {x, 0, 0}, ups = {up, 0, 0};
  const npumm_rows_to to = {out, 0, 0}, same_place = {x, 0, 0};
  HOLDS(npumm_gate(&shape, &part, &from, NPUMM_SILU, &ups, &to) == 0);
  for (int i = 0; i < WIDTH; i++) {
    const double right = (double)x[i] / (1 + exp(-(double)x[i])) * (double)up[i];
    HOLDS(fabs((double)out[i] - right) <= 1e-6 * fabs(right) + 1e-12);
  }
  HOLDS(npumm_add_rows(&shape, &part, &from, &ups, 0.5f, &to) == 0 && out[7] == x[7] + up[7] * 0.5f);
  HOLDS(npumm_add_rows(&shape, &part, &from, &ups, 1.0f, &to) == 0 && out[7] == x[7] + up[7]);
  const float before = x[9];
  HOLDS(npumm_scale_rows(&shape, &part, &from, 2.0f, &same_place) == 0 && x[9] == before * 2.0f);
  HOLDS(npumm_gate(&shape, &part, &from, (npumm_function)99, NULL, &to) == NPUMM_BAD_ARGUMENT);
  free(x);
  free(up);
  free(out);
}

static void the_kth_largest_is_found(void) {
  float values[500], sorted[500], found = 0;
  for (int n = 1; n < 500; n += 7) {
    fill(values, n);
    if (n > 3) values[1] = values[2]; /* equal ones count each */
    memcpy(sorted, values, sizeof sorted);
    for (int i = 0; i < n; i++) {
      for (int j = i + 1; j < n; j++) {
        const float larger = sorted[i] < sorted[j] ? sorted[j] : sorted[i];
        sorted[j] = sorted[i] < sorted[j] ? sorted[i] : sorted[j];
        sorted[i] = larger;
      }
    }
    for (int k = 1; k <= n && k <= NPUMM_TOP_K_MOST; k += 5) {
      HOLDS(npumm_kth_largest(values, n, k, &found) == 0 && found == sorted[k - 1]);
    }
  }
  HOLDS(npumm_kth_largest(values, 5, 6, &found) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_kth_largest(values, 500, NPUMM_TOP_K_MOST + 1, &found) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_kth_largest(NULL, 5, 1, &found) == NPUMM_BAD_ARGUMENT);
}

static void mistakes_are_refused(void) {
  float x[8] = {0};
  const npumm_rows_shape shape = {1, 2, 4};
  const npumm_rows_part part = {0, 2}, beyond = {0, 3};
  const npumm_rows_from from = {x, 0, 16}, nowhere = {NULL, 0, 16}, odd = {x, 0, 3};
  const npumm_rows_to to = {x, 0, 16};
  HOLDS(npumm_rms_norm(&shape, &beyond, &from, NULL, 1, 0, &to) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_rms_norm(&shape, &part, &nowhere, NULL, 1, 0, &to) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_rms_norm(&shape, &part, &odd, NULL, 1, 0, &to) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_rms_norm(NULL, &part, &from, NULL, 1, 0, &to) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_layer_norm(&shape, &part, &from, NULL, NULL, 1, 0, &to) == NPUMM_BAD_ARGUMENT);
}

int main(void) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) compare(&npumm_layer_loops_avx2);
  const int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  if (wide && __builtin_cpu_supports("avx512dq")) compare(&npumm_layer_loops_avx512);
#endif
  compare(npumm_layers());
  norms_are_right();
  rotation_is_right();
  gates_and_sums_are_right();
  the_kth_largest_is_found();
  mistakes_are_refused();
  return report("test_layers");
}
