/*
 * Dense factors of the Hadamard transform. Included by each instruction set after it has defined
 *
 *   INLINE        an attribute and `static inline`
 *   vector        of WIDTH floats
 *   load, store   at any address
 *   plus, minus   a + b and a - b
 *   minus_both    -a - b, rounded once
 *   negated       -a
 */
#ifndef NPUMATMUL_HADAMARD_LOOPS_H
#define NPUMATMUL_HADAMARD_LOOPS_H

#include <stddef.h>

#include "hadamard.h"
#include "hadamard_codes.h"
#include "npumatmul_kernels.h"

/* The sums of four vectors that have a + before the first: those of codes 0, 2, 4, ... 14. */
INLINE void sums_of_four(const float *x, int64_t stride, vector *sums) {
  const vector x0 = load(x), x1 = load(x + stride), x2 = load(x + 2 * stride), x3 = load(x + 3 * stride);
  const vector first[2] = {plus(x0, x1), minus(x0, x1)}, second[2] = {plus(x2, x3), minus(x2, x3)};
#pragma GCC unroll 8
  for (int code = 0; code < 16; code += 2) {
    const vector a = first[code >> 1 & 1], b = second[(code >> 2 & 1) ^ (code >> 3 & 1)];
    sums[code / 2] = code & 4 ? minus(a, b) : plus(a, b);
  }
}

/* All signed sums of four, in the order of their codes. */
INLINE void write_sums(const float *x, int64_t stride, float *to) {
  for (int lane = 0; lane < NPUMM_LANES; lane += WIDTH) {
    vector sums[8];
    sums_of_four(x + lane, stride, sums);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      store(to + 2 * i * NPUMM_LANES + lane, sums[i]);
      store(to + (15 - 2 * i) * NPUMM_LANES + lane, negated(sums[i]));
    }
  }
}

/* Four rows: what is there of them already, if there is anything, and a sum of each of some fours. */
INLINE void four_rows(const uint8_t *codes, int64_t next_row, int64_t fours, const float *sums, const float *before,
                      float *to, int64_t stride) {
  enum { PARTS = NPUMM_LANES / WIDTH };
  const uint8_t *end = codes + fours;
  vector v[4][PARTS];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const float *from = before ? before + i * NPUMM_LANES : sums + codes[i * next_row];
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; part++) v[i][part] = load(from + WIDTH * part);
  }
  if (!before) codes++, sums += NPUMM_SUMS;
  for (; codes < end; codes++, sums += NPUMM_SUMS) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const float *sum = sums + codes[i * next_row];
#pragma GCC unroll 4
      for (int part = 0; part < PARTS; part++) v[i][part] = plus(v[i][part], load(sum + WIDTH * part));
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; part++) store(to + i * stride + WIDTH * part, v[i][part]);
  }
}

INLINE void any_order(const uint8_t *codes, int64_t order, float *x, int64_t stride) {
  /* a row more, for codes that are none */
  _Alignas(64) float sums[NPUMM_FOURS * NPUMM_SUMS + NPUMM_LANES], partial[NPUMM_HADAMARD_ORDER * NPUMM_LANES];
  const int64_t fours = order / 4;
  for (int64_t first = 0; first < fours; first += NPUMM_FOURS) {
    const int is_last = fours - first <= NPUMM_FOURS;
    const int64_t count = is_last ? fours - first : NPUMM_FOURS;
    for (int64_t f = 0; f < count; f++) write_sums(x + 4 * (first + f) * stride, stride, sums + f * NPUMM_SUMS);
    for (int64_t i = 0; i < order; i += 4) {
      float *here = partial + i * NPUMM_LANES;
      four_rows(codes + i * fours + first, fours, count, sums, first ? here : NULL, is_last ? x + i * stride : here,
                is_last ? stride : NPUMM_LANES);
    }
  }
}

/* Whole loops are unrolled, which makes them plain additions; but instrumented, that would take minutes to compile. */
#define NPUMM_TEXT(x) #x
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(SETS_ARE_EMULATED)
#define UNROLL(n)
#else
#define UNROLL(n) _Pragma(NPUMM_TEXT(GCC unroll n))
#endif

/* The sum of a code, or its negative where the sign of the first of the four is -. */
INLINE vector sum_of(const vector *sums, int code) { return sums[(code & 16 ? 255 - code : code) >> 5]; }

/* Rows of a matrix that is known when this is compiled: sums stay in registers, and each row names its own. */
INLINE void known_rows(const uint8_t *codes, const int64_t order, const int64_t rows, const float *x, int64_t stride,
                       vector *out) {
  const int64_t fours = order / 4;
  vector first[8], sums[8];
  sums_of_four(x, stride, first);
  sums_of_four(x + 4 * stride, stride, sums);
  UNROLL(20)
  for (int64_t i = 0; i < rows; i++) {
    const int one = codes[i * fours], two = codes[i * fours + 1];
    const vector a = sum_of(first, one), b = sum_of(sums, two);
    if (one & 16) out[i] = two & 16 ? minus_both(a, b) : minus(b, a);
    else out[i] = two & 16 ? minus(a, b) : plus(a, b);
  }
  UNROLL(11)
  for (int64_t f = 2; f < fours; f++) {
    sums_of_four(x + 4 * f * stride, stride, sums);
    UNROLL(20)
    for (int64_t i = 0; i < rows; i++) {
      const int code = codes[i * fours + f];
      out[i] = code & 16 ? minus(out[i], sum_of(sums, code)) : plus(out[i], sum_of(sums, code));
    }
  }
}

/* As many rows at a time as leave registers for the sums, which are computed for each of these again. */
INLINE void known_order(const uint8_t *codes, const int64_t order, const int64_t rows, float *x, int64_t stride) {
  for (int lane = 0; lane < NPUMM_LANES; lane += WIDTH, x += WIDTH) {
    vector out[44];
    UNROLL(4)
    for (int64_t i = 0; i < order; i += rows) known_rows(codes + i * order / 4, order, rows, x, stride, out + i);
    UNROLL(44)
    for (int64_t i = 0; i < order; i++) store(x + i * stride, out[i]);
  }
}

INLINE void any_known_order(int64_t order, float *x, int64_t stride) {
  if (order == 12) known_order(npumm_codes_12, 12, 12, x, stride);
  if (order == 20) known_order(npumm_codes_20, 20, 20, x, stride);
  if (order == 28) known_order(npumm_codes_28, 28, 7, x, stride);
  if (order == 44) known_order(npumm_codes_44, 44, 11, x, stride);
}

#endif
