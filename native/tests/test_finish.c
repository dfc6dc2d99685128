/*
 * The loops on finished sums: functions against libm in float64, casts against their definitions, and both instruction
 * sets against each other, bit by bit. Compile: gcc -std=c17 -Inative/include -Inative/kernels
 * native/tests/test_finish.c native/kernels/[a-z]*.c -lm
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "count.h"
#include "epilogue.h"
#include "finish.h"
#include "npumatmul_store.h"

static uint32_t state = 4711;
static uint32_t random_bits(void) {
  state = state * 1664525u + 1013904223u;
  return state ^ (state >> 15);
}
static int within(int low, int high) { return low + (int)(random_bits() % (uint32_t)(high - low + 1)); }

static void *need(size_t bytes) { /* exactly as large as asked for, so that the sanitizers see a step too far */
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) abort();
  return memory;
}

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* ---- functions against libm --------------------------------------------------------------------------------------- */

static double exact(npumm_function function, double x) {
  switch (function) {
    case NPUMM_RELU:
      return x < 0 ? 0 : x;
    case NPUMM_GELU:
      return 0.5 * x * erfc(-x / sqrt(2.0));
    case NPUMM_GELU_TANH: /* (1 + tanh u) / 2 = 1 / (1 + exp(-2 u)) */
      return x / (1 + exp(-2 * sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    case NPUMM_SILU:
      return x / (1 + exp(-x));
    case NPUMM_RELU2:
      return x < 0 ? 0 : x * x;
    case NPUMM_SIGMOID:
      return 1 / (1 + exp(-x));
    default:
      return x;
  }
}

/* Distance in units of the last place of a float32 near `value`. */
static double ulps(float got, double value) {
  if (isinf((float)value)) return (double)got == (double)(float)value ? 0 : INFINITY;
  int exponent;
  frexp(value, &exponent);
  const double unit = ldexp(1.0, exponent - 24 < -149 ? -149 : exponent - 24);
  return fabs((double)got - value) / unit;
}

static void functions_against_libm(void) {
  const struct {
    npumm_function function;
    double bound;
  } all[] = {{NPUMM_RELU, 0}, {NPUMM_GELU, 6},    {NPUMM_GELU_TANH, 4},
             {NPUMM_SILU, 4}, {NPUMM_RELU2, 0.5}, {NPUMM_SIGMOID, 4}};
  for (size_t f = 0; f < sizeof all / sizeof *all; f++) {
    double worst = 0;
    float at = 0;
    uint32_t next = 0; /* every 10007th float: subnormal ones, and where results become subnormal and 0 */
    for (int block = 0; block < 3500; block++) {
      float x[NPUMM_BLOCK], y[NPUMM_BLOCK];
      for (int i = 0; i < NPUMM_BLOCK; i++) {
        x[i] = block >= 1800 ? float_of(next += 10007)
               : block % 2   ? (float)within(-1200000, 1200000) / 10000.0f
                             : (float)within(-180000, 180000) / 10000.0f;
        if (!isfinite(x[i])) x[i] = 0.5f;
      }
      npumm_function_apply(all[f].function, x, NULL, NPUMM_BLOCK, y);
      for (int i = 0; i < NPUMM_BLOCK; i++) {
        const double off = ulps(y[i], exact(all[f].function, (double)x[i]));
        if (off > worst) worst = off, at = x[i];
      }
    }
    CHECK(worst <= all[f].bound, "function %d is off by %g ulp at %.9g", all[f].function, worst, (double)at);
    float special[] = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f, -NAN, -FLT_MAX, FLT_MAX};
    npumm_function_apply(all[f].function, special, NULL, 8, special);
    const float most = (float)exact(all[f].function, INFINITY), none = (float)exact(all[f].function, 0);
    CHECK(special[0] == most && special[1] == 0 && isnan(special[2]) && special[3] == none && special[4] == none &&
              isnan(special[5]) && special[6] == 0 && special[7] == (float)exact(all[f].function, FLT_MAX),
          "function %d of inf, -inf, nan, 0, -0, -nan, -max, max: %g %g %g %g %g %g %g %g", all[f].function,
          (double)special[0], (double)special[1], (double)special[2], (double)special[3], (double)special[4],
          (double)special[5], (double)special[6], (double)special[7]);
  }
}

/* ---- instruction sets ----------------------------------------------------------------------------------------------- */

static int same_floats(const float *one, const float *other, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    if (memcmp(&one[i], &other[i], 4) != 0 && !(isnan(one[i]) && isnan(other[i]))) return 0;
  }
  return 1;
}

