/*
 * npumm_pack: every conversion over random extents, tiles and strides against the formulas of npumatmul_kernels.h,
 * element by element in float64, and int4 against bytes worked out by hand. Compile: gcc -std=c17 -Inative/include
 * -Inative/kernels native/tests/test_pack.c native/kernels/[a-z]*.c -lm
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "count.h"
#include "npumatmul_kernels.h"

static uint32_t state = 99;
static int between(int low, int high) {
  state = state * 1664525u + 1013904223u;
  return low + (int)((state >> 8) % (uint32_t)(high - low + 1));
}

static void *need(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1); /* of the exact size, so that the sanitizers see every step too far */
  if (!memory) abort();
  return memory;
}

/* 3 rows of 5 columns, padded to 4 of 6, in tiles of 2 x 2; the bytes worked out on paper. */
static void int4_by_hand(void) {
  const int8_t values[3][5] = {{1, -2, 3, -4, 5}, {-6, 7, -8, 0, 1}, {2, -1, 4, -3, 6}};
  const npumm_tiling tiling = {3, 5, 4, 6, 2, 2};
  const uint8_t low_first[12] = {0xe1, 0x7a, 0xc3, 0x08, 0x05, 0x01, 0xf2, 0x00, 0xd4, 0x00, 0x06, 0x00};
  const npumm_conversion conversions[] = {NPUMM_INT4, NPUMM_INT4_HIGH_FIRST};
  for (int i = 0; i < 2; i++) {
    uint8_t packed[12];
    int8_t back[3][5] = {{0}};
    int32_t sums[3];
    const npumm_values how = {.conversion = conversions[i], .row_sum = sums};
    HOLDS(npumm_packed_bytes(&tiling, conversions[i]) == 12);
    HOLDS(npumm_pack(&tiling, &how, values, 5, 1, packed, sizeof packed) == NPUMM_OK);
    HOLDS(sums[0] == 3 && sums[1] == -6 && sums[2] == 8);
    int same = 1;
    for (int b = 0; b < 12; b++) {
      const uint8_t swapped = (uint8_t)(low_first[b] << 4 | low_first[b] >> 4);
      same &= packed[b] == (conversions[i] == NPUMM_INT4 ? low_first[b] : swapped);
    }
    HOLDS(same);
    HOLDS(npumm_unpack(&tiling, conversions[i], packed, sizeof packed, back, 5, 1) == NPUMM_OK);
    HOLDS(memcmp(back, values, sizeof values) == 0);
  }
  const npumm_tiling odd = {1, 3, 1, 3, 1, 3};
  HOLDS(npumm_packed_bytes(&odd, NPUMM_INT4_HIGH_FIRST) == -1);
}

/* Every value that a split can meet comes back, and both halves are int4. */
static void halves_of_every_value(void) {
  const npumm_tiling tiling = {2, 240, 2, 256, 2, 32};
  float values[240];
  const float one = 1.0f;
  const int32_t zero = 0;
  for (int i = 0; i < 240; i++) values[i] = (float)(i - 120);
  uint8_t packed[256];
  int8_t halves[2][240];
  int32_t sum;
  const npumm_values how = {NPUMM_F32_TO_I4_SPLIT, &one, &zero, &sum};
  HOLDS(npumm_pack(&tiling, &how, values, 960, 4, packed, sizeof packed) == NPUMM_OK);
  HOLDS(npumm_unpack(&tiling, NPUMM_INT4, packed, sizeof packed, halves, 240, 1) == NPUMM_OK);
  HOLDS(sum == -120);
  int same = 1;
  for (int i = 0; i < 240; i++) same &= 16 * halves[0][i] + halves[1][i] == i - 120;
  HOLDS(same);
}

typedef struct {
  npumm_conversion conversion;
  int source_bytes, bits, high_first, images;
  int levels; /* 0 where nothing is quantized */
} property;

