/*
 * The loops of finish.h, included once per instruction set with FINISH_NAME and FINISH_KERNELS defined. Written without
 * branches inside, so that compilers turn them into vector code; every operation is one of IEEE 754, and fused are those
 * that say so (-ffp-contract=off), so all versions give the same bits, wherever in a row a value stands.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "finish.h"

static inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/*
 * The functions choose with masks where a condition would do, because compilers would make two copies of what follows
 * it, and compare magnitudes as integers: a nan counts as large, and reaches the result as a factor of its own.
 */
static inline float choose(uint32_t mask, float yes, float no) {
  return float_of((bits_of(yes) & mask) | (bits_of(no) & ~mask));
}

static inline uint32_t mask_of_sign(float x) { return (uint32_t)((int32_t)bits_of(x) >> 31); }

/* 0 for what is below it; with a condition GCC would ask on ARM whether it is a nan, too. */
static inline float positive_part(float x) {
  const uint32_t below = (uint32_t) - (int32_t)(x < 0.0f);
  return float_of(bits_of(x) & ~below);
}

/* min(|x|, most) */
static inline float magnitude_to(float x, float most) {
  const int32_t bits = (int32_t)(bits_of(x) & 0x7fffffffu), limit = (int32_t)bits_of(most);
  return float_of((uint32_t)(bits < limit ? bits : limit));
}

/* min(x, most) for most > 0; a nan may become `most`. */
static inline float at_most(float x, float most) {
  const int32_t bits = (int32_t)bits_of(x), limit = (int32_t)bits_of(most);
  return float_of((uint32_t)(bits < limit ? bits : limit));
}

/* max(x, least) for least < 0; a nan may become `least`. */
static inline float at_least(float x, float least) {
  const uint32_t bits = bits_of(x), limit = bits_of(least);
  return float_of(bits < limit ? bits : limit);
}

/* a * b + c, rounded once */
#if defined(FINISH_AVX) || defined(__FMA__) || defined(__aarch64__)
static inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
static inline float fused(float a, float b, float c) {
  const double product = (double)a * (double)b, sum = product + (double)c; /* the product is exact */
  const double part = sum - product, lost = (product - (sum - part)) + ((double)c - part);
  uint64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  /* what is lost becomes a last bit of 1, by which the second rounding tells it from half a unit */
  const uint64_t is_even = ~bits & 1u, is_inexact = (uint64_t)(lost < 0.0) | (uint64_t)(lost > 0.0);
  const uint64_t is_less = (uint64_t)(lost < 0.0) ^ (bits >> 63);
  bits += (is_even & is_inexact) - 2 * (is_even & is_inexact & is_less);
  double odd;
  memcpy(&odd, &bits, sizeof odd);
  return (float)odd;
}
#endif

/* exp(u) = p 2^k with whole k, p between 0.7 and 1.5; 2^k as two factors, so that no product underflows early. */
typedef struct {
  float p, first, second;
} exponential;

/*
 * Of u = high + low, -170 <= u <= 0, low a small part: an error of u is one, relative to exp(u), as large as u. Adding the
 * constant brings the whole part into the low bits; k times the first part of ln 2 is exact. The relative error of the
 * polynomial is below 2^-28.
 */
static inline exponential exp_of(float high, float low) {
  const float shifted = (high + low) * 0x1.715476p0f + 0x1.8p23f; /* 1 / ln 2 */
  const float k = shifted - 0x1.8p23f;
  const float r = high - k * 0x1.62e4p-1f - (k * 0x1.7f7d1cp-20f - low);
  float p = 0.0013835813f;
  p = p * r + 0.0083756356f;
  p = p * r + 0.041668288f;
  p = p * r + 0.1666641f;
  p = p * r + 0.49999992f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t whole = (int32_t)(bits_of(shifted) - 0x4b400000u), half = whole >> 1;
  const uint32_t counts = (uint32_t)((-158 - whole) >> 31); /* below, 110 p 2^k is 0; subnormal steps there are slow */
  const uint32_t first = (uint32_t)(half + 127) << 23, second = (uint32_t)(whole - half + 127) << 23;
  return (exponential){p, float_of(first), float_of(second & counts)};
}

