/* Rows of converted elements -> their tiles. See pack.h. */
#include "pack.h"
#include "tiling.h"

enum { LINE = 64 };

/*
 * `tiles` neighbours in the rows: pieces of a constant size, as many at a time as share a cache line of a row, so that a
 * line is read once, although lines of rows that stand a power of two apart push each other out of the cache.
 */
#define DEFINE_PIECES(name, bytes)                                                                                 \
  static void name(const char *from, int64_t from_stride, int64_t rows, int64_t tiles, char *to, int64_t to_next) { \
    enum { BYTES = bytes, AT_ONCE = LINE / BYTES };                                                                \
    int64_t tile = 0;                                                                                              \
    for (; tile + AT_ONCE <= tiles; tile += AT_ONCE, from += LINE, to += AT_ONCE * to_next) {                      \
      for (int64_t r = 0; r < rows; r++) {                                                                         \
        for (int64_t i = 0; i < AT_ONCE; i++) {                                                                    \
          memcpy(to + i * to_next + r * BYTES, from + r * from_stride + i * BYTES, BYTES);                         \
        }                                                                                                          \
      }                                                                                                            \
    }                                                                                                              \
    for (; tile < tiles; tile++, from += BYTES, to += to_next) {                                                   \
      for (int64_t r = 0; r < rows; r++) memcpy(to + r * BYTES, from + r * from_stride, BYTES);                    \
    }                                                                                                              \
  }
DEFINE_PIECES(pieces_16, 16)
DEFINE_PIECES(pieces_32, 32)
DEFINE_PIECES(pieces_64, 64)

void npumm_lay(const npumm_tiling *t, int64_t bits, int64_t r, int64_t rows, int64_t c, int64_t padded,
               const void *from, int64_t from_stride, void *dst) {
  const int64_t step = t->tile_cols * bits / 8, to_next = t->tile_rows * step;
  while (rows > 0) {
    const int64_t in_tile = t->tile_rows - r % t->tile_rows, count = in_tile < rows ? in_tile : rows;
    const char *piece = from;
    npumm_walk walk = npumm_walk_row(t, r, c, padded);
    while (walk.length > 0) {
      const int64_t tiles = walk.length == t->tile_cols ? walk.left / t->tile_cols : 0;
      char *to = (char *)dst + walk.offset * bits / 8;
      if (tiles > 0 && (step == 16 || step == 32 || step == 64)) {
        if (step == 16) pieces_16(piece, from_stride, count, tiles, to, to_next);
        if (step == 32) pieces_32(piece, from_stride, count, tiles, to, to_next);
        if (step == 64) pieces_64(piece, from_stride, count, tiles, to, to_next);
        piece += tiles * step;
        walk = npumm_walk_row(t, r, c + padded - (walk.left - tiles * t->tile_cols), walk.left - tiles * t->tile_cols);
        continue;
      }
      const int64_t bytes = walk.length * bits / 8;
      for (int64_t i = 0; i < count; i++) npumm_copy(to + i * step, piece + i * from_stride, bytes);
      piece += bytes;
      npumm_walk_on(&walk);
    }
    from = (const char *)from + count * from_stride;
    r += count;
    rows -= count;
  }
}
