/*
 * Floats, one at a time: what the vectors of lanes_avx2.h, lanes_avx512.h and lanes_neon.h do in each of their lanes. A
 * file of loops is compiled once with each of these headers; all give the same bits, nans apart.
 */
#ifndef NPUMATMUL_LANES_SCALAR_H
#define NPUMATMUL_LANES_SCALAR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES_TARGET
#define LANES static inline

/* A vector of WIDTH floats; 16 lanes are GROUP of them. */
typedef float vec;
typedef uint32_t ivec;
enum { WIDTH = 1, GROUP = 16 };

LANES vec vec_load(const float *at) { return *at; }
LANES void vec_store(float *at, vec x) { *at = x; }
LANES vec vec_all(float x) { return x; }
LANES vec vec_add(vec a, vec b) { return a + b; }
LANES vec vec_sub(vec a, vec b) { return a - b; }
LANES vec vec_mul(vec a, vec b) { return a * b; }
LANES vec vec_div(vec a, vec b) { return a / b; }
/* a b + c with one rounding */
LANES vec vec_fma(vec a, vec b, vec c) { return fmaf(a, b, c); }
/* b where one of both is a nan */
LANES vec vec_max(vec a, vec b) { return a > b ? a : b; }
LANES vec vec_min(vec a, vec b) { return a < b ? a : b; }
LANES ivec vec_bits(vec x) {
  ivec bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
LANES vec vec_of_bits(ivec bits) {
  vec x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
LANES ivec ivec_all(uint32_t x) { return x; }
LANES ivec ivec_add(ivec a, ivec b) { return a + b; }
LANES ivec ivec_sub(ivec a, ivec b) { return a - b; }
LANES ivec ivec_and(ivec a, ivec b) { return a & b; }
LANES ivec ivec_or(ivec a, ivec b) { return a | b; }
LANES ivec ivec_half(ivec a) { return (ivec)((int32_t)a >> 1); } /* of a signed number, towards minus infinity */
LANES ivec ivec_exponent(ivec a) { return a << 23; }

/* Exact; WIDTH float16 or int8. */
LANES vec vec_of_halves(const uint16_t *at) {
  const uint32_t sign = (uint32_t)(*at & 0x8000u) << 16, magnitude = (uint32_t)(*at & 0x7fffu) << 13;
  const ivec finite = vec_bits(vec_of_bits(magnitude) * 0x1p112f); /* moves the exponent, also of subnormal ones */
  return vec_of_bits(sign | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite));
}
LANES vec vec_of_codes(const int8_t *at) { return (vec)*at; }

/* Rounded to nearest even. */
LANES void vec_to_halves(vec x, uint16_t *at) {
  const uint32_t bits = vec_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x47800000u) {
    half = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (magnitude < 0x38800000u) { /* subnormal: the sum rounds to units of 2^-24 */
    half = vec_bits(vec_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  *at = (uint16_t)(sign | half);
}

/*
 * Of 16 rows of 16 lanes the sum of each, into 16 floats: first (l) + (l + 8), then (l) + (l + 4), then neighbours, and
 * neighbours of these.
 */
LANES void vec_sums(vec rows[16][GROUP], float *sums) {
  for (int r = 0; r < 16; r++) {
    float s[4];
    for (int l = 0; l < 4; l++) s[l] = (rows[r][l] + rows[r][l + 8]) + (rows[r][l + 4] + rows[r][l + 12]);
    sums[r] = (s[0] + s[1]) + (s[2] + s[3]);
  }
}

/* The same of one row. */
LANES float vec_sum(const vec *row) {
  float s[4];
  for (int l = 0; l < 4; l++) s[l] = (row[l] + row[l + 8]) + (row[l + 4] + row[l + 12]);
  return (s[0] + s[1]) + (s[2] + s[3]);
}

/* The largest of 16 lanes. */
LANES float vec_most(const vec *row) {
  float most = row[0];
  for (int l = 1; l < 16; l++) most = vec_max(most, row[l]);
  return most;
}

#endif
