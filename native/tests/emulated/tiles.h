/*
 * The tile registers of AMX as arrays, after the operations of Intel's manual, volume 2. What the processor would answer with
 * an exception ends the program.
 */
#ifndef NPUMATMUL_EMULATED_TILES_H
#define NPUMATMUL_EMULATED_TILES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TILES static inline __attribute__((unused))

enum { EMULATED_TILES = 8, EMULATED_ROWS = 16, EMULATED_ROW_BYTES = 64 };

typedef struct {
  int palette;
  struct {
    unsigned rows, row_bytes;
    uint8_t at[EMULATED_ROWS][EMULATED_ROW_BYTES];
  } tile[EMULATED_TILES];
} emulated_tiles;

/* A thread's; each file that is compiled has its own, so what one configures is for its own instructions. */
static _Thread_local emulated_tiles emulated __attribute__((unused));

TILES void emulated_must(int is_so) {
  if (!is_so) abort();
}

TILES void emulated_tile_release(void) { memset(&emulated, 0, sizeof emulated); }

/* Palette 1: row lengths from byte 16 on, in two bytes each, numbers of rows from byte 48 on; all that is reserved is 0. */
TILES void emulated_tile_loadconfig(const void *config) {
  uint8_t bytes[64];
  memcpy(bytes, config, sizeof bytes);
  emulated_tile_release();
  if (bytes[0] == 0) return;
  emulated_must(bytes[0] == 1);
  for (int i = 1; i < 16; i++) emulated_must(bytes[i] == 0); /* no instruction is begun again in the middle here */
  for (int i = 32; i < 48; i++) emulated_must(bytes[i] == 0);
  for (int i = 56; i < 64; i++) emulated_must(bytes[i] == 0);
  for (int i = 0; i < EMULATED_TILES; i++) {
    const unsigned row_bytes = bytes[16 + 2 * i] | (unsigned)bytes[17 + 2 * i] << 8, rows = bytes[48 + i];
    emulated_must(row_bytes <= EMULATED_ROW_BYTES && rows <= EMULATED_ROWS && (rows == 0) == (row_bytes == 0));
    emulated.tile[i].rows = rows;
    emulated.tile[i].row_bytes = row_bytes;
  }
  emulated.palette = 1;
}

TILES void emulated_must_be_usable(int tile) {
  emulated_must(emulated.palette == 1 && tile >= 0 && tile < EMULATED_TILES && emulated.tile[tile].rows > 0);
}

TILES void emulated_tile_loadd(int tile, const void *base, long long stride) {
  emulated_must_be_usable(tile);
  memset(emulated.tile[tile].at, 0, sizeof emulated.tile[tile].at);
  for (unsigned r = 0; r < emulated.tile[tile].rows; r++) {
    memcpy(emulated.tile[tile].at[r], (const char *)base + r * stride, emulated.tile[tile].row_bytes);
  }
}

TILES void emulated_tile_stored(int tile, void *base, long long stride) {
  emulated_must_be_usable(tile);
  for (unsigned r = 0; r < emulated.tile[tile].rows; r++) {
    memcpy((char *)base + r * stride, emulated.tile[tile].at[r], emulated.tile[tile].row_bytes);
  }
}

TILES void emulated_tile_zero(int tile) {
  emulated_must_be_usable(tile);
  memset(emulated.tile[tile].at, 0, sizeof emulated.tile[tile].at);
}

/* Sums of 32 bits, modulo 2^32, of products of four bytes with signs. */
TILES void emulated_tile_dpbssd(int to, int a, int b) {
  emulated_must(to != a && to != b && a != b);
  emulated_must_be_usable(to), emulated_must_be_usable(a), emulated_must_be_usable(b);
  const unsigned rows = emulated.tile[to].rows, columns = emulated.tile[to].row_bytes / 4;
  const unsigned depth = emulated.tile[a].row_bytes / 4;
  emulated_must(emulated.tile[to].row_bytes % 4 == 0 && emulated.tile[a].row_bytes % 4 == 0);
  emulated_must(emulated.tile[a].rows == rows && emulated.tile[b].rows == depth);
  emulated_must(emulated.tile[b].row_bytes == emulated.tile[to].row_bytes);
  for (unsigned m = 0; m < rows; m++) {
    for (unsigned k = 0; k < depth; k++) {
      for (unsigned n = 0; n < columns; n++) {
        uint32_t sum;
        memcpy(&sum, &emulated.tile[to].at[m][4 * n], sizeof sum);
        for (unsigned i = 0; i < 4; i++) {
          sum += (uint32_t)((int8_t)emulated.tile[a].at[m][4 * k + i] * (int8_t)emulated.tile[b].at[k][4 * n + i]);
        }
        memcpy(&emulated.tile[to].at[m][4 * n], &sum, sizeof sum);
      }
    }
  }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#define _tile_loadconfig(config) emulated_tile_loadconfig(config)
#define _tile_release() emulated_tile_release()
#define _tile_loadd(tile, base, stride) emulated_tile_loadd(tile, base, (long long)(stride))
#define _tile_stored(tile, base, stride) emulated_tile_stored(tile, base, (long long)(stride))
#define _tile_zero(tile) emulated_tile_zero(tile)
#define _tile_dpbssd(to, a, b) emulated_tile_dpbssd(to, a, b)

#endif
