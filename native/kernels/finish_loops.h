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

/* exp(x) of -708 <= x <= 700, relative error below 2^-33. The constant brings the integer part into the low bits. */
static inline double exp_double(double x) {
  const double shift = 0x1.8p52;
  const double shifted = x * 0x1.71547652b82fep0 + shift; /* 1 / ln 2 */
  const double k = shifted - shift;
  const double r = x - k * 0x1.62e42feep-1 - k * 0x1.a39ef35793c76p-33; /* ln 2 in two parts */
  double p = 0.00019907582591325134;
  p = p * r + 0.0013948590286863383;
  p = p * r + 0.008333283518768105;
  p = p * r + 0.041666218139710595;
  p = p * r + 0.1666666678638044;
  p = p * r + 0.5000000107793876;
  p = p * r + 0.9999999999955055;
  p = p * r + 0.9999999999595294;
  uint64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 1023) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

/* Half of erfc(z) for 0 <= z <= 11, relative error below 2^-30: t exp(P(t) - z^2) with t = 2 / (2 + z). */
static inline double half_erfc(double z) {
  const double t = 2.0 / (2.0 + z);
  const double u = (t - 0.5769230769230769) / 0.4230769230769231; /* [2/13, 1] to [-1, 1] */
  double p = 6.34496089971794e-06;
  p = p * u + -6.684829924734269e-06;
  p = p * u + -4.410351895667099e-05;
  p = p * u + 8.446921948934205e-05;
  p = p * u + 0.00015590170296645716;
  p = p * u + -0.0006285005597280762;
  p = p * u + -0.0002469929323851668;
  p = p * u + 0.004033121028918847;
  p = p * u + -0.00141368456600988;
  p = p * u + -0.030776157757739345;
  p = p * u + 0.017633794412347376;
  p = p * u + 0.5785679665805289;
  p = p * u + -0.5673654734673337;
  return 0.5 * t * exp_double(p - z * z);
}

/* Results below x = -30 are smaller than any float32: x is cut off there, which also makes -inf give -0. */
static inline float gelu_of(float value) {
  double x = (double)value;
  x = x < -30.0 ? -30.0 : x;
  double z = (x < 0.0 ? -x : x) * 0.7071067811865476;
  z = z > 11.0 ? 11.0 : z;
  const double beyond = half_erfc(z);
  return (float)(x * (x < 0.0 ? beyond : 1.0 - beyond));
}

static inline float gelu_tanh_of(float value) {
  double x = (double)value;
  x = x < -30.0 ? -30.0 : x;
  double exponent = -1.5957691216057308 * (x + 0.044715 * x * x * x); /* tanh(u) = 2 / (1 + exp(-2 u)) - 1 */
  exponent = exponent < -708.0 ? -708.0 : exponent;
  exponent = exponent > 700.0 ? 700.0 : exponent;
  return (float)(x / (1.0 + exp_double(exponent)));
}

/* e = exp(-|x|) = p 2^k; the power of two comes last and in two steps, so that it neither over- nor underflows early. */
static inline float silu_of(float value) {
  const float x = value < -110.0f ? -110.0f : value;
  float y = x < 0.0f ? x : -x;
  y = y < -110.0f ? -110.0f : y;
  const float shift = 0x1.8p23f;
  const float shifted = y * 0x1.715476p0f + shift;
  const float k = shifted - shift;
  const float r = y - k * 0x1.62e4p-1f - k * 0x1.7f7d1cp-20f;
  float p = 0.0013941118f;
  p = p * r + 0.0083751347f;
  p = p * r + 0.041666353f;
  p = p * r + 0.16666415f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t whole = (int32_t)(bits_of(shifted) - 0x4b400000u);
  const int32_t half = whole >> 1;
  const float first = float_of((uint32_t)(half + 127) << 23), second = float_of((uint32_t)(whole - half + 127) << 23);
  const float e = p * first * second;
  return x < 0.0f ? x * p / (1.0f + e) * first * second : x / (1.0f + e);
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
  for (int64_t i = 0; i < n; i++) values[i] = values[i] < 0.0f ? 0.0f : values[i];
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

const npumm_finish_kernels FINISH_KERNELS = {FINISH_NAME, scale_int32, scale_float32, relu, gelu, gelu_tanh, silu,
                                             clip, add, multiply, from_f16, from_bf16, to_bf16};
