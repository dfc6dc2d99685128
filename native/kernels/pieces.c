/* Pieces of rows into tiles, with instructions that every machine has. See npumm_pieces in rows.h. */
#include <string.h>

#include "rows.h"

enum { LINE = 64 };

/*
 * As many tiles at a time as share a cache line of a row, so that a line is read once, although lines of rows that stand
 * a power of two apart push each other out of the cache.
 */
#define DEFINE_PIECES(name, size)                                                                       \
  static void name(const npumm_pieces *of, const char *from, char *to) {                                \
    enum { BYTES = size, AT_ONCE = LINE / BYTES };                                                      \
    int64_t tile = 0;                                                                                   \
    for (; tile + AT_ONCE <= of->tiles; tile += AT_ONCE, from += LINE, to += AT_ONCE * of->to_next) {   \
      for (int64_t r = 0; r < of->rows; r++) {                                                          \
        for (int64_t i = 0; i < AT_ONCE; i++) {                                                         \
          memcpy(to + i * of->to_next + r * BYTES, from + r * of->from_stride + i * BYTES, BYTES);      \
        }                                                                                               \
      }                                                                                                 \
    }                                                                                                   \
    for (; tile < of->tiles; tile++, from += BYTES, to += of->to_next) {                                \
      for (int64_t r = 0; r < of->rows; r++) memcpy(to + r * BYTES, from + r * of->from_stride, BYTES); \
    }                                                                                                   \
  }
DEFINE_PIECES(pieces_16, 16)
DEFINE_PIECES(pieces_32, 32)
DEFINE_PIECES(pieces_64, 64)

void npumm_pieces_base(const npumm_pieces *of, const char *from, char *to, int past_caches) {
  (void)past_caches;
  if (of->bytes == 16) pieces_16(of, from, to);
  if (of->bytes == 32) pieces_32(of, from, to);
  if (of->bytes == 64) pieces_64(of, from, to);
}