static const property properties[] = {
    {NPUMM_COPY_8, 1, 8, 0, 1, 0},
    {NPUMM_COPY_16, 2, 16, 0, 1, 0},
    {NPUMM_COPY_32, 4, 32, 0, 1, 0},
    {NPUMM_INT4, 1, 4, 0, 1, 0},
    {NPUMM_INT4_HIGH_FIRST, 1, 4, 1, 1, 0},
    {NPUMM_F32_TO_I8, 4, 8, 0, 1, 127},
    {NPUMM_F32_TO_I4, 4, 4, 0, 1, 7},
    {NPUMM_F32_TO_I4_HIGH_FIRST, 4, 4, 1, 1, 7},
    {NPUMM_F32_TO_I4_SPLIT, 4, 4, 0, 2, 119},
    {NPUMM_F32_TO_I4_SPLIT_HIGH_FIRST, 4, 4, 1, 2, 119},
};

/* The element as the bits that stand at an offset of the image. */
static uint32_t element_at(const uint8_t *image, int64_t offset, const property *p) {
  if (p->bits == 4) return (uint32_t)(image[offset / 2] >> ((offset % 2 != p->high_first) * 4)) & 0x0fu;
  uint32_t value = 0;
  memcpy(&value, image + offset * p->bits / 8, (size_t)p->bits / 8);
  return value;
}

/* What source element (r, c) becomes: its bits, or the quantized value. */
static int32_t quantized(const property *p, const uint8_t *element, float scale, int zero, int asymmetric) {
  if (!p->levels) {
    uint32_t value = 0;
    memcpy(&value, element, (size_t)p->source_bytes);
    return (int32_t)value;
  }
  float x;
  memcpy(&x, element, 4);
  const double q = nearbyint((double)(x / scale)) + zero;
  return (int32_t)fmin(fmax(q, -p->levels - asymmetric), p->levels);
}

