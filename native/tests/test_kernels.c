/*
 * The host kernels: every instruction set against the scalar reference over odd lengths, and the scalar reference
 * against values worked out by hand. Compile: gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_kernels.c
 * native/kernels/[a-z]*.c -lm
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "npumatmul_kernels.h"
#include "rows.h"

static int passed, failed;

#define CHECK(condition)                                             \
  do {                                                               \
    if (condition) {                                                 \
      passed++;                                                      \
    } else {                                                         \
      failed++;                                                      \
      printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                \
  } while (0)

static uint32_t state = 12345;
static uint32_t random_bits(void) {
  state = state * 1664525u + 1013904223u;
  return state ^ (state >> 15);
}

/* Floats of every kind: any bit pattern, subnormals, ties between halves, infs and nans among them. */
static float random_float(int kind) {
  uint32_t bits = random_bits();
  float value;
  if (kind == 1) bits = (bits & 0x807fffffu) | ((100u + bits % 40u) << 23);       /* around float16's range */
  if (kind == 2) bits = (bits & 0x80000000u) | 0x3f801000u | (bits & 0x007fe000u); /* ties to even */
  memcpy(&value, &bits, sizeof value);
  if (kind == 3) value = (float)((int32_t)(bits % 511u) - 255) * 0.5f; /* ties of the int8 rounding, and clamping */
  return value;
}

static int same_half(uint16_t a, uint16_t b) {
  const int a_nan = (a & 0x7fff) > 0x7c00, b_nan = (b & 0x7fff) > 0x7c00;
  return a == b || (a_nan && b_nan); /* the payload of a nan is not promised */
}

static void compare_with_scalar(const npumm_row_kernels *kernels) {
  enum { LONGEST = 300 };
  for (int kind = 0; kind < 4; kind++) {
    for (int64_t n = 0; n < LONGEST; n = n < 70 ? n + 1 : n + 23) {
      /* heap blocks of the exact size, so that the sanitizers see every step too far */
      float *src = malloc((size_t)(n ? n : 1) * sizeof *src);
      uint16_t *half = malloc((size_t)(n ? n : 1) * 2), *half_reference = malloc((size_t)(n ? n : 1) * 2);
      int8_t *byte = malloc((size_t)(n ? n : 1)), *byte_reference = malloc((size_t)(n ? n : 1));
      if (!src || !half || !half_reference || !byte || !byte_reference) abort();
      for (int64_t i = 0; i < n; i++) src[i] = random_float(kind);
      const float scale = kind == 1 ? 0.25f : 1.0f;
      kernels->f32_to_f16(src, half, n, scale);
      npumm_rows_scalar.f32_to_f16(src, half_reference, n, scale);
      int same = 1;
      for (int64_t i = 0; i < n; i++) same &= same_half(half[i], half_reference[i]);
      CHECK(same);

      int finite = 1, finite_reference = 1;
      const float largest = kernels->absmax(src, n, &finite);
      CHECK(largest == npumm_rows_scalar.absmax(src, n, &finite_reference));
      CHECK(finite == finite_reference);

      for (int64_t i = 0; i < n; i++) src[i] = isfinite(src[i]) ? src[i] : 1.0f; /* what the caller promises */
      const float step = kind == 0 ? 1e30f : kind == 1 ? 3.7f : 1.0f;
      kernels->f32_to_i8(src, byte, n, step);
      npumm_rows_scalar.f32_to_i8(src, byte_reference, n, step);
      CHECK(n == 0 || memcmp(byte, byte_reference, (size_t)n) == 0);
      free(src);
      free(half);
      free(half_reference);
      free(byte);
      free(byte_reference);
    }
  }
}