/*
 * x / (1 + exp(-u)) for u = high - low, low a small part, -110.4 <= u <= 88, x and u of one sign. exp(-u) is p 2^k as in
 * exp_of. Below 0 the denominator loses 31 powers of two on the way, so that it is infinite only where the
 * result is smaller than any float32, and the quotient is no subnormal, with which steps are slow.
 */
static inline float logistic_product(float x, float high, float low) {
  const float shifted = fused(high, -0x1.715476p0f, 0x1.8p23f); /* -1 / ln 2 */
  const float k = shifted - 0x1.8p23f;
  const float r = fused(k, 0x1.7f7d1cp-20f, fused(k, 0x1.62e4p-1f, high)) - low; /* exp(-r) is p */
  const float r2 = r * r; /* in a few short chains instead of one long one */
  const float last = fused(0.001382073f, r2, fused(-0.008368677f, r, 0.041668266f));
  const float p = fused(fused(last, r2, fused(-0.16666521f, r, 0.49999994f)), r2, 1.0f - r);
  const uint32_t scale = 0x3f800000u - (mask_of_sign(high) & (31u << 23)); /* 1 or 2^-31 */
  const float power = float_of((bits_of(shifted) << 23) + scale);
  const float finite = x < -FLT_MAX ? -FLT_MAX : x;
  return finite / fused(p, power, float_of(scale)) * float_of(scale);
}

/*
 * All three cut x off where the result is smaller than any float32; that makes -inf give -0.
 *
 * The normal distribution below -a is t g exp(-a^2 / 2) with t = 2 / (2 + a); the relative error of g, a polynomial in u
 * between -1 and 1, is below 2^-25.
 */
static inline float gelu_of(float value) {
  const float x = value < -15.5f ? -15.5f : value;
  const uint32_t below = mask_of_sign(x);
  const float a = magnitude_to(x, 15.5f);
  const float t = 2.0f / (2.0f + a);
  const float u = (t - 0.55714285f) * 2.2580645f;
  float g = -1.2163827e-05f;
  g = g * u + -1.9538764e-05f;
  g = g * u + 0.00012456073f;
  g = g * u + -5.398502e-05f;
  g = g * u + -0.0005663435f;
  g = g * u + 0.0014371888f;
  g = g * u + 0.0009134111f;
  g = g * u + -0.01254932f;
  g = g * u + 0.0063801566f;
  g = g * u + 0.14904393f;
  g = g * u + 0.3553021f;
  const float upper = float_of(bits_of(a) & 0xfffff000u); /* its square is exact */
  const exponential e = exp_of(upper * upper * -0.5f, (a - upper) * (a + upper) * -0.5f);
  const float tail = t * g * e.p;
  const float share = choose(below, tail, 1.0f - tail * e.first * e.second);
  return x * share * choose(below, e.first, 1.0f) * choose(below, e.second, 1.0f);
}

static inline float gelu_tanh_of(float x) {
  const double a = (double)at_least(at_most(x, 9.9f), -10.92f);
  const double u = a * (1.5957691216057308 + 0.0713548162726009 * (a * a)); /* (1 + tanh v) / 2 = 1 / (1 + exp(-2 v)) */
  const float high = (float)u;
  return logistic_product(x, high, (float)((double)high - u));
}

static inline float silu_of(float x) { return logistic_product(x, at_least(at_most(x, 88.0f), -110.25f), 0.0f); }

/* A nan stays one: it is no factor of what is computed here. */
static inline float sigmoid_of(float x) {
  const uint32_t below = mask_of_sign(x);
  const exponential e = exp_of(-magnitude_to(x, 110.0f), 0.0f);
  const float quotient = choose(below, e.p, 1.0f) / (1.0f + e.p * e.first * e.second);
  const float share = quotient * choose(below, e.first, 1.0f) * choose(below, e.second, 1.0f);
  const uint32_t is_nan = (uint32_t)((0x7f800000 - (int32_t)(bits_of(x) & 0x7fffffffu)) >> 31);
  return choose(is_nan, x, share);
}