static void random_matrix(const property *p) {
  const int rows = between(1, 40), cols = between(1, 600), tile_rows = between(1, 20), tile_cols = 2 * between(1, 20);
  const int image_rows = rows * p->images;
  const npumm_tiling t = {image_rows,
                          cols,
                          (image_rows + tile_rows - 1) / tile_rows * tile_rows + tile_rows,
                          (cols + tile_cols - 1) / tile_cols * tile_cols + tile_cols,
                          tile_rows,
                          tile_cols};
  /* strides of either order and sign, with gaps; floats may stand at odd addresses */
  const int64_t gap = between(0, 3), inner = p->source_bytes * (between(0, 2) ? 1 : 2) + (between(0, 3) ? 0 : gap);
  int64_t row_stride = inner * cols + gap, col_stride = inner;
  if (between(0, 1)) {
    col_stride = inner * rows + gap;
    row_stride = inner;
  }
  const size_t bytes = (size_t)((rows - 1) * row_stride + (cols - 1) * col_stride + p->source_bytes);
  uint8_t *memory = need(bytes), *src = memory;
  for (size_t i = 0; i < bytes; i++) memory[i] = (uint8_t)between(0, 255);
  if (between(0, 1)) {
    src += (rows - 1) * row_stride;
    row_stride = -row_stride;
  }
  float *scales = need((size_t)rows * sizeof *scales);
  int32_t *zeros = need((size_t)rows * sizeof *zeros), *sums = need((size_t)rows * sizeof *sums);
  for (int r = 0; r < rows; r++) {
    scales[r] = 0.01f * (float)between(1, 50);
    zeros[r] = p->levels ? between(-p->levels - 1, p->levels) : 0;
    for (int c = 0; p->source_bytes == 4 && c < cols; c++) {
      const float x = (float)between(-3000, 3000) * 0.01f;
      memcpy(src + r * row_stride + c * col_stride, &x, 4);
    }
  }
  const int asymmetric = p->levels && between(0, 1), summed = p->levels || p->source_bytes == 1;
  const int64_t needed = npumm_packed_bytes(&t, p->conversion);
  HOLDS(needed == t.padded_rows * t.padded_cols * p->bits / 8);
  uint8_t *image = need((size_t)needed);
  memset(image, 0xa5, (size_t)needed);
  const npumm_values how = {p->conversion, scales, asymmetric ? zeros : NULL, summed ? sums : NULL};
  if (between(0, 1)) {
    HOLDS(npumm_pack(&t, &how, src, row_stride, col_stride, image, needed) == NPUMM_OK);
  } else { /* some rows at a time, the last ones first */
    for (int end = rows, count; end > 0; end -= count) {
      count = between(1, end);
      const int first = end - count;
      const npumm_values part = {p->conversion, scales + first, asymmetric ? zeros + first : NULL,
                                 summed ? sums + first : NULL};
      HOLDS(npumm_pack_rows(&t, &part, first, count, src + first * row_stride, row_stride, col_stride, image, needed) ==
            NPUMM_OK);
    }
    HOLDS(npumm_pack_rows(&t, &how, 1, rows, src, row_stride, col_stride, image, needed) == NPUMM_BAD_ARGUMENT);
  }

  int wrong = 0;
  for (int64_t r = 0; r < t.padded_rows; r++) {
    const int64_t from_row = r % rows;
    int64_t sum = 0;
    for (int64_t c = 0; c < t.padded_cols; c++) {
      const int64_t tile = r / tile_rows * (t.padded_cols / tile_cols) + c / tile_cols;
      const int64_t offset = (tile * tile_rows + r % tile_rows) * tile_cols + c % tile_cols;
      int32_t expected = 0;
      if (r < image_rows && c < cols) {
        expected = quantized(p, src + from_row * row_stride + c * col_stride, scales[from_row],
                             asymmetric ? zeros[from_row] : 0, asymmetric);
        sum += p->levels ? expected : p->bits == 8 ? (int8_t)expected : ((expected & 15) ^ 8) - 8;
        if (p->images == 2) {
          const int32_t high = (int32_t)floor((expected + 8) / 16.0);
          expected = r < rows ? high : expected - 16 * high;
          wrong += expected < -8 || expected > 7;
        }
      }
      const uint32_t mask = p->bits == 32 ? 0xffffffffu : (1u << p->bits) - 1;
      wrong += element_at(image, offset, p) != ((uint32_t)expected & mask);
    }
    /* the sums of plain int4 are those of the bytes they are given in, here of any value */
    if (summed && r < rows && !(p->source_bytes == 1 && p->bits == 4)) wrong += sums[r] != sum;
  }
  HOLDS(wrong == 0);
  free(memory);
  free(scales);
  free(zeros);
  free(sums);
  free(image);
}

