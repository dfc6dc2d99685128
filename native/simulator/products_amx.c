/*
 * Products of int8 with AMX, for Linux on x86-64; everything else is AVX-512's. Tile registers hold 16 rows of 64 bytes:
 * rows of A as they stand, and of B for each four k's those of 16 columns side by side. sim_has_amx
 * (products_amx_allowed.c) says whether they may be used.
 */
#include "products.h"

#if defined(SIM_KNOWS_AMX)
#include <immintrin.h>
#include <string.h>

#include "arrange_avx512.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8")))

enum { TILE_ROWS = 16, LINE = 64 };

/* What LDTILECFG reads, with palette 1. */
typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16]; /* eight tiles, and nothing */
  uint8_t rows[16];
} tile_shapes;

/* Numbers are part of the instructions. The last three are for a tile of B that has no second one: 32 k's. */
#define SUMS 0
#define MORE_SUMS 1
#define OF_A 2
#define OF_B 3
#define MORE_OF_B 4
#define HALF_OF_A 5
#define HALF_OF_B 6
#define MORE_HALF_OF_B 7

/* What was written in C is in memory; the compiler's intrinsics do not say how much they read. */
#define WRITTEN(pointer) __asm__ volatile("" : : "r"(pointer) : "memory")

TARGET static void configure(size_t rows) {
  tile_shapes shapes = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    const int holds_b = i == OF_B || i == MORE_OF_B, holds_half = i == HALF_OF_B || i == MORE_HALF_OF_B;
    shapes.row_bytes[i] = i == HALF_OF_A ? LINE / 2 : LINE;
    shapes.rows[i] = (uint8_t)(holds_b ? TILE_ROWS : holds_half ? TILE_ROWS / 2 : rows);
  }
  WRITTEN(&shapes);
  _tile_loadconfig(&shapes);
}

/* The rows that were configured, 16 columns or, with a second panel, 32. */
TARGET static void multiply(const int8_t *a, size_t stride, size_t k_tiles, const char *panel, const char *second,
                            int32_t *c, size_t c_stride) {
  const size_t c_bytes = c_stride * sizeof *c;
  _tile_loadd(SUMS, c, c_bytes);
  if (second) _tile_loadd(MORE_SUMS, c + LANES, c_bytes);
  for (size_t t = 0; t + 2 <= k_tiles; t += 2, a += LINE) {
    const size_t at = t * TILE_K / 4 * LINE;
    _tile_loadd(OF_A, a, stride);
    _tile_loadd(OF_B, panel + at, LINE);
    _tile_dpbssd(SUMS, OF_A, OF_B);
    if (second) {
      _tile_loadd(MORE_OF_B, second + at, LINE);
      _tile_dpbssd(MORE_SUMS, OF_A, MORE_OF_B);
    }
  }
  if (k_tiles % 2) {
    const size_t at = (k_tiles - 1) * TILE_K / 4 * LINE;
    _tile_loadd(HALF_OF_A, a, stride);
    _tile_loadd(HALF_OF_B, panel + at, LINE);
    _tile_dpbssd(SUMS, HALF_OF_A, HALF_OF_B);
    if (second) {
      _tile_loadd(MORE_HALF_OF_B, second + at, LINE);
      _tile_dpbssd(MORE_SUMS, HALF_OF_A, MORE_HALF_OF_B);
    }
  }
  _tile_stored(SUMS, c, c_bytes);
  if (second) _tile_stored(MORE_SUMS, c + LANES, c_bytes);
}

TARGET static void i8_by_16(sim_rows a, sim_tiles tiles, int32_t *c, size_t c_stride) {
  const int8_t *values = a.values;
  const size_t panel_bytes = tiles.k_tiles * TILE_K * LANES;
  char *panel = tiles.spare, *second = panel + panel_bytes;
  for (size_t n = 0; n < tiles.tile_n; n += 2 * LANES) {
    const bool both = n + LANES < tiles.tile_n;
    arrange_bytes(tiles, n, _mm512_setzero_si512(), (__m512i *)(void *)panel);
    if (both) arrange_bytes(tiles, n + LANES, _mm512_setzero_si512(), (__m512i *)(void *)second);
    WRITTEN(panel);
    for (size_t r = 0; r < a.rows; r += TILE_ROWS) {
      const size_t rows = a.rows - r < TILE_ROWS ? a.rows - r : TILE_ROWS;
      if (r == 0 || rows < TILE_ROWS) configure(rows);
      multiply(values + r * a.stride, a.stride, tiles.k_tiles, panel, both ? second : NULL, c + r * c_stride + n,
               c_stride);
    }
  }
  _tile_release();
}

/* Where B is read as it lies in memory, memory is the limit. */
static void i8(sim_rows a, sim_tiles tiles, int32_t *c, size_t c_stride) {
  bool fits = tiles.tile_n % LANES == 0 && tiles.tile_k == TILE_K && tiles.spare && a.rows > 0;
  (fits ? i8_by_16 : sim_products_avx512.i8)(a, tiles, c, c_stride);
}

static void f16(sim_rows a, sim_tiles tiles, float *c, size_t c_stride) {
  sim_products_avx512.f16(a, tiles, c, c_stride);
}
static void ready_ints(const int8_t *in, void *out, size_t count) { memcpy(out, in, count); }
static int32_t sum_ints(const int8_t *in, size_t count) { return sim_products_avx512.sum_ints(in, count); }
static void halves_to_floats(const uint8_t *halves, float *out, size_t count) {
  sim_products_avx512.halves_to_floats(halves, out, count);
}
static void ints_to_halves(const int8_t *in, int32_t zero_point, uint8_t *halves, size_t count) {
  sim_products_avx512.ints_to_halves(in, zero_point, halves, count);
}
static void unpack_pairs(const uint8_t *pairs, bool low_first, int8_t *out, size_t bytes) {
  sim_products_avx512.unpack_pairs(pairs, low_first, out, bytes);
}

const sim_products sim_products_amx = {
    .name = "amx",
    .blocks_from = 8,
    .f16 = f16,
    .i8 = i8,
    .int_bytes = sizeof(int8_t),
    .ready_ints = ready_ints,
    .sum_ints = sum_ints,
    .halves_to_floats = halves_to_floats,
    .ints_to_halves = ints_to_halves,
    .unpack_pairs = unpack_pairs,
};

#else
typedef int sim_products_amx_is_for_linux_on_x86_64; /* C asks for something in every file */
#endif