static inline float relu2_of(float x) {
  const float positive = positive_part(x);
  return positive * positive;
}

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = (uint32_t)(half & 0x7fffu) << 13;
  const float scaled = float_of(magnitude) * 0x1p112f; /* moves the exponent, and makes subnormals normal */
  const uint32_t finite = bits_of(scaled), special = magnitude | 0x7f800000u;
  return float_of(sign | (magnitude >= 0x0f800000u ? special : finite));
}

static inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const uint32_t quiet = bits | 0x400000u; /* a nan stays one */
  return (uint16_t)(((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded) >> 16);
}

/* Elements of arrays at the same place may be the same memory; others are not. */
#if defined(__clang__)
#define EACH_ALONE _Pragma("clang loop vectorize(assume_safety)")
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define EACH_ALONE _Pragma("GCC ivdep")
#define UNROLLED _Pragma("GCC unroll 4")
#endif

static inline float function_of(const npumm_function function, float x) {
  switch (function) {
    case NPUMM_RELU:
      return positive_part(x);
    case NPUMM_GELU:
      return gelu_of(x);
    case NPUMM_GELU_TANH:
      return gelu_tanh_of(x);
    case NPUMM_SILU:
      return silu_of(x);
    case NPUMM_RELU2:
      return relu2_of(x);
    case NPUMM_SIGMOID:
      return sigmoid_of(x);
    case NPUMM_IDENTITY:
      break;
  }
  return x;
}

/* Of integers that are scaled, of floats that are, and of floats that are not; how much there is to do besides. */
enum { INTEGERS, FLOATS, UNSCALED };
enum { NOTHING, BIAS, MATRICES };

/* Constants say what there is to do: each set of them becomes a loop of its own. */
static inline __attribute__((always_inline)) void finish_with(const void *src, int64_t n, const npumm_steps *steps,
                                                              float *dst, const int of, const int what) {
  const int32_t *whole = src;
  const float *floats = src, *bias = steps->bias, *factor = steps->factor, *summand = steps->summand;
  const double row = steps->row, *columns = steps->columns;
  EACH_ALONE
  for (int64_t i = 0; i < n; i++) {
    float value = of == INTEGERS ? (float)((double)whole[i] * row * columns[i])
                  : of == FLOATS ? (float)((double)floats[i] * row * columns[i])
                                 : floats[i];
    if (what != NOTHING) value += bias[i];
    if (what == MATRICES) value = value * factor[i] + summand[i];
    dst[i] = value;
  }
}

/* Functions have a loop of their own: with one that scales, too, fewer of its steps would be computed at a time. */
static inline __attribute__((always_inline)) void apply(float *values, int64_t n, const npumm_steps *steps,
                                                        const npumm_function function) {
  const float *factor = steps->factor, *summand = steps->summand;
  EACH_ALONE
  for (int64_t i = 0; i < n; i++) values[i] = function_of(function, values[i]) * factor[i] + summand[i];
}

static void apply_function(float *values, int64_t n, const npumm_steps *steps) {
  switch (steps->function) {
    case NPUMM_IDENTITY:
      break;
    case NPUMM_RELU:
      apply(values, n, steps, NPUMM_RELU);
      break;
    case NPUMM_GELU:
      apply(values, n, steps, NPUMM_GELU);
      break;
    case NPUMM_GELU_TANH:
      apply(values, n, steps, NPUMM_GELU_TANH);
      break;
    case NPUMM_SILU:
      apply(values, n, steps, NPUMM_SILU);
      break;
    case NPUMM_RELU2:
      apply(values, n, steps, NPUMM_RELU2);
      break;
    case NPUMM_SIGMOID:
      apply(values, n, steps, NPUMM_SIGMOID);
      break;
  }
}