/* Quantized in one pass: the scales and the bytes of measuring first and packing then; in parts, with sums, too. */
static void quantized_at_once(npumm_conversion conversion, int rows, int cols, int down) {
  const int images = conversion == NPUMM_F32_TO_I4_SPLIT ? 2 : 1, padded = (rows * images + 31) / 32 * 32 + 32;
  const npumm_tiling t = {rows * images, cols, padded, (cols + 31) / 32 * 32, 32, 32};
  const size_t count = (size_t)rows * (size_t)cols;
  const int64_t bytes = npumm_packed_bytes(&t, conversion), unit = (int64_t)sizeof(float);
  const int64_t row_stride = down ? unit : cols * unit, col_stride = down ? rows * unit : unit;
  float *src = need(count * sizeof *src), *scale = need((size_t)rows * sizeof *scale);
  float *expected_scale = need((size_t)rows * sizeof *scale);
  int32_t *sum = need((size_t)rows * sizeof *sum), *expected_sum = need((size_t)rows * sizeof *sum);
  uint8_t *image = need((size_t)bytes), *expected = need((size_t)bytes);
  for (size_t i = 0; i < count; i++) src[i] = (float)between(-30000, 30000) * 0.001f;
  HOLDS(npumm_symmetric_scales(src, rows, cols, row_stride, col_stride, npumm_levels(conversion), 0.9f,
                               expected_scale) == NPUMM_OK);
  const npumm_values values = {conversion, expected_scale, NULL, expected_sum};
  HOLDS(npumm_pack(&t, &values, src, row_stride, col_stride, expected, bytes) == NPUMM_OK);
  for (int parts = 0; parts < 2; parts++) {
    memset(image, 0xa5, (size_t)bytes);
    if (!parts) {
      HOLDS(npumm_quantize(&t, conversion, 0.9f, src, row_stride, col_stride, image, bytes, scale, sum) == NPUMM_OK);
    } else {
      for (int end = rows, step; end > 0; end -= step) {
        step = between(1, end);
        const int first = end - step;
        const float *from = (const float *)(const void *)((const char *)src + first * row_stride);
        HOLDS(npumm_quantize_rows(NULL, &t, conversion, npumm_levels(conversion), 0.9f, first, step, from, row_stride,
                                  col_stride, image, bytes, scale + first, sum + first) == NPUMM_OK);
      }
    }
    HOLDS(memcmp(scale, expected_scale, (size_t)rows * sizeof *scale) == 0);
    HOLDS(memcmp(sum, expected_sum, (size_t)rows * sizeof *sum) == 0);
    HOLDS(memcmp(image, expected, (size_t)bytes) == 0);
  }
  src[count / 2] = INFINITY;
  HOLDS(npumm_quantize(&t, conversion, 0.9f, src, row_stride, col_stride, image, bytes, scale, NULL) ==
        NPUMM_NOT_FINITE);
  HOLDS(npumm_quantize(&t, NPUMM_F32_TO_F16, 1.0f, src, row_stride, col_stride, image, bytes, scale, NULL) ==
        NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_quantize(&t, conversion, 1.0f, src, row_stride, col_stride, image, bytes, NULL, NULL) ==
        NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_quantize(NULL, conversion, 1.0f, src, row_stride, col_stride, image, bytes, scale, NULL) ==
        NPUMM_BAD_ARGUMENT);
  free(src);
  free(scale);
  free(expected_scale);
  free(sum);
  free(expected_sum);
  free(image);
  free(expected);
}

