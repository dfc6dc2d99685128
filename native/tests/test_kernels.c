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

#include "count.h"
#include "npumatmul_kernels.h"
#include "rows.h"

static uint32_t state = 12345;
static uint32_t random_bits(void) {
  state = state * 1664525u + 1013904223u;
  return state ^ (state >> 15);
}

/* Floats of every kind: any bit pattern, subnormals, ties between halves, infs and nans among them. */
static float random_float(int kind) {
  uint32_t bits = random_bits();
  float value;
  if (kind == 1) bits = (bits & 0x807fffffu) | ((100u + bits % 40u) << 23);        /* around float16's range */
  if (kind == 2) bits = (bits & 0x80000000u) | 0x3f801000u | (bits & 0x007fe000u); /* ties to even */
  memcpy(&value, &bits, sizeof value);
  if (kind == 3) value = (float)((int32_t)(bits % 511u) - 255) * 0.5f; /* ties of the int8 rounding, and clamping */
  return value;
}

static int same_half(uint16_t a, uint16_t b) {
  const int a_nan = (a & 0x7fff) > 0x7c00, b_nan = (b & 0x7fff) > 0x7c00;
  return a == b || (a_nan && b_nan); /* the payload of a nan is not promised */
}

/* Steps, ranges and zero points: usual ones, and those that make quotients overflow or vanish. */
static const npumm_quantizer quantizers[] = {
    {1.0f, -127.0f, 127.0f, 0},        {3.7f, -7.0f, 7.0f, 0},       {1e30f, -119.0f, 119.0f, 0},
    {0.5f, -128.0f - 3.0f, 124.0f, 3}, {1e-30f, -255.0f, 0.0f, 127}, {0.0f, -127.0f, 127.0f, 0},
};

/* Pairs of two columns against those of one row in which their elements alternate. */
static void compare_pairs_of_columns(const npumm_row_kernels *kernels, const int8_t *even, const int8_t *odd,
                                     int64_t n) {
  enum { MOST = 300 };
  int8_t row[2 * MOST];
  uint8_t got[MOST], expected[MOST];
  for (int64_t i = 0; i < n; i++) row[2 * i] = even[i], row[2 * i + 1] = odd[i];
  for (int way = 0; way < 4; way++) {
    kernels->pair_columns(even, odd, got, n, way & 1, way >> 1);
    npumm_rows_scalar.pairs(row, expected, 2 * n, way & 1, way >> 1);
    HOLDS(n == 0 || memcmp(got, expected, (size_t)n) == 0);
  }
}

/*
 * With steps that change from element to element: those above by turns, or with `usual` the first two, or with `alike`
 * bounds and zero points of one of them.
 */
static void compare_columns(const npumm_row_kernels *kernels, const float *src, int64_t n, int usual,
                            const npumm_quantizer *alike) {
  enum { MOST = 300 };
  float scale[MOST], reciprocal[MOST], low[MOST], high[MOST];
  int32_t zero[MOST];
  uint32_t largest[MOST], largest_reference[MOST];
  int8_t got[MOST], expected[MOST];
  for (int64_t i = 0; i < n; i++) {
    const npumm_quantizer *of = &quantizers[(size_t)i % (usual ? 2 : sizeof quantizers / sizeof *quantizers)];
    scale[i] = of->scale, reciprocal[i] = 1.0f / of->scale, low[i] = of->low, high[i] = of->high, zero[i] = of->zero;
    if (alike) low[i] = alike->low, high[i] = alike->high, zero[i] = alike->zero;
    largest[i] = largest_reference[i] = i % 3 ? 0 : 0x3f800000u;
  }
  const npumm_quantizers how = {scale, reciprocal, low, high, zero, usual, alike != NULL};
  const int finite = npumm_rows_scalar.quantize_columns(src, expected, n, &how);
  HOLDS(kernels->quantize_columns(src, got, n, &how) == finite);
  HOLDS(n == 0 || memcmp(got, expected, (size_t)n) == 0);
  kernels->absmax_columns(src, n, largest);
  npumm_rows_scalar.absmax_columns(src, n, largest_reference);
  HOLDS(n == 0 || memcmp(largest, largest_reference, (size_t)n * sizeof *largest) == 0);
}

