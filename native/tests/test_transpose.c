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
  npumm_transpose_scalar(columns, 4, 3, 2, 1, rows, 3, 0);
  const char expected[] = {1, 4, 9, 2, 5, 9, 3, 6, 9};
  HOLDS(memcmp(rows, expected, sizeof rows) == 0);
}

/* Heap blocks of the exact size, so that the sanitizers see every step too far. */
static void compare(int64_t rows, int64_t cols, int64_t element, int64_t gap, int64_t room) {
  const int64_t col_stride = rows * element + gap, row_stride = cols * element + room;
  const int64_t read = cols ? (cols - 1) * col_stride + rows * element : 0, written = rows * row_stride;
  char *src = malloc((size_t)(read ? read : 1));
  /* what is written around the caches has to be aligned: the usual rows of tiles are */
  char *dst = aligned_alloc(64, (size_t)(written / 64 + 1) * 64), *reference = malloc((size_t)(written ? written : 1));
  if (!src || !dst || !reference) abort();
  for (int64_t i = 0; i < read; i++) src[i] = (char)((i * 7 + i / 251) & 0xff);
  memset(reference, 0x55, (size_t)written);
  npumm_transpose_scalar(src, col_stride, rows, cols, element, reference, row_stride, 0);
  for (int set = -1; set < 0 || npumm_rows_at(set); set++) {
    for (int past_caches = 0; past_caches < 2; past_caches++) {
      memset(dst, 0x55, (size_t)written);
      (set < 0 ? npumm_transpose : npumm_rows_at(set)->transpose)(src, col_stride, rows, cols, element, dst, row_stride,
                                                                  past_caches);
      HOLDS(memcmp(dst, reference, (size_t)written) == 0);
    }
  }
  free(src);
  free(dst);
  free(reference);
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
  for (int64_t element = 1; element <= 4; element *= 2) {
    for (int64_t rows = 0; rows < 40; rows += rows < 18 ? 1 : 7) {
      for (int64_t cols = 0; cols < 40; cols += cols < 18 ? 1 : 7) {
        compare(rows, cols, element, (rows + cols) % 3, cols % 2 * 5);
      }
    }
  }
  return report("test_transpose");
}