/* With a rotation: what rotating first and quantizing then gives, with fewer levels and in parts, too. */
static void rotated_at_once(npumm_conversion conversion, int rows, int cols, int power, int step) {
  const npumm_tiling t = {rows, cols, (rows + 3) / 4 * 4, (cols + 31) / 32 * 32, (rows + 3) / 4 * 4, 32};
  const int64_t bytes = npumm_packed_bytes(&t, conversion), unit = (int64_t)sizeof(float), stride = cols * unit + 8;
  const int32_t levels = npumm_levels(conversion) - rows % 2;
  const size_t count = (size_t)rows * (size_t)(stride / unit);
  float *src = need(count * sizeof *src), *rotated = need(count * sizeof *src),
        *signs = need((size_t)cols * sizeof *src);
  float *scale = need((size_t)rows * sizeof *scale), *expected_scale = need((size_t)rows * sizeof *scale);
  int32_t *sum = need((size_t)rows * sizeof *sum), *expected_sum = need((size_t)rows * sizeof *sum);
  uint8_t *image = need((size_t)bytes), *expected = need((size_t)bytes);
  for (size_t i = 0; i < count; i++) src[i] = (float)between(-30000, 30000) * 0.001f;
  for (int i = 0; i < cols; i++) signs[i] = between(0, 1) ? 0.25f : -0.25f;
  const npumm_hadamard how = {.features = cols, .power = power, .prescale = signs};
  HOLDS(npumm_hadamard_rows(&how, src, rows, stride, unit, rotated, stride) == NPUMM_OK);
  HOLDS(npumm_symmetric_scales(rotated, rows, cols, stride, unit, levels, 0.8f, expected_scale) == NPUMM_OK);
  const npumm_values values = {conversion, expected_scale, NULL, expected_sum};
  HOLDS(npumm_pack(&t, &values, rotated, stride, unit, expected, bytes) == NPUMM_OK);
  for (int with_sum = 0; with_sum < 2; with_sum++) {
    memset(image, 0xa5, (size_t)bytes);
    for (int first = 0; first < rows; first += step) {
      const int n = first + step < rows ? step : rows - first;
      const float *from = (const float *)(const void *)((const char *)src + first * stride);
      HOLDS(npumm_quantize_rows(&how, &t, conversion, levels, 0.8f, first, n, from, stride, unit, image, bytes,
                                scale + first, with_sum ? sum + first : NULL) == NPUMM_OK);
    }
    HOLDS(memcmp(scale, expected_scale, (size_t)rows * sizeof *scale) == 0);
    HOLDS(!with_sum || memcmp(sum, expected_sum, (size_t)rows * sizeof *sum) == 0);
    HOLDS(memcmp(image, expected, (size_t)bytes) == 0);
  }
  HOLDS(npumm_quantize_rows(&how, &t, conversion, 128, 0.8f, 0, rows, src, stride, unit, image, bytes, scale, NULL) ==
        NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_quantize_rows(&how, &t, conversion, levels, 0.0f, 0, rows, src, stride, unit, image, bytes, scale,
                            NULL) == NPUMM_BAD_ARGUMENT);
  const npumm_hadamard other = {.features = cols + 1, .power = 1};
  HOLDS(npumm_quantize_rows(&other, &t, conversion, levels, 1.0f, 0, rows, src, stride, unit, image, bytes, scale,
                            NULL) == NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_quantize_rows(&how, &t, conversion, levels, 0.8f, 0, rows, src, stride, unit, image, bytes - 1, scale,
                            NULL) == NPUMM_BUFFER_TOO_SMALL);
  src[(rows - 1) * (stride / unit)] = NAN;
  HOLDS(npumm_quantize_rows(&how, &t, conversion, levels, 0.8f, 0, rows, src, stride, unit, image, bytes, scale,
                            NULL) == NPUMM_NOT_FINITE);
  HOLDS(scale[rows - 1] == -1.0f && (rows == 1 || scale[0] == expected_scale[0]));
  free(src), free(rotated), free(signs), free(scale), free(expected_scale), free(sum), free(expected_sum);
  free(image), free(expected);
}

/* Scales of all kinds are those of the same rows in the other order, infs and nans among them. */
static void scales_in_both_orders(void) {
  enum { ROWS = 150, COLS = 37 };
  static float across[ROWS][COLS], down[COLS][ROWS];
  for (int r = 0; r < ROWS; r++) {
    for (int c = 0; c < COLS; c++) {
      const int wild = between(0, 999);
      across[r][c] = wild == 0 ? INFINITY : wild == 1 ? -INFINITY : wild == 2 ? NAN : (float)between(-999, 999) * 1e-3f;
      if (r % 16 == 0) across[r][c] *= 1e6f;
      down[c][r] = across[r][c];
    }
  }
  float scale[ROWS], other[ROWS];
  int32_t zero[ROWS], other_zero[ROWS];
  npumm_symmetric_scales(&across[0][0], ROWS, COLS, sizeof across[0], 4, 127, 1.0f, scale);
  npumm_symmetric_scales(&down[0][0], ROWS, COLS, 4, sizeof down[0], 127, 1.0f, other);
  HOLDS(memcmp(scale, other, sizeof scale) == 0);
  npumm_asymmetric_scales(&across[0][0], ROWS, COLS, sizeof across[0], 4, 127, 1.0f, scale, zero);
  npumm_asymmetric_scales(&down[0][0], ROWS, COLS, 4, sizeof down[0], 127, 1.0f, other, other_zero);
  HOLDS(memcmp(scale, other, sizeof scale) == 0 && memcmp(zero, other_zero, sizeof zero) == 0);
  for (int high = 0; high < 2; high++) {
    npumm_power_of_two_scales(&across[0][0], ROWS, COLS, sizeof across[0], 4, high, scale);
    npumm_power_of_two_scales(&down[0][0], ROWS, COLS, 4, sizeof down[0], high, other);
    HOLDS(memcmp(scale, other, sizeof scale) == 0);
  }
}

