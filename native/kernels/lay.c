/* Rows of converted elements -> their tiles. See pack.h. */
#include "pack.h"
#include "tiling.h"

void npumm_lay(const npumm_tiling *t, int64_t bits, int64_t r, int64_t rows, int64_t c, int64_t padded,
               const void *from, int64_t from_stride, void *dst, int past_caches) {
  const int64_t step = t->tile_cols * bits / 8, to_next = t->tile_rows * step;
  while (rows > 0) {
    const int64_t in_tile = t->tile_rows - r % t->tile_rows, count = in_tile < rows ? in_tile : rows;
    const char *piece = from;
    npumm_walk walk = npumm_walk_row(t, r, c, padded);
    while (walk.length > 0) {
      const int64_t tiles = walk.length == t->tile_cols ? walk.left / t->tile_cols : 0;
      char *to = (char *)dst + walk.offset * bits / 8;
      if (tiles > 0 && (step == 16 || step == 32 || step == 64)) {
        const npumm_pieces of = {step, count, tiles, from_stride, to_next};
        npumm_rows()->pieces(&of, piece, to, past_caches);
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
