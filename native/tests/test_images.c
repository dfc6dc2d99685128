/*
 * Images of A that threads share: the same bytes, scales, zero points and sums of rows as one thread makes, for every way
 * to scale rows; int8 against what is written out here; and rows that hold a nan. Compile: gcc -std=c17
 * -Inative/include -Inative/kernels native/tests/test_images.c native/executor/[a-z]*.c native/kernels/[a-z]*.c -lm
 * -lpthread
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../executor/images.h"

static int passed, failed;

#define CHECK(condition, ...)                                 \
  do {                                                        \
    if (condition) {                                          \
      passed++;                                               \
    } else {                                                  \
      failed++;                                               \
      printf("test_images.c:%d: %s: ", __LINE__, #condition); \
      printf(__VA_ARGS__);                                    \
      printf("\n");                                           \
    }                                                         \
  } while (0)

enum { K = 1111, ROWS = 300, PADDED_ROWS = 304, GROUP = 16, SLICES = 2, CUT = 600, IMAGE = PADDED_ROWS * 1120 * 2 };

static float a[ROWS][K];
static const npumm_range ranges[] = {{0, 64}, {64, 236}};

/* What comes of a range. */
typedef struct {
  int code;
  npumm_report report;
  char images[SLICES][IMAGE];
  float scale[SLICES * 236];
  double factor[SLICES * 236];
  int32_t zero[SLICES * 236], sums[SLICES * 236];
  int has_factor, has_zero;
} outcome;

static const npumm_slice slices[SLICES] = {
    {.k = {0, CUT}, .group = {0, CUT}},
    {.k = {CUT, K - CUT}, .group = {CUT, K - CUT}},
};

/* Both slices in one batch where there are as many buffers, else one after the other. */
static void pack(npumm_crew *crew, const npumm_activation *how, int32_t m_index, int32_t buffers, outcome *out) {
  static npumm_context context;
  npumm_shape shape[SLICES] = {
      {.context = &context, .padded_m = PADDED_ROWS, .padded_k = 608, .padded_n = 16, .a_group = GROUP},
      {.context = &context, .padded_m = PADDED_ROWS, .padded_k = 512, .padded_n = 16, .a_group = GROUP},
  };
  npumm_shape *shapes[2 * SLICES] = {&shape[0], &shape[1], &shape[0], &shape[1]};
  rknn_tensor_mem memories[SLICES] = {{.virt_addr = out->images[0], .size = IMAGE},
                                      {.virt_addr = out->images[1], .size = IMAGE}};
  rknn_tensor_mem *each[SLICES] = {&memories[0], &memories[1]};
  static const npumm_runtime runtime; /* without mem_sync */
  const npumm_placed_matmul placed = {.runtime = &runtime,
                                      .activation = *how,
                                      .row_images = 1,
                                      .m_count = 2,
                                      .slice_count = SLICES,
                                      .n_count = 1,
                                      .core_count = 3,
                                      .a_count = buffers,
                                      .m_ranges = ranges,
                                      .slices = slices,
                                      .a_memories = each,
                                      .shapes = shapes};
  const int integers = npumm_levels(how->conversion) > 0;
  npumm_work work = {
      .placed = &placed,
      .rows = {.a = (const char *)a, .a_row_stride = sizeof a[0], .a_col_stride = 4, .cols = K, .row_images = 1},
      .m_index = m_index,
      .longest = 236,
      .row_sums = integers ? out->sums : NULL,
      .failed_core = -1};
  memset(out, 0x55, sizeof *out);
  out->report = (npumm_report){.row = -7};
  CHECK(npumm_rows_open(&work.rows, how, work.longest, SLICES) == 0, "no memory");
  work.rows.image_rows = ranges[m_index].length;
  for (int32_t first = 0; first < SLICES; first += buffers) {
    work.first_slice = first;
    work.images = buffers;
    for (int32_t i = 0; i < buffers; i++) work.image_of[i] = first + i;
    if (buffers == 1) memories[0].virt_addr = out->images[first];
    out->code = npumm_pack_images(&work, crew, &out->report);
    if (out->code) break;
  }
  const size_t count = (size_t)ranges[m_index].length, groups = npumm_scales_groups(how) ? (size_t)buffers : 1;
  out->has_factor = work.rows.factor != NULL;
  out->has_zero = work.rows.zero != NULL;
  for (size_t g = 0; !out->code && g < groups; g++) {
    const size_t at = g * 236;
    if (work.rows.scale) memcpy(out->scale + at, work.rows.scale + at, count * sizeof(float));
    if (work.rows.factor) memcpy(out->factor + at, work.rows.factor + at, count * sizeof(double));
    if (work.rows.zero) memcpy(out->zero + at, work.rows.zero + at, count * sizeof(int32_t));
  }
  npumm_rows_close(&work.rows);
}