/* Multiples of half a step and what is beside them: where a product with 1 / scale is rounded to another integer. */
static void quotients_next_to_halves(const npumm_row_kernels *kernels) {
  enum { COUNT = 4 * 512 };
  static float src[COUNT];
  static int8_t got[COUNT], expected[COUNT];
  static float scale[COUNT], reciprocal[COUNT], low[COUNT], high[COUNT];
  static const int32_t zero[COUNT];
  int same = 1;
  for (int round = 0; round < 300; round++) {
    const uint32_t bits = (random_bits() & 0x007fffffu) | ((uint32_t)(30 + round % 200) << 23);
    const float level = round % 3 ? 127.0f : 7.0f; /* of int8 and int4 */
    npumm_quantizer how = {0.0f, -level, level, 0};
    memcpy(&how.scale, &bits, sizeof bits);
    for (int i = 0; i < COUNT; i++) {
      const float at = (float)((i / 4 - 256) * 0.5 * (double)how.scale);
      src[i] = i % 4 == 0 ? at : i % 4 == 1 ? nextafterf(at, INFINITY) : i % 4 == 2 ? nextafterf(at, -INFINITY) : -at;
    }
    const int finite = npumm_rows_scalar.quantize(src, expected, COUNT, &how);
    same &= kernels->quantize(src, got, COUNT, &how) == finite && memcmp(got, expected, sizeof got) == 0;
    for (int i = 0; i < COUNT; i++) {
      scale[i] = how.scale, reciprocal[i] = 1.0f / how.scale, low[i] = how.low, high[i] = how.high;
    }
    const npumm_quantizers each = {scale, reciprocal, low, high, zero, npumm_is_usual_scale(how.scale), 1};
    same &= kernels->quantize_columns(src, got, COUNT, &each) == finite && memcmp(got, expected, sizeof got) == 0;
  }
  HOLDS(same);
}

/* One quotient of 64 is as near to a half as where kernels begin to divide, and up to the largest; zero points, too. */
static void one_quotient_near_a_half(const npumm_row_kernels *kernels) {
  enum { COUNT = 64 * 512 };
  static float src[COUNT];
  static int8_t got[COUNT], expected[COUNT];
  int same = 1;
  for (int round = 0; round < 60; round++) {
    const uint32_t bits = (random_bits() & 0x007fffffu) | ((uint32_t)(40 + round * 3) << 23);
    const int32_t zero = round % 3 == 0 ? 0 : round % 3 == 1 ? 127 : -128;
    npumm_quantizer how = {0.0f, (float)(-128 - zero), (float)(127 - zero), zero};
    memcpy(&how.scale, &bits, sizeof bits);
    for (int i = 0; i < COUNT; i++) {
      const double code = (double)(random_bits() % 520u) - 260.0; /* beyond the range, too */
      const double off =
          ((double)(random_bits() % 8001u) - 4000.0) / 1000.0 * 0x1p-15; /* within eight steps of 2^-16 */
      src[i] = (float)((i % 64 == i / 64 % 64 ? code + 0.5 + off : code + 0.25) * (double)how.scale);
    }
    if (round % 4 == 3) src[random_bits() % COUNT] = round % 8 == 3 ? INFINITY : NAN;
    const int finite = npumm_rows_scalar.quantize(src, expected, COUNT, &how);
    same &= kernels->quantize(src, got, COUNT, &how) == finite && memcmp(got, expected, sizeof got) == 0;
  }
  HOLDS(same);
}

