/* Pieces of rows into tiles, for aarch64. See npumm_pieces in rows.h, and pieces.c for the order. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "rows.h"

enum { LINE = 64, VECTOR = 16, VECTORS = LINE / VECTOR };

/* Lines of `count` rows, all loaded before the first is stored: cores that execute instructions in their order would wait. */
static inline void lay_lines(const npumm_pieces *of, const int bytes, const int count, const char *from, char *to) {
  uint8x16_t line[2 * VECTORS];
  for (int i = 0; i < count * VECTORS; i++) {
    line[i] = vld1q_u8((const uint8_t *)from + i / VECTORS * of->from_stride + i % VECTORS * VECTOR);
  }
  for (int i = 0; i < count * VECTORS; i++) {
    const int at = i % VECTORS * VECTOR;
    vst1q_u8((uint8_t *)to + at / bytes * of->to_next + i / VECTORS * bytes + at % bytes, line[i]);
  }
}

static inline void lay(const npumm_pieces *of, const int bytes, const char *from, char *to) {
  const int at_once = LINE / bytes;
  int64_t tile = 0;
  for (; tile + at_once <= of->tiles; tile += at_once, from += LINE, to += at_once * of->to_next) {
    int64_t r = 0;
    for (; r + 2 <= of->rows; r += 2) lay_lines(of, bytes, 2, from + r * of->from_stride, to + r * bytes);
    if (r < of->rows) lay_lines(of, bytes, 1, from + r * of->from_stride, to + r * bytes);
  }
  const npumm_pieces rest = {of->bytes, of->rows, of->tiles - tile, of->from_stride, of->to_next};
  npumm_pieces_base(&rest, from, to, 0);
}

void npumm_pieces_neon(const npumm_pieces *of, const char *from, char *to, int past_caches) {
  (void)past_caches;
  if (of->bytes == 16) lay(of, 16, from, to);
  if (of->bytes == 32) lay(of, 32, from, to);
  if (of->bytes == 64) lay(of, 64, from, to);
}
#else
typedef int npumm_pieces_neon_is_empty_here;
#endif
