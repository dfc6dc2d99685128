/*
 * Vectors of 4 floats without vector instructions: what those of lanes_avx2.h, lanes_avx512.h and lanes_neon.h do. A file
 * of loops is compiled once with each of these headers; all give the same bits, nans apart.
 */
#ifndef NPUMATMUL_LANES_SCALAR_H
#define NPUMATMUL_LANES_SCALAR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES_TARGET
#define LANES static inline

/* A vector of WIDTH floats; 16 lanes are GROUP of them. */
typedef struct {
  float at[4];
} vec;
typedef struct {
  uint32_t at[4];
} ivec;
enum { WIDTH = 4, GROUP = 4 };

#define EACH_LANE(type, expression)                        \
  type result;                                             \
  for (int i = 0; i < 4; i++) result.at[i] = (expression); \
  return result

LANES vec vec_load(const float *at) { EACH_LANE(vec, at[i]); }
LANES void vec_store(float *at, vec x) { memcpy(at, x.at, sizeof x.at); }
LANES vec vec_all(float x) { EACH_LANE(vec, x); }
LANES vec vec_add(vec a, vec b) { EACH_LANE(vec, a.at[i] + b.at[i]); }
LANES vec vec_sub(vec a, vec b) { EACH_LANE(vec, a.at[i] - b.at[i]); }
LANES vec vec_mul(vec a, vec b) { EACH_LANE(vec, a.at[i] * b.at[i]); }
LANES vec vec_div(vec a, vec b) { EACH_LANE(vec, a.at[i] / b.at[i]); }
/* a b + c with one rounding */
LANES vec vec_fma(vec a, vec b, vec c) { EACH_LANE(vec, fmaf(a.at[i], b.at[i], c.at[i])); }
/* b where one of both is a nan */
LANES vec vec_max(vec a, vec b) { EACH_LANE(vec, a.at[i] > b.at[i] ? a.at[i] : b.at[i]); }
LANES vec vec_min(vec a, vec b) { EACH_LANE(vec, a.at[i] < b.at[i] ? a.at[i] : b.at[i]); }
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
LANES ivec ivec_all(uint32_t x) { EACH_LANE(ivec, x); }
LANES ivec ivec_add(ivec a, ivec b) { EACH_LANE(ivec, a.at[i] + b.at[i]); }
LANES ivec ivec_sub(ivec a, ivec b) { EACH_LANE(ivec, a.at[i] - b.at[i]); }
LANES ivec ivec_and(ivec a, ivec b) { EACH_LANE(ivec, a.at[i] & b.at[i]); }
LANES ivec ivec_or(ivec a, ivec b) { EACH_LANE(ivec, a.at[i] | b.at[i]); }
/* Of a signed number, towards minus infinity. */
LANES ivec ivec_half(ivec a) { EACH_LANE(ivec, (uint32_t)((int32_t)a.at[i] >> 1)); }
LANES ivec ivec_exponent(ivec a) { EACH_LANE(ivec, a.at[i] << 23); }

LANES float float_of_half(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = (uint32_t)(half & 0x7fffu) << 13;
  float scaled;
  memcpy(&scaled, &magnitude, sizeof scaled);
  scaled *= 0x1p112f; /* moves the exponent, also of subnormal ones */
  uint32_t bits;
  memcpy(&bits, &scaled, sizeof bits);
  bits = sign | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits);
  memcpy(&scaled, &bits, sizeof scaled);
  return scaled;
}

/* Exact; of WIDTH float16 or int8. */
LANES vec vec_of_halves(const uint16_t *at) { EACH_LANE(vec, float_of_half(at[i])); }
LANES vec vec_of_codes(const int8_t *at) { EACH_LANE(vec, (float)at[i]); }

/*
 * The sum of 16 lanes is made of (l) + (l + 8), then (l) + (l + 4), then of neighbours, and of neighbours of these. This
 * leaves the last four of each of WIDTH / 4 rows of 16 lanes.
 */
LANES vec vec_fold(vec rows[WIDTH / 4][GROUP]) {
  return vec_add(vec_add(rows[0][0], rows[0][2]), vec_add(rows[0][1], rows[0][3]));
}

/* The sums of WIDTH rows; what was folded of rows r, 4 + r and so on stands in the argument r. */
LANES vec vec_join(vec a, vec b, vec c, vec d) {
  return (vec){{(a.at[0] + a.at[1]) + (a.at[2] + a.at[3]), (b.at[0] + b.at[1]) + (b.at[2] + b.at[3]),
                (c.at[0] + c.at[1]) + (c.at[2] + c.at[3]), (d.at[0] + d.at[1]) + (d.at[2] + d.at[3])}};
}

/* The sum of 16 lanes, and the largest of them. */
LANES float vec_sum(const vec *row) {
  const vec x = vec_add(vec_add(row[0], row[2]), vec_add(row[1], row[3]));
  return (x.at[0] + x.at[1]) + (x.at[2] + x.at[3]);
}
LANES float vec_most(const vec *row) {
  const vec x = vec_max(vec_max(row[0], row[1]), vec_max(row[2], row[3]));
  const float a = x.at[0] > x.at[1] ? x.at[0] : x.at[1], b = x.at[2] > x.at[3] ? x.at[2] : x.at[3];
  return a > b ? a : b;
}

#endif