static void one_length(const npumm_finish_kernels *k, const npumm_finish_kernels *r, int64_t n, int wild) {
  const size_t bytes = (size_t)n * 4;
  float *x = need(bytes), *other = need(bytes), *one = need(bytes), *two = need(bytes);
  int32_t *whole = need(bytes);
  double *columns = need(bytes * 2);
  uint16_t *halves = need(bytes / 2), *bf_one = need(bytes / 2), *bf_two = need(bytes / 2);
  for (int64_t i = 0; i < n; i++) {
    x[i] = wild ? float_of(random_bits()) : (float)within(-99999, 99999) / 997.0f;
    other[i] = float_of((random_bits() & 0x807fffffu) | 0x3f000000u);
    whole[i] = (int32_t)random_bits();
    halves[i] = (uint16_t)random_bits();
  }
  for (int64_t i = 0; i < n; i++) columns[i] = (double)other[i];
  for (int what = 0; what < 2 * (3 + NPUMM_SIGMOID); what++) {
    npumm_steps steps = {.row = 0.37, .columns = columns, .low = -INFINITY, .high = INFINITY};
    const int function = what / 2 - 2;
    if (function > 0) steps.function = (npumm_function)function;
    if (function >= -1) steps.bias = other;
    if (function >= 0) steps.factor = other, steps.summand = x;
    if (what % 2) steps.low = -3.0f, steps.high = 7.5f;
    k->finish_int32(whole, n, &steps, one), r->finish_int32(whole, n, &steps, two);
    CHECK(same_floats(one, two, n), "finish_int32 %d, n %d", what, (int)n);
    k->finish_float32(x, n, &steps, one), r->finish_float32(x, n, &steps, two);
    CHECK(same_floats(one, two, n), "finish_float32 %d, n %d", what, (int)n);
    steps.columns = NULL;
    k->finish_float32(x, n, &steps, one), r->finish_float32(x, n, &steps, two);
    CHECK(same_floats(one, two, n), "finish_float32 %d without scales, n %d", what, (int)n);
    memcpy(two, x, bytes), k->finish_float32(two, n, &steps, two);
    CHECK(same_floats(one, two, n), "finish_float32 %d in its place, n %d", what, (int)n);
  }
  npumm_steps steps[NPUMM_GROUP_ROWS];
  for (int rows = 1; n >= 16 && rows <= NPUMM_GROUP_ROWS; rows++) {
    for (int what = 0; what < 6; what++) { /* as many groups as there are, side by side or a line apart */
      const int next = what % 2 ? 16 : 4 * rows, groups = (int)n / next;
      float *to_one[NPUMM_GROUP_ROWS], *to_two[NPUMM_GROUP_ROWS];
      for (int i = 0; i < rows; i++) {
        steps[i] = (npumm_steps){.row = 0.37 + i, .columns = columns, .low = -INFINITY, .high = INFINITY};
        if (what > 1) steps[i].bias = other;
        if (what > 3) steps[i].factor = other, steps[i].summand = x, steps[i].function = (npumm_function)(i % 2);
        to_one[i] = one + 4 * groups * i, to_two[i] = two + 4 * groups * i;
      }
      k->finish_groups(whole, next, groups, rows, steps, to_one),
          r->finish_groups(whole, next, groups, rows, steps, to_two);
      CHECK(same_floats(one, two, (int64_t)4 * groups * rows), "finish_groups %d, %d rows, n %d", what, rows, (int)n);
    }
  }
  memcpy(one, x, bytes), memcpy(two, x, bytes);
  k->add(one, other, n), r->add(two, other, n);
  CHECK(same_floats(one, two, n), "add, n %d", (int)n);
  memcpy(one, whole, bytes), memcpy(two, whole, bytes);
  k->subtract((int32_t *)one, n, -77, whole), r->subtract((int32_t *)two, n, -77, whole);
  CHECK(n == 0 || memcmp(one, two, bytes) == 0, "subtract, n %d", (int)n);
  k->to_doubles(x, n, columns);
  for (int64_t i = 0; i < n; i++) CHECK(isnan(x[i]) || columns[i] == (double)x[i], "to_doubles, n %d", (int)n);
  k->from_f16(halves, n, one), r->from_f16(halves, n, two);
  CHECK(same_floats(one, two, n), "from_f16, n %d", (int)n);
  k->from_bf16(halves, n, one), r->from_bf16(halves, n, two);
  CHECK(same_floats(one, two, n), "from_bf16, n %d", (int)n);
  k->to_bf16(x, n, bf_one), r->to_bf16(x, n, bf_two);
  CHECK(n == 0 || memcmp(bf_one, bf_two, bytes / 2) == 0, "to_bf16, n %d", (int)n);
  free(x), free(other), free(one), free(two), free(whole), free(halves), free(bf_one), free(bf_two), free(columns);
}