static uint16_t half_of(float value) {
  uint16_t half;
  npumm_rows_scalar.f32_to_f16(&value, &half, 1, 1.0f);
  return half;
}

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* The value of a half by its definition, for a check over all of them. */
static double half_value(uint16_t half) {
  const int exponent = (half >> 10) & 0x1f, mantissa = half & 0x3ff;
  const double magnitude =
      exponent == 31 ? INFINITY : exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

static void halves_by_definition(void) {
  CHECK(half_of(1.0f) == 0x3c00);
  CHECK(half_of(-2.0f) == 0xc000);
  CHECK(half_of(65504.0f) == 0x7bff);
  CHECK(half_of(65519.996f) == 0x7bff);
  CHECK(half_of(65520.0f) == 0x7c00);
  CHECK(half_of(INFINITY) == 0x7c00);
  CHECK(half_of(-0.0f) == 0x8000);
  CHECK((half_of(float_of(0x7fc00000u)) & 0x7e00) == 0x7e00);
  CHECK(half_of(ldexpf(1.0f, -24)) == 0x0001);
  CHECK(half_of(ldexpf(1.0f, -25)) == 0x0000);          /* a tie: to even, which is zero */
  CHECK(half_of(ldexpf(1.0f, -25) * 1.0001f) == 0x0001);
  CHECK(half_of(ldexpf(3.0f, -25)) == 0x0002);          /* a tie: to even, which is two */
  int exact = 1, between = 1;
  for (uint32_t h = 0; h < 0x7c00; h++) { /* every finite positive half, and the points between two of them */
    const double value = half_value((uint16_t)h), next = half_value((uint16_t)(h + 1));
    exact &= half_of((float)value) == h && half_of((float)-value) == (h | 0x8000);
    if (h + 1 < 0x7c00) {
      const float middle = (float)((value + next) / 2);
      between &= half_of(middle) == (h % 2 ? h + 1 : h);
      between &= half_of(nextafterf(middle, 0.0f)) == h && half_of(nextafterf(middle, 1e9f)) == h + 1;
    }
  }
  CHECK(exact);
  CHECK(between);
}

static void int8_by_hand(void) {
  const float src[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 126.5f, 127.5f, 1e30f, -1e30f, -127.4f};
  const int8_t expected[] = {0, 2, 2, 0, -2, 126, 127, 127, -127, -127};
  int8_t got[10];
  npumm_rows_scalar.f32_to_i8(src, got, 10, 1.0f);
  CHECK(memcmp(got, expected, sizeof got) == 0);
}

static void bad_arguments_are_refused(void) {
  uint8_t buffer[64] = {0};
  const npumm_tiling good = {4, 4, 4, 4, 4, 4};
  const npumm_tiling bad[] = {
      {5, 4, 4, 4, 4, 4}, {4, 5, 4, 4, 4, 4}, {4, 4, 4, 4, 3, 4}, {4, 4, 4, 4, 4, 0},
      {-1, 4, 4, 4, 4, 4}, {4, 4, 4, 4, -4, 4}, {1, 1, (int64_t)1 << 40, 1, 1, 1},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    CHECK(npumm_packed_bytes(&bad[i], NPUMM_COPY_8) == -1);
    CHECK(npumm_pack(&bad[i], NPUMM_COPY_8, buffer, 4, 1, NULL, buffer, 64) == NPUMM_BAD_ARGUMENT);
    CHECK(npumm_unpack(&bad[i], NPUMM_COPY_8, buffer, 64, buffer, 4, 1) == NPUMM_BAD_ARGUMENT);
  }
  CHECK(npumm_packed_bytes(NULL, NPUMM_COPY_8) == -1);
  CHECK(npumm_packed_bytes(&good, (npumm_conversion)99) == -1);
  CHECK(npumm_pack(&good, (npumm_conversion)99, buffer, 4, 1, NULL, buffer, 64) == NPUMM_BAD_ARGUMENT);
  CHECK(npumm_pack(&good, NPUMM_COPY_8, buffer, 4, 1, NULL, buffer, 15) == NPUMM_BUFFER_TOO_SMALL);
  CHECK(npumm_pack(&good, NPUMM_COPY_8, NULL, 4, 1, NULL, buffer, 64) == NPUMM_BAD_ARGUMENT);
  CHECK(npumm_unpack(&good, NPUMM_COPY_8, buffer, 15, buffer, 4, 1) == NPUMM_BUFFER_TOO_SMALL);
  CHECK(npumm_unpack(&good, NPUMM_F32_TO_F16, buffer, 64, buffer, 4, 1) == NPUMM_BAD_ARGUMENT);
  CHECK(npumm_absmax_rows(NULL, 1, 1, 4, 4, NULL) == NPUMM_BAD_ARGUMENT);
}

/* 3 rows of 5 columns, padded to 4 of 6, in tiles of 2 x 2; the bytes worked out on paper. */
static void int4_by_hand(void) {
  const int8_t values[3][5] = {{1, -2, 3, -4, 5}, {-6, 7, -8, 0, 1}, {2, -1, 4, -3, 6}};
  const npumm_tiling tiling = {3, 5, 4, 6, 2, 2};
  const uint8_t low_first[12] = {0xe1, 0x7a, 0xc3, 0x08, 0x05, 0x01, 0xf2, 0x00, 0xd4, 0x00, 0x06, 0x00};
  const npumm_conversion conversions[] = {NPUMM_INT4, NPUMM_INT4_HIGH_FIRST};
  for (int i = 0; i < 2; i++) {
    uint8_t packed[12];
    int8_t back[3][5] = {{0}};
    CHECK(npumm_packed_bytes(&tiling, conversions[i]) == 12);
    CHECK(npumm_pack(&tiling, conversions[i], values, 5, 1, NULL, packed, sizeof packed) == NPUMM_OK);
    int same = 1;
    for (int b = 0; b < 12; b++) {
      const uint8_t swapped = (uint8_t)(low_first[b] << 4 | low_first[b] >> 4);
      same &= packed[b] == (conversions[i] == NPUMM_INT4 ? low_first[b] : swapped);
    }
    CHECK(same);
    CHECK(npumm_unpack(&tiling, conversions[i], packed, sizeof packed, back, 5, 1) == NPUMM_OK);
    CHECK(memcmp(back, values, sizeof values) == 0);
  }
  const npumm_tiling odd = {1, 3, 1, 3, 1, 3};
  CHECK(npumm_packed_bytes(&odd, NPUMM_INT4_HIGH_FIRST) == -1);
}

static void power_of_two_scales_by_hand(void) {
  const float rows[6][2] = {{1.0f, -3.0f}, {65536.0f, 1.0f}, {1e-6f, 0.0f}, {0.0f, 0.0f}, {INFINITY, 1e6f},
                            {ldexpf(1.0f, -149), 0.0f}};
  float scale[6];
  CHECK(npumm_power_of_two_scales(&rows[0][0], 6, 2, 8, 4, scale) == NPUMM_OK);
  CHECK(scale[0] == 1.0f);
  CHECK(scale[1] == ldexpf(1.0f, -16));
  CHECK(scale[2] == ldexpf(1.0f, 20)); /* 1e-6 * 2^20 = 1.048576 */
  CHECK(scale[3] == 1.0f);
  CHECK(scale[4] == ldexpf(1.0f, -19)); /* infinity does not count */
  CHECK(scale[5] == ldexpf(1.0f, 127));
}

int main(void) {
  halves_by_definition();
  int8_by_hand();
  compare_with_scalar(npumm_rows());
  bad_arguments_are_refused();
  int4_by_hand();
  power_of_two_scales_by_hand();
  printf("kernels: %s\n%d passed, %d failed\n", npumm_instruction_set(), passed, failed);
  return failed != 0;
}