static void fill(void) {
  uint32_t state = 1;
  for (int m = 0; m < ROWS; m++) {
    for (int k = 0; k < K; k++) {
      state = state * 1664525u + 1013904223u;
      a[m][k] = (float)(int32_t)state / 2147483648.0f * (m % 7 == 3 ? 1e6f : 1.0f);
    }
  }
}

static outcome alone, shared;

static void threads_make_the_same(npumm_crew *crew) {
  const npumm_row_scaling scalings[] = {NPUMM_ROWS_ABSMAX,        NPUMM_ROWS_MINMAX,        NPUMM_ROWS_STATIC,
                                        NPUMM_ROWS_ABSMAX_GROUPS, NPUMM_ROWS_MINMAX_GROUPS, NPUMM_ROWS_POWER_OF_TWO,
                                        NPUMM_ROWS_UNSCALED};
  for (size_t i = 0; i < sizeof scalings / sizeof scalings[0]; i++) {
    const int floats = scalings[i] == NPUMM_ROWS_POWER_OF_TWO || scalings[i] == NPUMM_ROWS_UNSCALED;
    const npumm_activation how = {.conversion = floats ? NPUMM_F32_TO_F16 : NPUMM_F32_TO_I8,
                                  .scaling = scalings[i],
                                  .levels = 127,
                                  .clip = 1.0f,
                                  .static_scale = 0.01f,
                                  .static_zero = scalings[i] == NPUMM_ROWS_STATIC ? 3 : 0};
    for (int32_t m = 0; m < 2; m++) {
      for (int32_t buffers = 1; buffers <= SLICES; buffers++) {
        pack(NULL, &how, m, buffers, &alone);
        pack(crew, &how, m, buffers, &shared);
        CHECK(alone.code == 0, "%d", alone.code);
        CHECK(memcmp(&alone, &shared, sizeof alone) == 0, "scaling %d, range %d, %d buffers", (int)scalings[i], m,
              buffers);
      }
    }
  }
}

static void int8_is_right(npumm_crew *crew) {
  const npumm_activation how = {
      .conversion = NPUMM_F32_TO_I8, .scaling = NPUMM_ROWS_ABSMAX, .levels = 127, .clip = 1.0f};
  pack(crew, &how, 1, SLICES, &shared);
  int wrong = 0;
  for (int m = 0; m < 236; m++) {
    const float *row = a[64 + m];
    float largest = 0;
    for (int k = 0; k < K; k++) largest = fmaxf(largest, fabsf(row[k]));
    const float scale = largest / 127;
    wrong += shared.scale[m] != scale || shared.factor[m] != (double)scale;
    int32_t sums[SLICES] = {0};
    for (int k = 0; k < K; k++) {
      const int s = k >= CUT, column = k - s * CUT;
      const int8_t got = (int8_t)shared.images[s][column / GROUP * PADDED_ROWS * GROUP + m * GROUP + column % GROUP];
      wrong += got != (int8_t)rintf(row[k] / scale);
      sums[s] += got;
    }
    wrong += sums[0] != shared.sums[m] || sums[1] != shared.sums[236 + m];
  }
  CHECK(wrong == 0, "%d", wrong);
}

/* The first row that does not fit is told, whichever thread finds one first. */
static void bad_rows_are_told(npumm_crew *crew) {
  for (int is_static = 0; is_static < 2; is_static++) {
    const npumm_activation how = {.conversion = NPUMM_F32_TO_I8,
                                  .scaling = is_static ? NPUMM_ROWS_STATIC : NPUMM_ROWS_ABSMAX,
                                  .levels = 127,
                                  .clip = 1.0f,
                                  .static_scale = 0.01f};
    a[290][5] = a[111][7] = a[180][1000] = NAN;
    for (int i = 0; i < 20; i++) {
      pack(crew, &how, 1, SLICES, &shared);
      CHECK(shared.code == NPUMM_NOT_FINITE && shared.report.code == NPUMM_NOT_FINITE, "%d", shared.code);
      CHECK(shared.report.row == 111 && shared.report.step == NPUMM_STEP_PACK_A, "row %d", (int)shared.report.row);
    }
    fill();
  }
}

int main(void) {
  npumm_crew *crew = npumm_crew_create();
  fill();
  threads_make_the_same(crew);
  int8_is_right(crew);
  bad_rows_are_told(crew);
  npumm_crew_destroy(crew);
  printf("test_images: %d passed, %d failed\n", passed, failed);
  return failed > 0;
}