/* An image that is written around the caches: every byte of it, from both orders, and what is beside it. */
static void large_images(void) {
  enum { N = 1056, K = 6100, PADDED = 6112 };
  const npumm_tiling t = {N, K, N, PADDED, 32, 32};
  const npumm_values how = {.conversion = NPUMM_COPY_8};
  int8_t *across = need((size_t)N * K), *down = need((size_t)N * K);
  uint8_t *image = aligned_alloc(64, (size_t)N * PADDED), *other = need((size_t)N * PADDED + 1);
  if (!image) abort();
  for (int r = 0; r < N; r++) {
    for (int c = 0; c < K; c++) across[r * K + c] = down[c * N + r] = (int8_t)between(-128, 127);
  }
  HOLDS(npumm_pack(&t, &how, across, K, 1, image, (int64_t)N * PADDED) == NPUMM_OK);
  int same = 1;
  for (int r = 0; r < N; r++) {
    for (int c = 0; c < PADDED; c++) {
      const int64_t at = (((int64_t)(r / 32) * (PADDED / 32) + c / 32) * 32 + r % 32) * 32 + c % 32;
      same &= (int8_t)image[at] == (c < K ? across[r * K + c] : 0);
    }
  }
  HOLDS(same);
  HOLDS(npumm_pack(&t, &how, down, 1, N, other + 1, (int64_t)N * PADDED) == NPUMM_OK); /* at an odd address */
  HOLDS(memcmp(image, other + 1, (size_t)N * PADDED) == 0);
  memset(image, 0xa5, (size_t)N * PADDED);
  HOLDS(npumm_pack(&t, &how, down, 1, N, image, (int64_t)N * PADDED) == NPUMM_OK);
  HOLDS(memcmp(image, other + 1, (size_t)N * PADDED) == 0);
  free(across);
  free(down);
  free(image);
  free(other);
}

/* Longer columns than are packed at a time, and more of them, in both orders of the source. */
static void long_columns(npumm_conversion conversion, int64_t bytes) {
  enum { N = 4700, K = 75, TILES = 147 };
  const npumm_tiling t = {N, K, TILES * 32, 96, 32, 32};
  float *across = need((size_t)N * K * 4), *down = need((size_t)N * K * 4), scale[N];
  uint8_t *image[2] = {need((size_t)(TILES * 32 * 96 * 2)), need((size_t)(TILES * 32 * 96 * 2))};
  for (int i = 0; i < N; i++) scale[i] = 0.01f + 1e-5f * (float)i;
  for (int r = 0; r < N; r++) {
    for (int c = 0; c < K; c++) {
      const float value = (float)between(-1000, 1000) / 800.0f;
      memcpy((char *)across + (r * K + c) * bytes, &value, (size_t)bytes);
      memcpy((char *)down + (c * N + r) * bytes, &value, (size_t)bytes);
    }
  }
  const npumm_values how = {.conversion = conversion, .row_scale = bytes == 4 ? scale : NULL};
  const int64_t needed = npumm_packed_bytes(&t, conversion);
  memset(image[0], 1, (size_t)needed);
  memset(image[1], 2, (size_t)needed);
  HOLDS(npumm_pack(&t, &how, across, K * bytes, bytes, image[0], needed) == NPUMM_OK);
  HOLDS(npumm_pack(&t, &how, down, bytes, N * bytes, image[1], needed) == NPUMM_OK);
  HOLDS(memcmp(image[0], image[1], (size_t)needed) == 0);
  free(across);
  free(down);
  free(image[0]);
  free(image[1]);
}

