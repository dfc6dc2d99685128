/*
 * The Hadamard transform of rows: each instruction set against the scalar loops bit by bit, whole transforms against
 * sums in double with the dense matrix, and what has to be refused. Compile: gcc -std=c17 -Inative/include
 * -Inative/kernels native/tests/test_hadamard.c native/kernels/[a-z]*.c -lm
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "count.h"
#include "hadamard.h"
#include "npumatmul_kernels.h"

static uint32_t state = 4711;
static float random_float(void) {
  state = state * 1664525u + 1013904223u;
  return (float)((int32_t)(state >> 8) - (1 << 23)) / (float)(1 << 20);
}

static float *random_floats(int64_t n) { /* a heap block of the exact size, so that sanitizers see a step too far */
  float *x = malloc((size_t)n * sizeof *x);
  for (int64_t i = 0; x && i < n; i++) x[i] = random_float();
  return x;
}

/* Paley's matrix of order 12 */
static void paley_12(float *h) {
  static const int square[11] = {0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0};
  for (int i = 0; i < 12; i++) {
    for (int j = 0; j < 12; j++) {
      const int d = (i - j + 11) % 11;
      float entry = i == 0 ? 1.0f : j == 0 ? -1.0f : i == j ? 1.0f : square[d] ? 1.0f : -1.0f;
      if (i == 0 && j == 0) entry = 1.0f;
      h[i * 12 + j] = entry;
    }
  }
}

/* The signs of a matrix as the kernels take them. */
static uint8_t *coded(const float *matrix, int64_t order) {
  uint8_t *codes = calloc((size_t)(order * order / 4), 1);
  for (int64_t i = 0; codes && i < order * order; i++) codes[i / 4] |= (uint8_t)((matrix[i] < 0) << (4 + i % 4));
  return codes;
}

static void compare_with_scalar(const npumm_hadamard_kernels *kernels) {
  for (int64_t block = 1, blocks = 5; block <= 4096; block *= 2, blocks = blocks % 7 + 1) {
    const int64_t n = block * blocks;
    float *x = random_floats(n), *f = random_floats(n), *y = malloc((size_t)n * sizeof *y);
    for (int with = 0; with < 2; with++) {
      npumm_hadamard_scalar.power(x, with ? f : NULL, y, n, block);
      kernels->power(x, with ? f : NULL, with ? f : x, n, block); /* into one of the sources */
      HOLDS(memcmp(with ? f : x, y, (size_t)n * sizeof *y) == 0);
    }
    free(x), free(f), free(y);
  }
  for (int64_t n = 1; n < 40; n++) {
    float *x = random_floats(n), *f = random_floats(n), *a = random_floats(n), *b = random_floats(n);
    kernels->divide(x, f, a, n);
    npumm_hadamard_scalar.divide(x, f, b, n);
    HOLDS(memcmp(a, b, (size_t)n * sizeof *a) == 0);
    for (int64_t i = 0; i < n; i++) HOLDS(b[i] == (float)((double)x[i] / (double)f[i]));
    free(x), free(f), free(a), free(b);
  }
  for (int64_t order = 4; order <= NPUMM_HADAMARD_ORDER; order += 4) {
    const int64_t stride = NPUMM_LANES + order % 3;
    const size_t floats = (size_t)((order - 1) * stride + NPUMM_LANES);
    float *a = random_floats((int64_t)floats), *b = malloc(floats * sizeof *b), *signs = random_floats(order * order);
    uint8_t *codes = coded(signs, order);
    memcpy(b, a, floats * sizeof *b);
    if (order % 3 == 0)
      a[0] = b[0] = -0.0f, a[stride] = b[stride] = INFINITY, a[NPUMM_LANES - 1] = b[NPUMM_LANES - 1] = 0;
    const uint8_t *known = npumm_known_codes(order);
    if (known) memcpy(codes, known, (size_t)(order * order / 4));
    if (known) kernels->known(order, a, stride);
    else kernels->dense(codes, order, a, stride);
    npumm_hadamard_scalar.dense(codes, order, b, stride);
    int same = 1;
    for (size_t i = 0; i < floats; i++) same &= memcmp(&a[i], &b[i], sizeof *a) == 0 || (isnan(a[i]) && isnan(b[i]));
    HOLDS(same);
    for (int64_t i = 0; i < order * order / 4; i++) codes[i] |= 15; /* no codes: anything, but nothing beyond */
    kernels->dense(codes, order, a, stride);
    free(signs), free(codes), free(a), free(b);
  }
}

static int bits_set(int64_t x) {
  int n = 0;
  for (; x; x &= x - 1) n++;
  return n;
}

/* Entry of the Kronecker product of `dense` matrices of order 12 and Sylvester's of order `power`. */
static double entry(const float *h12, int dense, int64_t power, int64_t row, int64_t col) {
  double value = bits_set((row % power) & (col % power)) % 2 ? -1.0 : 1.0; /* Sylvester: parity of common bits */
  row /= power, col /= power;
  for (; dense > 0; dense--, row /= 12, col /= 12) value *= (double)h12[row % 12 * 12 + col % 12];
  return value;
}