static void limit(float *values, int64_t n, const npumm_steps *steps) {
  const float low = steps->low, high = steps->high;
  if (!(low > -INFINITY || high < INFINITY)) return;
  for (int64_t i = 0; i < n; i++) {
    const float raised = values[i] < low ? low : values[i];
    values[i] = raised > high ? high : raised;
  }
}

static inline __attribute__((always_inline)) void finish(const void *src, int64_t n, const npumm_steps *steps,
                                                         float *dst, const int of) {
  const int matrices = steps->factor && steps->function == NPUMM_IDENTITY;
  if (matrices) finish_with(src, n, steps, dst, of, MATRICES);
  else if (steps->bias) finish_with(src, n, steps, dst, of, BIAS);
  else finish_with(src, n, steps, dst, of, NOTHING);
  if (!matrices) apply_function(dst, n, steps);
  limit(dst, n, steps);
}

static void finish_int32(const int32_t *src, int64_t n, const npumm_steps *steps, float *dst) {
  finish(src, n, steps, dst, INTEGERS);
}

static void finish_float32(const float *src, int64_t n, const npumm_steps *steps, float *dst) {
  if (steps->columns) finish(src, n, steps, dst, FLOATS);
  else finish(src, n, steps, dst, UNSCALED);
}

typedef double four_doubles __attribute__((vector_size(32)));

/* Columns that are worked on at a time where they stand in groups of 4; `groups` at src, `next` from each other. */
#if defined(FINISH_AVX)
enum { AT_ONCE = 8 };
typedef float floats_at_once __attribute__((vector_size(32)));

static inline __attribute__((always_inline)) __m128 scaled_group(const int32_t *src, double row,
                                                                 const double *columns) {
  const __m256d whole = _mm256_cvtepi32_pd(_mm_loadu_si128((const __m128i *)(const void *)src));
  return _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_mul_pd(whole, _mm256_set1_pd(row)), _mm256_loadu_pd(columns)));
}

static inline __attribute__((always_inline)) floats_at_once scaled(const int32_t *src, int64_t next, double row,
                                                                   const double *columns) {
  return _mm256_set_m128(scaled_group(src + next, row, columns + 4), scaled_group(src, row, columns));
}
#else
enum { AT_ONCE = 4 };
typedef float floats_at_once __attribute__((vector_size(16)));

static inline __attribute__((always_inline)) floats_at_once scaled(const int32_t *src, int64_t next, double row,
                                                                   const double *columns) {
  int32_t __attribute__((vector_size(16))) whole;
  four_doubles scales;
  (void)next;
  memcpy(&whole, src, sizeof whole), memcpy(&scales, columns, sizeof scales);
  return __builtin_convertvector(__builtin_convertvector(whole, four_doubles) * row * scales, floats_at_once);
}
#endif

/*
 * Some groups of all rows at a time, because their parts of one share a cache line. A factor and a summand that follow
 * no function are read in the same pass.
 */
