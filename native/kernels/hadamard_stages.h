/*
 * Butterflies of the Hadamard transform, of x86-64. Included after hadamard_loops.h and
 *
 *   times           a * b
 *   stages_within   the stages of a block of that many floats, at most WIDTH
 *   MOST            vectors that are mixed at once
 */
#ifndef NPUMATMUL_HADAMARD_STAGES_H
#define NPUMATMUL_HADAMARD_STAGES_H

#include "hadamard_loops.h"

INLINE void butterflies(vector *v, const int half) {
#pragma GCC unroll 8
  for (int i = 0; i < half; i++) {
    const vector a = v[i], b = v[i + half];
    v[i] = plus(a, b), v[i + half] = minus(a, b);
  }
}

/* The stages between `count` vectors, one loop for each: arrays that are indexed otherwise stay in memory. */
INLINE void stages_between(vector *v, const int count) {
#pragma GCC unroll 8
  for (int i = 0; count > 1 && i < count; i += 2) butterflies(v + i, 1);
#pragma GCC unroll 4
  for (int i = 0; count > 2 && i < count; i += 4) butterflies(v + i, 2);
#pragma GCC unroll 2
  for (int i = 0; count > 4 && i < count; i += 8) butterflies(v + i, 4);
  if (count > 8) butterflies(v, 8);
}

/* The first stages, within and between `count` vectors that are neighbours. */
INLINE void first_stages(const float *src, const float *factor, float *dst, int64_t n, const int64_t block,
                         const int count) {
  for (int64_t i = 0; i < n; i += WIDTH * count) {
    vector v[MOST];
#pragma GCC unroll 16
    for (int j = 0; j < count; j++) {
      v[j] = load(src + i + WIDTH * j);
      if (factor) v[j] = times(v[j], load(factor + i + WIDTH * j));
      v[j] = stages_within(v[j], block);
    }
    stages_between(v, count);
#pragma GCC unroll 16
    for (int j = 0; j < count; j++) store(dst + i + WIDTH * j, v[j]);
  }
}

/* The stages between `count` vectors that stand `apart` floats from each other. */
INLINE void later_stages(float *x, int64_t n, int64_t apart, const int count) {
  for (int64_t start = 0; start < n; start += count * apart) {
    for (int64_t i = start; i < start + apart; i += WIDTH) {
      vector v[MOST];
#pragma GCC unroll 16
      for (int j = 0; j < count; j++) v[j] = load(x + i + j * apart);
      stages_between(v, count);
#pragma GCC unroll 16
      for (int j = 0; j < count; j++) store(x + i + j * apart, v[j]);
    }
  }
}

#endif