static void compare_with_sums(int dense, int64_t power, int64_t blocks, int64_t rows, int reversed, int with_factors) {
  float h12[144];
  paley_12(h12);
  npumm_hadamard how = {.power = power, .dense_count = dense};
  uint8_t *codes = coded(h12, 12);
  int64_t block = power;
  for (int i = 0; i < dense; i++) how.order[i] = 12, how.codes[i] = codes, block *= 12;
  const int64_t n = how.features = block * blocks, unit = (int64_t)sizeof(float);
  float *prescale = random_floats(n), *divisor = random_floats(n), *src = random_floats(rows * n),
        *dst = random_floats(rows * n);
  for (int64_t i = 0; i < n; i++) divisor[i] = fabsf(divisor[i]) + 0.5f;
  if (with_factors & 1) how.prescale = prescale;
  if (with_factors & 2) how.divisor = divisor;
  /* reversed: the columns of the source run backwards */
  const char *first = (const char *)(reversed ? src + n - 1 : src);
  HOLDS(npumm_hadamard_rows(&how, first, rows, n * unit, reversed ? -unit : unit, dst, n * unit) == NPUMM_OK);
  int close = 1;
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t i = 0; i < n; i++) {
      double sum = 0, magnitude = 0;
      for (int64_t j = i / block * block; j < (i / block + 1) * block; j++) {
        const double x = (double)src[r * n + (reversed ? n - 1 - j : j)] *
                         (with_factors & 1 ? (double)prescale[j] : 1.0) / (with_factors & 2 ? (double)divisor[j] : 1.0);
        sum += entry(h12, dense, power, i % block, j % block) * x;
        magnitude += fabs(x);
      }
      close &= fabs((double)dst[r * n + i] - sum) <= 64 * 6e-8 * magnitude; /* at most 64 additions deep */
    }
  }
  HOLDS(close);
  if (!reversed) { /* in place gives the same bits */
    HOLDS(npumm_hadamard_rows(&how, src, rows, n * unit, unit, src, n * unit) == NPUMM_OK);
    HOLDS(memcmp(src, dst, (size_t)(rows * n) * sizeof *src) == 0);
  }
  free(codes), free(prescale), free(divisor), free(src), free(dst);
}

static void refusals(void) {
  float x[16] = {0};
  const uint8_t one[4] = {0};
  const int64_t unit = (int64_t)sizeof(float);
  const npumm_hadamard good = {.features = 8, .power = 4};
  HOLDS(npumm_hadamard_rows(&good, x, 2, 8 * unit, unit, x, 8 * unit) == NPUMM_OK);
  HOLDS(npumm_hadamard_rows(&good, NULL, 0, 0, 0, NULL, 0) == NPUMM_OK);
  HOLDS(npumm_hadamard_rows(NULL, x, 1, 0, unit, x, 0) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_hadamard_rows(&good, NULL, 1, 0, unit, x, 0) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_hadamard_rows(&good, x, 1, 0, unit, NULL, 0) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_hadamard_rows(&good, x, -1, 0, unit, x, 0) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_hadamard_rows(&good, x, 2, 8 * unit, unit, x, 7 * unit) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_hadamard_rows(&good, x, 2, 8 * unit, unit, x, 8 * unit + 1) == NPUMM_BAD_ARGUMENT);
  const npumm_hadamard bad[] = {
      {.features = 8, .power = 3},
      {.features = 8, .power = 0},
      {.features = 8, .power = -8},
      {.features = 8, .power = 16},
      {.features = 0, .power = 1},
      {.features = 8, .power = 2, .dense_count = 4},
      {.features = 8, .power = 2, .dense_count = -1},
      {.features = 8, .power = 2, .dense_count = 1, .order = {4}},
      {.features = 8, .power = 2, .dense_count = 1, .order = {0}, .codes = {one}},
      {.features = 8, .power = 1, .dense_count = 1, .order = {2}, .codes = {one}},
      {.features = 1024, .power = 2, .dense_count = 1, .order = {512}, .codes = {one}},
  };
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    HOLDS(npumm_hadamard_rows(&bad[i], x, 1, 0, unit, x, 0) == NPUMM_BAD_ARGUMENT);
  }
}

int main(void) {
  float h12[144];
  paley_12(h12);
  for (int i = 0; i < 12; i++) { /* the test's own matrix is one of Hadamard's */
    for (int j = 0; j < 12; j++) {
      float sum = 0;
      for (int k = 0; k < 12; k++) sum += h12[i * 12 + k] * h12[j * 12 + k];
      HOLDS(sum == (i == j ? 12.0f : 0.0f));
    }
  }
  for (int set = 1; npumm_hadamard_at(set); set++) compare_with_scalar(npumm_hadamard_at(set));
  HOLDS(npumm_hadamard_here() != NULL);
  for (int dense = 0; dense <= 2; dense++) {
    for (int64_t power = 1; power <= (dense == 2 ? 4 : 64); power *= 2) {
      compare_with_sums(dense, power, 1, 3, 0, 1);
      compare_with_sums(dense, power, 3, 2, 0, 2);
      compare_with_sums(dense, power, 1, 2, 1, 3);
      compare_with_sums(dense, power, 3, 1, 1, 1);
      compare_with_sums(dense, power, 2, 2, 0, 0);
    }
  }
  compare_with_sums(1, 128, 1, 2, 0, 1);
  compare_with_sums(0, 2048, 1, 1, 1, 1);
  refusals();
  return report("test_hadamard");
}