static inline __attribute__((always_inline)) void scale_groups(const int32_t *src, int64_t next, int64_t groups,
                                                               const npumm_steps *steps, float *const *dst,
                                                               const int rows, const int what) {
  const float *factor[NPUMM_GROUP_ROWS], *summand[NPUMM_GROUP_ROWS];
  double row[NPUMM_GROUP_ROWS]; /* in registers: as far as compilers see, a vector that is written changes anything */
  float *to[NPUMM_GROUP_ROWS];
  const double *columns = steps->columns;
  const float *bias = steps->bias;
  for (int r = 0; r < rows; r++) {
    row[r] = steps[r].row, factor[r] = steps[r].factor, summand[r] = steps[r].summand, to[r] = dst[r];
  }
  for (int64_t c = 0, n = 4 * groups; c < n; c -= 4, src -= next) { /* the last of an odd number with one more */
    for (; c + AT_ONCE <= n; c += AT_ONCE, src += AT_ONCE / 4 * next) {
      /* of later rows: no processor foresees so many places at once */
      for (int64_t g = 0; g < AT_ONCE / 4; g++) __builtin_prefetch(src + g * next + 8 * NPUMM_GROUP_ROWS);
      floats_at_once summands = {0};
      if (what != NOTHING) memcpy(&summands, bias + c, sizeof summands);
      floats_at_once values[NPUMM_GROUP_ROWS]; /* all before one is written, which nothing is moved across */
      UNROLLED
      for (int r = 0; r < rows; r++) {
        values[r] = scaled(src + 4 * r, next, row[r], columns + c);
        if (what != NOTHING) values[r] += summands;
        if (what == MATRICES) {
          floats_at_once factors, others;
          memcpy(&factors, factor[r] + c, sizeof factors);
          memcpy(&others, summand[r] + c, sizeof others);
          values[r] = values[r] * factors + others;
        }
      }
      UNROLLED
      for (int r = 0; r < rows; r++) memcpy(to[r] + c, &values[r], sizeof values[r]);
    }
    if (c == n) break;
  }
}

static inline __attribute__((always_inline)) void all_groups(const int32_t *src, int64_t next, int64_t groups, int rows,
                                                             const npumm_steps *steps, float *const *dst,
                                                             const int what) {
  if (rows == NPUMM_GROUP_ROWS) scale_groups(src, next, groups, steps, dst, NPUMM_GROUP_ROWS, what);
  else
    for (int r = 0; r < rows; r++) scale_groups(src + 4 * r, next, groups, steps + r, dst + r, 1, what);
}

static void finish_groups(const int32_t *src, int64_t next, int64_t groups, int rows, const npumm_steps *steps,
                          float *const *dst) {
  if (groups == 1 || (rows == 1 && next == 4)) { /* values of a row stand side by side */
    for (int r = 0; r < rows; r++) finish_int32(src + 4 * r, 4 * groups, &steps[r], dst[r]);
    return;
  }
  const int matrices = steps->factor && steps->function == NPUMM_IDENTITY;
  if (matrices) all_groups(src, next, groups, rows, steps, dst, MATRICES);
  else if (steps->bias) all_groups(src, next, groups, rows, steps, dst, BIAS);
  else all_groups(src, next, groups, rows, steps, dst, NOTHING);
  for (int r = 0; r < rows; r++) {
    if (!matrices) apply_function(dst[r], 4 * groups, &steps[r]);
    limit(dst[r], 4 * groups, &steps[r]);
  }
}

static void subtract(int32_t *sums, int64_t n, int32_t factor, const int32_t *other) {
  EACH_ALONE
  for (int64_t i = 0; i < n; i++) { sums[i] = (int32_t)((uint32_t)sums[i] - (uint32_t)factor * (uint32_t)other[i]); }
}

static void add(float *values, const float *other, int64_t n) {
  EACH_ALONE
  for (int64_t i = 0; i < n; i++) values[i] += other[i];
}

static void to_doubles(const float *src, int64_t n, double *dst) {
  EACH_ALONE
  for (int64_t i = 0; i < n; i++) dst[i] = (double)src[i];
}

static void from_f16(const uint16_t *src, int64_t n, float *dst) {
  for (int64_t i = 0; i < n; i++) dst[i] = half_to_float(src[i]);
}

static void from_bf16(const uint16_t *src, int64_t n, float *dst) {
  for (int64_t i = 0; i < n; i++) dst[i] = float_of((uint32_t)src[i] << 16);
}

static void to_bf16(const float *src, int64_t n, uint16_t *dst) {
  for (int64_t i = 0; i < n; i++) dst[i] = float_to_bf16(src[i]);
}

const npumm_finish_kernels FINISH_KERNELS = {FINISH_NAME, finish_int32, finish_float32, finish_groups, subtract,
                                             add,         to_doubles,   from_f16,       from_bf16,     to_bf16};
