/*
 * Transposing and laying pieces into tiles: every instruction set against the scalar reference, and that against values
 * worked out by hand, over odd extents and strides. Compile: gcc -std=c17 -Inative/include -Inative/kernels
 * native/tests/test_transpose.c native/kernels/[a-z]*.c -lm
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "count.h"
#include "rows.h"
#include "transpose.h"

static void by_hand(void) {
  const char columns[] = {1, 2, 3, 0, 4, 5, 6, 0}; /* two columns of three, four bytes apart */
  char rows[9];
  memset(rows, 9, sizeof rows);
  const npumm_transposed of = {3, 2, 1, 4, 3, 3, 0};
  npumm_transpose_scalar(&of, columns, rows, 0);
  const char expected[] = {1, 4, 9, 2, 5, 9, 3, 6, 9};
  HOLDS(memcmp(rows, expected, sizeof rows) == 0);

  const npumm_transposed tiles_of_two = {3, 2, 1, 4, 2, 2, 5};
  char tiles[8];
  memset(tiles, 9, sizeof tiles);
  npumm_transpose_scalar(&tiles_of_two, columns, tiles, 0);
  const char in_tiles[] = {1, 4, 2, 5, 9, 3, 6, 9};
  HOLDS(memcmp(tiles, in_tiles, sizeof tiles) == 0);
}

/* Heap blocks of the exact size, so that the sanitizers see every step too far. */
static void compare_tiles(const npumm_transposed *of) {
  const int64_t read = of->cols ? (of->cols - 1) * of->col_stride + of->rows * of->element : 0;
  const int64_t written = (of->rows + of->tile_rows - 1) / of->tile_rows * of->to_next;
  char *src = malloc((size_t)(read ? read : 1));
  /* what is written around the caches has to be aligned: the usual rows of tiles are */
  char *dst = aligned_alloc(64, (size_t)(written / 64 + 1) * 64), *reference = malloc((size_t)(written ? written : 1));
  if (!src || !dst || !reference) abort();
  for (int64_t i = 0; i < read; i++) src[i] = (char)((i * 7 + i / 251) & 0xff);
  memset(reference, 0x55, (size_t)written);
  npumm_transpose_scalar(of, src, reference, 0);
  for (int set = -1; set < 0 || npumm_rows_at(set); set++) {
    for (int past_caches = 0; past_caches < 2; past_caches++) {
      memset(dst, 0x55, (size_t)written);
      (set < 0 ? npumm_transpose : npumm_rows_at(set)->transpose)(of, src, dst, past_caches);
      HOLDS(memcmp(dst, reference, (size_t)written) == 0);
    }
  }
  free(src);
  free(dst);
  free(reference);
}

/* A tile of all rows. */
static void compare(int64_t rows, int64_t cols, int64_t element, int64_t gap, int64_t room) {
  const int64_t row_stride = cols * element + room, tile_rows = rows ? rows : 1;
  const npumm_transposed of = {
      rows, cols, element, rows * element + gap, tile_rows, row_stride, tile_rows * row_stride};
  compare_tiles(&of);
}

/* Copied columns against their definition; what is asked for ahead may be anything within the source. */
static void copy_columns(int64_t bytes, int64_t cols, int64_t gap) {
  enum { PITCH = 300, COLS = 9 };
  const npumm_columns of = {bytes + gap, bytes, cols, gap, bytes / 2, cols - 1};
  const int64_t read = (cols - 1) * of.stride + bytes;
  char *from = malloc((size_t)read), to[COLS * PITCH];
  if (!from) abort();
  for (int64_t i = 0; i < read; i++) from[i] = (char)((i * 5 + i / 241) & 0xff);
  for (int set = 0; npumm_rows_at(set); set++) {
    memset(to, 0x55, sizeof to);
    npumm_rows_at(set)->copy_columns(&of, from, to, PITCH);
    int same = 1;
    for (int64_t i = 0; i < COLS * PITCH; i++) {
      const int64_t c = i / PITCH, b = i % PITCH;
      same &= to[i] == (c < cols && b < bytes ? from[c * of.stride + b] : 0x55);
    }
    HOLDS(same);
  }
  free(from);
}

/* Pieces against their definition; rows of the source may stand closer than they are long, and end where it ends. */
static void lay_pieces(int64_t bytes, int64_t rows, int64_t tiles, int64_t gap, int64_t room) {
  const npumm_pieces of = {bytes, rows, tiles, tiles * bytes + gap, rows * bytes + room};
  const int64_t read = (rows - 1) * of.from_stride + tiles * bytes, written = tiles * of.to_next;
  char *from = malloc((size_t)read), *to = aligned_alloc(64, (size_t)(written / 64 + 1) * 64);
  if (!from || !to) abort();
  for (int64_t i = 0; i < read; i++) from[i] = (char)((i * 5 + i / 241) & 0xff);
  for (int set = 0; npumm_rows_at(set); set++) {
    for (int past_caches = 0; past_caches < 2; past_caches++) {
      memset(to, 0x55, (size_t)written);
      npumm_rows_at(set)->pieces(&of, from, to, past_caches);
      int same = 1;
      for (int64_t t = 0; t < tiles; t++) {
        for (int64_t i = 0; i < of.to_next; i++) {
          const char *element = from + i / bytes * of.from_stride + t * bytes + i % bytes;
          same &= to[t * of.to_next + i] == (i < rows * bytes ? *element : 0x55);
        }
      }
      HOLDS(same);
    }
  }
  free(from);
  free(to);
}

int main(void) {
  by_hand();
  for (int64_t bytes = 16; bytes <= 64; bytes *= 2) {
    for (int64_t rows = 1; rows < 10; rows++) {
      for (int64_t tiles = 1; tiles < 10; tiles++) {
        lay_pieces(bytes, rows, tiles, 0, 0);
        lay_pieces(bytes, rows, tiles, 3, 64);
        lay_pieces(bytes, rows, tiles, 64, 16);
      }
    }
  }
  for (int64_t rows = 15; rows < 130; rows += 17) { /* and whole tiles, whose rows follow each other */
    for (int64_t cols = 16; cols <= 64; cols *= 2) {
      for (int64_t element = 1; element <= 2; element++) {
        compare(rows, cols, element, 5, 0);
        compare(rows / 16 * 16, cols, element, 0, 0);
      }
    }
  }
  for (int64_t bytes = 16; bytes <= 64; bytes *= 2) { /* the usual tiles, one below the other, and parts of them */
    for (int64_t element = 1; element <= 2; element++) {
      for (int64_t rows = 1; rows < 200; rows += rows % 16 ? 5 : 16) {
        for (int64_t pitch = NPUMM_PITCH; pitch < NPUMM_PITCH + 2; pitch++) {
          const int64_t tile_rows = 1024 / bytes;
          const npumm_transposed of = {rows, bytes / element, element, pitch, tile_rows, bytes, 1024 + 64 * (rows % 3)};
          compare_tiles(&of);
        }
      }
    }
  }
  for (int64_t bytes = 1; bytes < 290; bytes += 7) {
    copy_columns(bytes, 1 + bytes % 9, 0);
    copy_columns(bytes, 9, 70);
  }
  for (int64_t element = 1; element <= 4; element *= 2) {
    for (int64_t rows = 0; rows < 40; rows += rows < 18 ? 1 : 7) {
      for (int64_t cols = 0; cols < 40; cols += cols < 18 ? 1 : 7) {
        compare(rows, cols, element, (rows + cols) % 3, cols % 2 * 5);
      }
    }
  }
  return report("test_transpose");
}