static void what_does_not_fit_is_refused(void) {
  const npumm_tiling t = {2, 4, 2, 4, 2, 4}, odd = {3, 4, 4, 4, 2, 4};
  const float values[2][4] = {{1, 2, 3, 4}, {5, 6, INFINITY, 8}};
  const float scale[2] = {1.0f, 1.0f};
  const int32_t too_low[2] = {0, -129}, too_high[2] = {128, 0}, far[2] = {INT32_MIN, INT32_MAX}, fine[2] = {127, -128};
  int32_t sums[2];
  uint8_t image[32];
  const npumm_values bad[] = {
      {NPUMM_F32_TO_I8, scale, too_low, NULL},   {NPUMM_F32_TO_I8, scale, too_high, NULL},
      {NPUMM_F32_TO_I8, scale, far, NULL},       {NPUMM_F32_TO_I4, scale, fine, NULL},
      {NPUMM_F32_TO_F16, scale, fine, NULL},     {NPUMM_F32_TO_F16, scale, NULL, sums},
      {NPUMM_F32_TO_F16_LOW, scale, NULL, sums}, {NPUMM_COPY_32, NULL, NULL, sums},
      {NPUMM_COPY_8, NULL, fine, NULL},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    HOLDS(npumm_pack(&t, &bad[i], values, 16, 4, image, sizeof image) == NPUMM_BAD_ARGUMENT);
  }
  HOLDS(npumm_packed_bytes(&odd, NPUMM_F32_TO_I4_SPLIT) == -1);
  const npumm_conversion quantizing[] = {NPUMM_F32_TO_I8, NPUMM_F32_TO_I4, NPUMM_F32_TO_I4_SPLIT};
  for (int i = 0; i < 3; i++) {
    const npumm_values how = {quantizing[i], NULL, NULL, NULL};
    HOLDS(npumm_pack(&t, &how, values[i == 2], 16, 4, image, sizeof image) == NPUMM_NOT_FINITE);
  }
  const npumm_values how = {NPUMM_F32_TO_I8, scale, fine, sums};
  const npumm_tiling one = {1, 4, 2, 4, 2, 4}, none = {2, 0, 2, 4, 2, 4};
  HOLDS(npumm_pack(&one, &how, values, 16, 4, image, sizeof image) == NPUMM_OK && sums[0] == 4 * 127);
  HOLDS(npumm_pack(&none, &how, NULL, 16, 4, image, sizeof image) == NPUMM_OK && sums[0] == 0 && sums[1] == 0);
}

int main(void) {
  const npumm_conversion quantizing[] = {NPUMM_F32_TO_I8, NPUMM_F32_TO_I4, NPUMM_F32_TO_I4_SPLIT};
  for (size_t i = 0; i < sizeof quantizing / sizeof *quantizing; i++) {
    for (int down = 0; down < 2; down++) {
      quantized_at_once(quantizing[i], 1, 65, down);
      quantized_at_once(quantizing[i], 131, 77, down);
      quantized_at_once(quantizing[i], 70, 1100, down);
    }
  }
  for (size_t i = 0; i < 2; i++) {
    rotated_at_once(quantizing[i], 1, 64, 64, 1);
    rotated_at_once(quantizing[i], 6, 1100, 4, 6);
    rotated_at_once(quantizing[i], 13, 2080, 32, 5);
  }
  scales_in_both_orders();
  large_images();
  long_columns(NPUMM_COPY_8, 1);
  long_columns(NPUMM_COPY_16, 2);
  long_columns(NPUMM_INT4, 1);
  long_columns(NPUMM_F32_TO_I8, 4);
  long_columns(NPUMM_F32_TO_F16, 4);
  int4_by_hand();
  halves_of_every_value();
  for (size_t i = 0; i < sizeof properties / sizeof *properties; i++) {
    for (int n = 0; n < 60; n++) random_matrix(&properties[i]);
  }
  what_does_not_fit_is_refused();
  printf("pack: %s\n", npumm_instruction_set());
  return report("test_pack");
}
