/*
 * The transposing kernel against its scalar reference, and that against values worked out by hand, over odd extents and
 * strides. Compile: gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_transpose.c
 * native/kernels/transpose.c -lm
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "count.h"
#include "transpose.h"

static void by_hand(void) {
  const char columns[] = {1, 2, 3, 0, 4, 5, 6, 0}; /* two columns of three, four bytes apart */
  char rows[9];
  memset(rows, 9, sizeof rows);
  npumm_transpose_scalar(columns, 4, 3, 2, 1, rows, 3);
  const char expected[] = {1, 4, 9, 2, 5, 9, 3, 6, 9};
  HOLDS(memcmp(rows, expected, sizeof rows) == 0);
}

/* Heap blocks of the exact size, so that the sanitizers see every step too far. */
static void compare(int64_t rows, int64_t cols, int64_t element, int64_t gap, int64_t room) {
  const int64_t col_stride = rows * element + gap, row_stride = cols * element + room;
  const int64_t read = cols ? (cols - 1) * col_stride + rows * element : 0, written = rows * row_stride;
  char *src = malloc((size_t)(read ? read : 1));
  char *dst = malloc((size_t)(written ? written : 1)), *reference = malloc((size_t)(written ? written : 1));
  if (!src || !dst || !reference) abort();
  for (int64_t i = 0; i < read; i++) src[i] = (char)((i * 7 + i / 251) & 0xff);
  memset(dst, 0x55, (size_t)written);
  memset(reference, 0x55, (size_t)written);
  npumm_transpose(src, col_stride, rows, cols, element, dst, row_stride);
  npumm_transpose_scalar(src, col_stride, rows, cols, element, reference, row_stride);
  HOLDS(memcmp(dst, reference, (size_t)written) == 0);
  free(src);
  free(dst);
  free(reference);
}

int main(void) {
  by_hand();
  for (int64_t element = 1; element <= 4; element *= 2) {
    for (int64_t rows = 0; rows < 40; rows += rows < 18 ? 1 : 7) {
      for (int64_t cols = 0; cols < 40; cols += cols < 18 ? 1 : 7) {
        compare(rows, cols, element, (rows + cols) % 3, cols % 2 * 5);
      }
    }
  }
  return report("test_transpose");
}
