/* Tiles -> strided memory, values unchanged: the inverse of pack.c for the copying conversions. */
#include <string.h>

#include "npumatmul_kernels.h"
#include "tiling.h"

static void unpack_int4(const npumm_tiling *t, int high_first, const uint8_t *src, char *dst, int64_t row_stride,
                        int64_t col_stride) {
  for (int64_t r = 0; r < t->rows; r++) {
    for (int64_t c = 0; c < t->cols; c++) {
      const int64_t offset = npumm_tiling_offset(t, r, c);
      const int nibble = (src[offset / 2] >> ((offset % 2 != high_first) * 4)) & 0x0f;
      dst[r * row_stride + c * col_stride] = (char)(nibble < 8 ? nibble : nibble - 16);
    }
  }
}

static int is_copy(npumm_conversion conversion) {
  return conversion == NPUMM_COPY_8 || conversion == NPUMM_COPY_16 || conversion == NPUMM_COPY_32;
}

int npumm_unpack(const npumm_tiling *tiling, npumm_conversion conversion, const void *src, int64_t src_bytes, void *dst,
                 int64_t dst_row_stride, int64_t dst_col_stride) {
  const int64_t needed = npumm_packed_bytes(tiling, conversion);
  const int is_int4 = conversion == NPUMM_INT4 || conversion == NPUMM_INT4_HIGH_FIRST;
  if (needed < 0 || !src || !(is_copy(conversion) || is_int4)) return NPUMM_BAD_ARGUMENT;
  if (src_bytes < needed) return NPUMM_BUFFER_TOO_SMALL;
  if (tiling->rows == 0 || tiling->cols == 0) return NPUMM_OK;
  if (!dst) return NPUMM_BAD_ARGUMENT;
  if (is_int4) {
    unpack_int4(tiling, conversion == NPUMM_INT4_HIGH_FIRST, src, dst, dst_row_stride, dst_col_stride);
    return NPUMM_OK;
  }
  const int64_t element = npumm_element_bits(conversion) / 8;
  for (int64_t r = 0; r < tiling->rows; r++) {
    for (npumm_walk walk = npumm_walk_row(tiling, r, 0, tiling->cols); walk.length > 0; npumm_walk_on(&walk)) {
      const char *from = (const char *)src + walk.offset * element;
      char *to = (char *)dst + r * dst_row_stride + (tiling->cols - walk.left) * dst_col_stride;
      if (dst_col_stride == element) {
        npumm_copy(to, from, walk.length * element);
      } else {
        for (int64_t i = 0; i < walk.length; i++) {
          memcpy(to + i * dst_col_stride, from + i * element, (size_t)element);
        }
      }
    }
  }
  return NPUMM_OK;
}