static void compare_with_scalar(const npumm_row_kernels *kernels) {
  enum { LONGEST = 300 };
  quotients_next_to_halves(kernels);
  one_quotient_near_a_half(kernels);
  for (int kind = 0; kind < 4; kind++) {
    for (int64_t n = 0; n < LONGEST; n = n < 70 ? n + 1 : n + 23) {
      /* heap blocks of the exact size, so that the sanitizers see every step too far */
      float *src = malloc((size_t)(n ? n : 1) * sizeof *src);
      uint16_t *half = malloc((size_t)(n ? n : 1) * 2), *half_reference = malloc((size_t)(n ? n : 1) * 2);
      int8_t *byte = malloc((size_t)(n ? n : 1)), *byte_reference = malloc((size_t)(n ? n : 1));
      uint8_t *pair = malloc((size_t)(n + 1) / 2 + 1), *pair_reference = malloc((size_t)(n + 1) / 2 + 1);
      if (!src || !half || !half_reference || !byte || !byte_reference || !pair || !pair_reference) abort();
      for (int64_t i = 0; i < n; i++) src[i] = random_float(kind);
      const float scale = kind == 1 ? 0.25f : 1.0f;
      kernels->f32_to_f16(src, half, n, scale);
      npumm_rows_scalar.f32_to_f16(src, half_reference, n, scale);
      int same = 1;
      for (int64_t i = 0; i < n; i++) same &= same_half(half[i], half_reference[i]);
      kernels->f32_to_f16_low(src, half, n, scale);
      npumm_rows_scalar.f32_to_f16_low(src, half_reference, n, scale);
      for (int64_t i = 0; i < n; i++) same &= same_half(half[i], half_reference[i]);
      kernels->f32_to_f16_high(src, half, n, scale);
      npumm_rows_scalar.f32_to_f16_high(src, half_reference, n, scale);
      for (int64_t i = 0; i < n; i++) same &= half[i] == half_reference[i];
      HOLDS(same);

      int finite = 1, finite_reference = 1;
      const float largest = kernels->absmax(src, n, &finite);
      HOLDS(largest == npumm_rows_scalar.absmax(src, n, &finite_reference));
      HOLDS(finite == finite_reference);
      float range[2] = {0.0f, 0.0f}, range_reference[2] = {0.0f, 0.0f};
      finite = 1;
      kernels->minmax(src, n, range, &finite);
      npumm_rows_scalar.minmax(src, n, range_reference, &finite_reference);
      HOLDS(range[0] == range_reference[0] && range[1] == range_reference[1] && finite == finite_reference);

      for (size_t q = 0; q < sizeof quantizers / sizeof *quantizers; q++) {
        HOLDS(kernels->quantize(src, byte, n, &quantizers[q]) == finite);
        HOLDS(npumm_rows_scalar.quantize(src, byte_reference, n, &quantizers[q]) == finite);
        HOLDS(n == 0 || memcmp(byte, byte_reference, (size_t)n) == 0);
      }
      for (int usual = 0; usual < 2; usual++) {
        compare_columns(kernels, src, n, usual, NULL);
        for (int alike = 0; alike < 4; alike++) compare_columns(kernels, src, n, usual, &quantizers[alike]);
      }
      for (int64_t i = 0; i < n; i++) byte[i] = (int8_t)random_bits();
      HOLDS(kernels->sum(byte, n) == npumm_rows_scalar.sum(byte, n));
      for (int way = 0; way < 4; way++) {
        kernels->pairs(byte, pair, n, way & 1, way >> 1);
        npumm_rows_scalar.pairs(byte, pair_reference, n, way & 1, way >> 1);
        HOLDS(n == 0 || memcmp(pair, pair_reference, (size_t)(n + 1) / 2) == 0);
      }
      for (int64_t i = 0; i < n; i++) byte_reference[i] = (int8_t)random_bits();
      compare_pairs_of_columns(kernels, byte, byte_reference, n);
      free(src);
      free(half);
      free(half_reference);
      free(byte);
      free(byte_reference);
      free(pair);
      free(pair_reference);
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
  const double magnitude = exponent == 31  ? INFINITY
                           : exponent == 0 ? ldexp(mantissa, -24)
                                           : ldexp(1024 + mantissa, exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

static void halves_by_definition(void) {
  HOLDS(half_of(1.0f) == 0x3c00);
  HOLDS(half_of(-2.0f) == 0xc000);
  HOLDS(half_of(65504.0f) == 0x7bff);
  HOLDS(half_of(65519.996f) == 0x7bff);
  HOLDS(half_of(65520.0f) == 0x7c00);
  HOLDS(half_of(INFINITY) == 0x7c00);
  HOLDS(half_of(-0.0f) == 0x8000);
  HOLDS((half_of(float_of(0x7fc00000u)) & 0x7e00) == 0x7e00);
  HOLDS(half_of(ldexpf(1.0f, -24)) == 0x0001);
  HOLDS(half_of(ldexpf(1.0f, -25)) == 0x0000); /* a tie: to even, which is zero */
  HOLDS(half_of(ldexpf(1.0f, -25) * 1.0001f) == 0x0001);
  HOLDS(half_of(ldexpf(3.0f, -25)) == 0x0002); /* a tie: to even, which is two */
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
  HOLDS(exact);
  HOLDS(between);
}

static void int8_by_hand(void) {
  const float src[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 126.5f, 127.5f, 1e30f, -1e30f, -127.4f};
  const int8_t expected[] = {0, 2, 2, 0, -2, 126, 127, 127, -127, -127};
  const npumm_quantizer how = {1.0f, -127.0f, 127.0f, 0};
  int8_t got[10];
  HOLDS(npumm_rows_scalar.quantize(src, got, 10, &how) == 1);
  HOLDS(memcmp(got, expected, sizeof got) == 0);
}

/*
 * What a half loses, against the definition: high and low together are within 2^-12 of the low part, or 2^-25. What is
 * inf or nan stands in the low half, and its sign in the high one.
 */
static void split_halves_by_definition(void) {
  int close = 1, kept = 1;
  for (int i = 0; i < 20000; i++) {
    const float wild[] = {INFINITY, -INFINITY, NAN, -NAN}, x = i < 4 ? wild[i] : random_float(1);
    uint16_t low, high;
    npumm_rows_scalar.f32_to_f16_low(&x, &low, 1, 1.0f);
    npumm_rows_scalar.f32_to_f16_high(&x, &high, 1, 1.0f);
    if (isnan(x) || fabsf(x) >= 65520.0f) {
      kept &= high == (signbit(x) ? 0xbc00 : 0x3c00);
      kept &= isnan(x) ? (low & 0x7fff) > 0x7c00 : low == (signbit(x) ? 0xfc00 : 0x7c00);
      continue;
    }
    kept &= high == half_of(x);
    const double lost = (double)x - half_value(high), error = fabs(lost - half_value(low));
    close &= error <= fmax(ldexp(fabs(lost), -11), ldexp(1.0, -25));
  }
  HOLDS(close);
  HOLDS(kept);
}

static void bad_arguments_are_refused(void) {
  uint8_t buffer[64] = {0};
  const npumm_tiling good = {4, 4, 4, 4, 4, 4};
  const npumm_values copy = {.conversion = NPUMM_COPY_8}, unknown = {.conversion = (npumm_conversion)99};
  const npumm_tiling bad[] = {
      {5, 4, 4, 4, 4, 4},
      {4, 5, 4, 4, 4, 4},
      {4, 4, 4, 4, 3, 4},
      {4, 4, 4, 4, 4, 0},
      {-1, 4, 4, 4, 4, 4},
      {4, 4, 4, 4, -4, 4},
      {1, 1, (int64_t)1 << 40, 1, 1, 1},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    HOLDS(npumm_packed_bytes(&bad[i], NPUMM_COPY_8) == -1);
    HOLDS(npumm_pack(&bad[i], &copy, buffer, 4, 1, buffer, 64) == NPUMM_BAD_ARGUMENT);
    HOLDS(npumm_unpack(&bad[i], NPUMM_COPY_8, buffer, 64, buffer, 4, 1) == NPUMM_BAD_ARGUMENT);
  }
  HOLDS(npumm_packed_bytes(NULL, NPUMM_COPY_8) == -1);
  HOLDS(npumm_packed_bytes(&good, (npumm_conversion)99) == -1);
  HOLDS(npumm_pack(&good, &unknown, buffer, 4, 1, buffer, 64) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_pack(&good, NULL, buffer, 4, 1, buffer, 64) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_pack(&good, &copy, buffer, 4, 1, buffer, 15) == NPUMM_BUFFER_TOO_SMALL);
  HOLDS(npumm_pack(&good, &copy, NULL, 4, 1, buffer, 64) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_unpack(&good, NPUMM_COPY_8, buffer, 15, buffer, 4, 1) == NPUMM_BUFFER_TOO_SMALL);
  HOLDS(npumm_unpack(&good, NPUMM_F32_TO_F16, buffer, 64, buffer, 4, 1) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_absmax_rows(NULL, 1, 1, 4, 4, NULL) == NPUMM_BAD_ARGUMENT);
  float value = 1.0f, scale;
  int32_t zero;
  HOLDS(npumm_symmetric_scales(&value, 1, 1, 4, 4, 0, 1.0f, &scale) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_symmetric_scales(&value, 1, 1, 4, 4, 7, 0.0f, &scale) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_symmetric_scales(&value, 1, 1, 4, 4, 7, 1.5f, &scale) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_symmetric_scales(&value, 1, 1, 4, 4, 7, NAN, &scale) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_asymmetric_scales(&value, 1, 1, 4, 4, 7, 1.0f, &scale, NULL) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_asymmetric_scales(NULL, 1, 1, 4, 4, 7, 1.0f, &scale, &zero) == NPUMM_BAD_ARGUMENT);
}

static void power_of_two_scales_by_hand(void) {
  const float rows[6][2] = {{1.0f, -3.0f}, {65536.0f, 1.0f}, {1e-6f, 0.0f},
                            {0.0f, 0.0f},  {INFINITY, 1e6f}, {ldexpf(1.0f, -149), 0.0f}};
  float scale[6];
  HOLDS(npumm_power_of_two_scales(&rows[0][0], 6, 2, 8, 4, 0, scale) == NPUMM_OK);
  HOLDS(scale[0] == 1.0f);
  HOLDS(scale[1] == ldexpf(1.0f, -16));
  HOLDS(scale[2] == ldexpf(1.0f, 20)); /* 1e-6 * 2^20 = 1.048576 */
  HOLDS(scale[3] == 1.0f);
  HOLDS(scale[4] == ldexpf(1.0f, -19)); /* infinity does not count */
  HOLDS(scale[5] == ldexpf(1.0f, 127));
  HOLDS(npumm_power_of_two_scales(&rows[0][0], 6, 2, 8, 4, 1, scale) == NPUMM_OK);
  HOLDS(scale[0] == ldexpf(1.0f, 13) && scale[1] == 0.25f && scale[2] == ldexpf(1.0f, 34) && scale[3] == 1.0f);
  HOLDS(scale[4] == ldexpf(1.0f, -5) && scale[5] == ldexpf(1.0f, 127));
}

static void quantization_scales_by_hand(void) {
  const float rows[6][3] = {{1.0f, -3.0f, 2.0f},  {0.0f, 0.0f, 0.0f},     {-51.0f, 204.0f, 0.0f},
                            {1.0f, 255.0f, 3.0f}, {1.0f, NAN, -INFINITY}, {-3e38f, 3e38f, 0.0f}};
  const float levels = 127.0f;
  float scale[6];
  int32_t zero[6];
  HOLDS(npumm_symmetric_scales(&rows[0][0], 6, 3, 12, 4, 127, 1.0f, scale) == NPUMM_OK);
  HOLDS(scale[0] == 3.0f / levels && scale[1] == 1.0f && scale[2] == 204.0f / levels && scale[4] == -1.0f);
  HOLDS(npumm_symmetric_scales(&rows[0][0], 6, 3, 12, 4, 7, 0.5f, scale) == NPUMM_OK);
  HOLDS(scale[0] == 1.5f / 7.0f && scale[2] == 102.0f / 7.0f);
  HOLDS(npumm_asymmetric_scales(&rows[0][0], 6, 3, 12, 4, 127, 1.0f, scale, zero) == NPUMM_OK);
  HOLDS(scale[1] == 1.0f && zero[1] == -128);
  HOLDS(scale[2] == 1.0f && zero[2] == -77);  /* -51 becomes -128 and 204 becomes 127 */
  HOLDS(scale[3] == 1.0f && zero[3] == -128); /* the range is widened to 0..255 */
  HOLDS(scale[4] == -1.0f && zero[4] == 0);
  HOLDS(scale[5] > 0.0f && isfinite(scale[5])); /* although 6e38 is beyond float32 */
  HOLDS(npumm_asymmetric_scales(&rows[2][0], 1, 3, 12, 4, 7, 1.0f, scale, zero) == NPUMM_OK);
  HOLDS(scale[0] == 17.0f && zero[0] == -5); /* -51 / 17 = -3 becomes -8 */
  HOLDS(npumm_asymmetric_scales(&rows[2][0], 1, 3, 12, 4, 7, 0.5f, scale, zero) == NPUMM_OK);
  HOLDS(scale[0] == 8.5f && zero[0] == -5);
  const float last[2] = {-1e-45f, 0.0f}; /* too small for a step of its own */
  HOLDS(npumm_asymmetric_scales(last, 1, 2, 8, 4, 127, 1.0f, scale, zero) == NPUMM_OK);
  HOLDS(scale[0] == 1.0f && zero[0] == -128);
  const float columns[4] = {1.0f, 5.0f, -2.0f, 6.0f}; /* read along the other dimension */
  HOLDS(npumm_asymmetric_scales(columns, 2, 2, 4, 8, 1, 1.0f, scale, zero) == NPUMM_OK);
  HOLDS(scale[0] == 1.0f && zero[0] == 0 && scale[1] == 2.0f && zero[1] == -2);
}

int main(void) {
  halves_by_definition();
  int8_by_hand();
  for (int set = 1; npumm_rows_at(set); set++) compare_with_scalar(npumm_rows_at(set));
  HOLDS(npumm_rows_at(-1) == NULL);
  bad_arguments_are_refused();
  split_halves_by_definition();
  power_of_two_scales_by_hand();
  quantization_scales_by_hand();
  printf("kernels: %s\n", npumm_instruction_set());
  return report("test_kernels");
}
