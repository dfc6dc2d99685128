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

/* x / (1 + exp(-u)) for an u of the sign of x, from e = exp(-|u|): below 0 it is x e / (1 + e). */
static inline float logistic_product(float x, exponential e) {
  const uint32_t below = mask_of_sign(x);
  const float quotient = x * choose(below, e.p, 1.0f) / (1.0f + e.p * e.first * e.second);
  return quotient * choose(below, e.first, 1.0f) * choose(below, e.second, 1.0f);
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
  const double a = (double)magnitude_to(x, 11.0f);
  const double u = a * (-1.5957691216057308 - 0.0713548162726009 * (a * a)); /* tanh v = 2 / (1 + exp(-2 v)) - 1 */
  const float high = (float)u;
  return logistic_product(x, exp_of(high, (float)(u - (double)high)));
}

static inline float silu_of(float value) {
  const float x = value < -110.0f ? -110.0f : value;
  return logistic_product(x, exp_of(-magnitude_to(x, 110.0f), 0.0f));
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

static void scale_int32(const int32_t *src, int64_t n, double row, const float *columns, float *dst) {
  if (columns) {
    for (int64_t i = 0; i < n; i++) dst[i] = (float)((double)src[i] * row * (double)columns[i]);
  } else {
    for (int64_t i = 0; i < n; i++) dst[i] = (float)((double)src[i] * row);
  }
}

static void scale_float32(const float *src, int64_t n, double row, const float *columns, float *dst) {
  if (columns) {
    for (int64_t i = 0; i < n; i++) dst[i] = (float)((double)src[i] * row * (double)columns[i]);
  } else {
    for (int64_t i = 0; i < n; i++) dst[i] = (float)((double)src[i] * row);
  }
}

static void relu(float *values, int64_t n) {
  for (int64_t i = 0; i < n; i++) values[i] = positive_part(values[i]);
}

static void gelu(float *values, int64_t n) {
  for (int64_t i = 0; i < n; i++) values[i] = gelu_of(values[i]);
}

static void gelu_tanh(float *values, int64_t n) {
  for (int64_t i = 0; i < n; i++) values[i] = gelu_tanh_of(values[i]);
}

static void silu(float *values, int64_t n) {
  for (int64_t i = 0; i < n; i++) values[i] = silu_of(values[i]);
}

static void relu2(float *values, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float positive = positive_part(values[i]);
    values[i] = positive * positive;
  }
}

static void sigmoid(float *values, int64_t n) {
  for (int64_t i = 0; i < n; i++) values[i] = sigmoid_of(values[i]);
}

static void clip(float *values, int64_t n, float low, float high) {
  for (int64_t i = 0; i < n; i++) {
    const float raised = values[i] < low ? low : values[i];
    values[i] = raised > high ? high : raised;
  }
}

static void add(float *values, const float *other, int64_t n) {
  for (int64_t i = 0; i < n; i++) values[i] += other[i];
}

static void multiply(float *values, const float *other, int64_t n) {
  for (int64_t i = 0; i < n; i++) values[i] *= other[i];
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

const npumm_finish_kernels FINISH_KERNELS = {FINISH_NAME, scale_int32, scale_float32, relu,      gelu,
                                             gelu_tanh,   silu,        relu2,         sigmoid,   clip,
                                             add,         multiply,    from_f16,      from_bf16, to_bf16};
