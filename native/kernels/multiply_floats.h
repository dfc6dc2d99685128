/*
 * The loops over float lanes, written once for all instruction sets. Before it is included:
 *   INLINE      what makes a function part of its caller, for the instruction set
 *   VECTOR      a vector of floats; PARTS of them are the 16 lanes
 *   ROWS, COLUMNS    rows of A and columns of B that are taken at once
 *   ALONE            columns that one row alone takes at once, where a tile has as many, else 8; it divides 8, or 8 it
 *   load_floats(p), zero_floats(), add_products(sum, x, y), load_b(kind, column, group, half, parts), sum_lanes(parts)
 */
#ifndef NPUMATMUL_MULTIPLY_FLOATS_H
#define NPUMATMUL_MULTIPLY_FLOATS_H

/* What stands in B. */
enum { HALVES, BYTES, NIBBLES };

#define FLOATS_MOST 16

/* `rows` and `columns` are known where it is compiled, so that the sums are registers. */
INLINE void floats_block(const int kind, const float *a, int64_t a_stride, npumm_tile_column tiles, int64_t n, float *c,
                         int64_t c_stride, const int rows, const int columns) {
  VECTOR sums[FLOATS_MOST][PARTS];
#pragma GCC unroll 16
  for (int i = 0; i < rows * columns; i++) {
#pragma GCC unroll 4
    for (int p = 0; p < PARTS; p++) sums[i][p] = zero_floats();
  }
  const int64_t column_bytes = kind == HALVES ? 2 * tiles.tile_k : kind == BYTES ? tiles.tile_k : tiles.tile_k / 2;
  const uint8_t *first = tiles.b + n * column_bytes;
  const int groups = kind == NIBBLES ? 2 : 1; /* 16 bytes hold two of 16 places */
  for (int64_t t = 0; t < tiles.k_tiles; t++, first += tiles.tile_n * column_bytes) {
#pragma GCC unroll 16
    for (int j = 0; j < columns && columns < ALONE; j++) __builtin_prefetch(first + (columns + j) * column_bytes);
    for (int64_t group = 0; group < tiles.tile_k / 16; group += groups) {
#pragma GCC unroll 2
      for (int half = 0; half < groups; half++) {
        const float *x = a + t * tiles.tile_k + 16 * (group + half);
#pragma GCC unroll 16
        for (int j = 0; j < columns; j++) {
          VECTOR y[PARTS];
          load_b(kind, first + j * column_bytes, group, half, y);
#pragma GCC unroll 16
          for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++) {
              VECTOR *sum = &sums[r * columns + j][p];
              *sum = add_products(*sum, load_floats(x + r * a_stride + p * (16 / PARTS)), y[p]);
            }
          }
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows * columns; i++) c[i / columns * c_stride + n + i % columns] = sum_lanes(sums[i]);
}

INLINE void floats(const int kind, const float *a, int64_t a_stride, int64_t rows, npumm_tile_column tiles, float *c,
                   int64_t c_stride) {
  int64_t r = 0;
  for (; r + ROWS <= rows; r += ROWS) {
    for (int64_t n = 0; n < tiles.tile_n; n += COLUMNS) {
      floats_block(kind, a + r * a_stride, a_stride, tiles, n, c + r * c_stride, c_stride, ROWS, COLUMNS);
    }
  }
  for (; r < rows; r++) {
    int64_t n = 0;
    for (; n + ALONE <= tiles.tile_n; n += ALONE) { /* whole tiles, if it goes: B is read as it lies in memory */
      floats_block(kind, a + r * a_stride, a_stride, tiles, n, c + r * c_stride, c_stride, 1, ALONE);
    }
#if ALONE > 8
    for (; n < tiles.tile_n; n += 8) {
      floats_block(kind, a + r * a_stride, a_stride, tiles, n, c + r * c_stride, c_stride, 1, 8);
    }
#endif
  }
}

#define DEFINE_FLOAT_LOOP(NAME, KIND)                                                                        \
  TARGET static void NAME(const float *a, int64_t a_stride, int64_t rows, npumm_tile_column tiles, float *c, \
                          int64_t c_stride) {                                                                \
    floats(KIND, a, a_stride, rows, tiles, c, c_stride);                                                     \
  }
DEFINE_FLOAT_LOOP(f16, HALVES)
DEFINE_FLOAT_LOOP(f16_i8, BYTES)
DEFINE_FLOAT_LOOP(f16_i4, NIBBLES)

#endif