static void instruction_sets_agree(void) {
  for (int wild = 0; wild < 2; wild++) {
    for (int64_t n = 0; n < 80; n++) {
      one_length(npumm_finish(), &npumm_finish_base, n, wild);
#if defined(__x86_64__)
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        one_length(&npumm_finish_avx2, &npumm_finish_base, n, wild);
#endif
    }
  }
}

/* The value of every half, and of bfloat16, by their definitions; ties of the rounding to bfloat16. */
static void casts_by_definition(void) {
  int right = 1;
  for (uint32_t h = 0; h < 0x10000; h++) {
    const uint16_t half = (uint16_t)h;
    const int exponent = (half >> 10) & 0x1f, mantissa = half & 0x3ff;
    double value = exponent == 31  ? (mantissa ? NAN : INFINITY)
                   : exponent == 0 ? ldexp(mantissa, -24)
                                   : ldexp(1024 + mantissa, exponent - 25);
    if (half & 0x8000) value = -value;
    float got;
    npumm_finish()->from_f16(&half, 1, &got);
    right &= isnan(value) ? isnan(got) : (double)got == value && !signbit(got) == !signbit(value);
  }
  CHECK(right, "halves");
  const struct {
    uint32_t bits;
    uint16_t rounded;
  } cases[] = {{0x3f808000, 0x3f80}, {0x3f818000, 0x3f82}, {0x3f808001, 0x3f81}, {0x7f7fffff, 0x7f80},
               {0xff800000, 0xff80}, {0x00000001, 0x0000}, {0x80008001, 0x8001}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const float value = float_of(cases[i].bits);
    uint16_t got;
    npumm_finish()->to_bf16(&value, 1, &got);
    CHECK(got == cases[i].rounded, "%08x becomes %04x", (unsigned)cases[i].bits, got);
  }
  const float nan = float_of(0x7f800001u);
  uint16_t got;
  npumm_finish()->to_bf16(&nan, 1, &got);
  CHECK((got & 0x7fff) > 0x7f80, "nan becomes %04x", got);
}

int main(void) {
  functions_against_libm();
  instruction_sets_agree();
  casts_by_definition();
  printf("finishing loops: %s\n", npumm_finish()->name);
  return report("test_finish");
}
