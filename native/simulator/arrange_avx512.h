/* Elements of B side by side, as the loops for AVX-512 and AMX read them. */
#ifndef SIM_ARRANGE_AVX512_H
#define SIM_ARRANGE_AVX512_H

#include <immintrin.h>

#include "products.h"

#define INLINE __attribute__((always_inline, target("avx512f,avx512bw,avx512vnni,avx2,fma,f16c"))) static inline

enum { LANES = 16, TILE_K = 32 };

/*
 * One step of a transposition: of each two vectors whose numbers differ in one bit, the first becomes the even elements
 * of both, the second the odd ones. So the lowest bit of the place goes to the number, and that bit to the place's top.
 */
INLINE void even_and_odd(__m512i *vectors, const size_t count, const size_t bit) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#pragma GCC unroll 16
  for (size_t i = 0; i < count; i++) {
    if (i & bit) continue;
    const __m512i first = vectors[i], second = vectors[i + bit];
    vectors[i] = _mm512_permutex2var_epi32(first, even, second);
    vectors[i + bit] = _mm512_permutex2var_epi32(first, odd, second);
  }
}

/* Columns n to n + 16 of bytes, with bits of `flipped` turned over: for each four k's a vector of the columns. */
INLINE void arrange_bytes(sim_tiles tiles, size_t n, __m512i flipped, __m512i *panel) {
  for (size_t t = 0; t < tiles.k_tiles; t++, panel += TILE_K / 4) {
    const uint8_t *tile = tiles.b + (t * tiles.tile_n + n) * TILE_K;
    __m512i x[TILE_K / 4]; /* two columns each */
#pragma GCC unroll 8
    for (size_t i = 0; i < TILE_K / 4; i++) x[i] = _mm512_xor_si512(_mm512_loadu_si512(tile + 64 * i), flipped);
    even_and_odd(x, TILE_K / 4, 1);
    even_and_odd(x, TILE_K / 4, 2);
    even_and_odd(x, TILE_K / 4, 4);
#pragma GCC unroll 8
    for (size_t i = 0; i < TILE_K / 4; i++) _mm512_store_si512(panel + i, x[i]);
  }
}

#endif
