/*
 * The loops of finish.h, included once per instruction set with FINISH_NAME and FINISH_KERNELS defined. Written without
 * branches inside, so that compilers turn them into vector code; every operation is one of IEEE 754 and none is fused
 * (-ffp-contract=off), so all versions give the same bits, wherever in a row a value stands.
 */
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
 * x / (1 + exp(-u)) for u = high - low, low a small part, of magnitudes up to 120. exp(-u) = p 2^k as in exp_of, and
 * 2^-h with h near k / 2 is taken out of the denominator, so that neither it nor the quotient leaves the range early.
 */
static inline float logistic_product(float x, float high, float low) {
  const float shifted = high * -0x1.715476p0f + (0x1.8p23f + 254.0f); /* -1 / ln 2 */
  const float k = shifted - (0x1.8p23f + 254.0f);
  const float r = high + k * 0x1.62e4p-1f + (k * 0x1.7f7d1cp-20f - low); /* exp(-r) is p */
  const float r2 = r * r; /* in a few short chains instead of one long one */
  const float p = (1.0f - r) + r2 * (0.49999992f - 0.1666641f * r) +
                  r2 * r2 * ((0.041668288f - 0.0083756356f * r) + r2 * 0.0013835813f);
  const uint32_t sum = bits_of(shifted), half = sum >> 1; /* 127 + h above bits that leave */
  const uint32_t counts = (uint32_t) - (int32_t)((int32_t)half < 0x25a00000 + 127 + 79);    /* beyond, it is 0 */
  const float first = float_of((sum - half) << 23), second = float_of((254u - half) << 23); /* 2^(k - h), 2^-h */
  return x / (p * first + second) * float_of(bits_of(second) & counts); /* subnormal steps are slow */
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

static inline float gelu_tanh_of(float value) {
  const float x = value < -11.0f ? -11.0f : value;
  const double a = (double)at_most(x, 11.0f);
  const double u = a * (1.5957691216057308 + 0.0713548162726009 * (a * a)); /* (1 + tanh v) / 2 = 1 / (1 + exp(-2 v)) */
  const float high = (float)u;
  return logistic_product(x, high, (float)((double)high - u));
}

static inline float silu_of(float value) {
  const float x = value < -110.0f ? -110.0f : value;
  return logistic_product(x, at_most(x, 110.0f), 0.0f);
}

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
#else
#define EACH_ALONE _Pragma("GCC ivdep")
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
enum { NOTHING, BIAS };

/* Constants say what there is to do: each set of them becomes a loop of its own. */
static inline __attribute__((always_inline)) void finish_with(const void *src, int64_t n, const npumm_steps *steps,
                                                              float *dst, const int of, const int what) {
  const int32_t *whole = src;
  const float *floats = src, *bias = steps->bias;
  const double row = steps->row, *columns = steps->columns;
  EACH_ALONE
  for (int64_t i = 0; i < n; i++) {
    float value = of == INTEGERS ? (float)((double)whole[i] * row * columns[i])
                  : of == FLOATS ? (float)((double)floats[i] * row * columns[i])
                                 : floats[i];
    if (what == BIAS) value += bias[i];
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
      if (steps->factor) apply(values, n, steps, NPUMM_IDENTITY);
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

/* The function and what comes after it. */
static void finish_rest(float *values, int64_t n, const npumm_steps *steps) {
  const float low = steps->low, high = steps->high;
  apply_function(values, n, steps);
  if (!(low > -INFINITY || high < INFINITY)) return;
  for (int64_t i = 0; i < n; i++) {
    const float raised = values[i] < low ? low : values[i];
    values[i] = raised > high ? high : raised;
  }
}

static inline __attribute__((always_inline)) void finish(const void *src, int64_t n, const npumm_steps *steps,
                                                         float *dst, const int of) {
  if (steps->bias) finish_with(src, n, steps, dst, of, BIAS);
  else finish_with(src, n, steps, dst, of, NOTHING);
  finish_rest(dst, n, steps);
}

static void finish_int32(const int32_t *src, int64_t n, const npumm_steps *steps, float *dst) {
  finish(src, n, steps, dst, INTEGERS);
}

static void finish_float32(const float *src, int64_t n, const npumm_steps *steps, float *dst) {
  if (steps->columns) finish(src, n, steps, dst, FLOATS);
  else finish(src, n, steps, dst, UNSCALED);
}

typedef int32_t four_ints __attribute__((vector_size(16)));
typedef float four_floats __attribute__((vector_size(16)));
typedef double four_doubles __attribute__((vector_size(32)));

/* A group at a time, of all rows, because their parts of it share a cache line. */
static inline __attribute__((always_inline)) void scale_groups(const int32_t *src, int64_t next, int64_t groups,
                                                               const npumm_steps *steps, float *const *dst,
                                                               const int rows, const int what) {
  const double *columns = steps->columns;
  const float *bias = steps->bias;
  for (int64_t g = 0; g < groups; g++, src += next) {
    __builtin_prefetch(src + 8 * NPUMM_GROUP_ROWS); /* of later rows: no processor foresees so many places at once */
    four_doubles scales;
    four_floats summands = {0};
    memcpy(&scales, columns + 4 * g, sizeof scales);
    if (what == BIAS) memcpy(&summands, bias + 4 * g, sizeof summands);
    for (int r = 0; r < rows; r++) {
      four_ints whole;
      memcpy(&whole, src + 4 * r, sizeof whole);
      four_floats values =
          __builtin_convertvector(__builtin_convertvector(whole, four_doubles) * steps[r].row * scales, four_floats);
      if (what == BIAS) values += summands;
      memcpy(dst[r] + 4 * g, &values, sizeof values);
    }
  }
}

static void finish_groups(const int32_t *src, int64_t next, int64_t groups, int rows, const npumm_steps *steps,
                          float *const *dst) {
  const int at_once = rows == NPUMM_GROUP_ROWS ? NPUMM_GROUP_ROWS : 1;
  for (int r = 0; r < rows; r += at_once) {
    const int32_t *from = src + 4 * r;
    if (at_once == 1 && steps->bias) scale_groups(from, next, groups, steps + r, dst + r, 1, BIAS);
    else if (at_once == 1) scale_groups(from, next, groups, steps + r, dst + r, 1, NOTHING);
    else if (steps->bias) scale_groups(from, next, groups, steps, dst, NPUMM_GROUP_ROWS, BIAS);
    else scale_groups(from, next, groups, steps, dst, NPUMM_GROUP_ROWS, NOTHING);
  }
  for (int r = 0; r < rows; r++) finish_rest(dst[r], 4 * groups, &steps[r]);
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
