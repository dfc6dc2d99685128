/*
 * Contexts with several shapes (facts 6).
 */
#define _GNU_SOURCE
#include "check.h"

enum { SHAPES = 3 };

typedef struct {
  rknn_matmul_ctx ctx;
  rknn_matmul_io_attr io[SHAPES];
  rknn_tensor_mem *a, *b, *c;
} dynamic;

/* int8 to int32. A is m + 1 in row m, B is n % 5 in column n, so that C(m, n) is K (m + 1) (n % 5). */
static bool open_dynamic(dynamic *d, const rknn_matmul_shape *shapes, int b_layout) {
  /* M, K and N are not looked at. */
  rknn_matmul_info info = make_info(RKNN_INT8_MM_INT8_TO_INT32, -1, -1, -1, b_layout, 0);
  rknn_matmul_shape copy[SHAPES];
  memcpy(copy, shapes, sizeof copy);
  memset(d, 0, sizeof *d);
  if (rknn_matmul_create_dynamic_shape(&d->ctx, &info, SHAPES, copy, d->io) != 0) return false;
  uint32_t a = 0, b = 0, c = 0;
  for (int i = 0; i < SHAPES; i++) {
    if (d->io[i].A.size > a) a = d->io[i].A.size;
    if (d->io[i].B.size > b) b = d->io[i].B.size;
    if (d->io[i].C.size > c) c = d->io[i].C.size;
  }
  d->a = rknn_create_mem(d->ctx, a);
  d->b = rknn_create_mem(d->ctx, b);
  d->c = rknn_create_mem(d->ctx, c);
  return d->a && d->b && d->c;
}

static void close_dynamic(dynamic *d) {
  CHECK_IS(rknn_destroy_mem(d->ctx, d->a), 0);
  CHECK_IS(rknn_destroy_mem(d->ctx, d->b), 0);
  CHECK_IS(rknn_destroy_mem(d->ctx, d->c), 0);
  CHECK_IS(rknn_matmul_destroy(d->ctx), 0);
}

static void fill_b(dynamic *d, const rknn_matmul_shape *shape, int b_layout) {
  for (size_t k = 0; k < (size_t)shape->K; k++) {
    for (size_t n = 0; n < (size_t)shape->N; n++) {
      size_t tile = n / 32 * ((size_t)shape->K / 32) + k / 32;
      size_t index = b_layout == 0   ? k * (size_t)shape->N + n
                     : b_layout == 1 ? (tile * 32 + n % 32) * 32 + k % 32
                                     : n * (size_t)shape->K + k;
      data_of(d->b)[index] = (uint8_t)(n % 5);
    }
  }
}

static void run_shape(dynamic *d, const rknn_matmul_shape *shape, rknn_matmul_io_attr *io) {
  for (size_t m = 0; m < (size_t)shape->M; m++) {
    memset(data_of(d->a) + m * (size_t)shape->K, (int)m + 1, (size_t)shape->K);
  }
  CHECK_IS(rknn_matmul_set_io_mem(d->ctx, d->a, &io->A), 0);
  CHECK_IS(rknn_matmul_set_io_mem(d->ctx, d->c, &io->C), 0);
  CHECK_IS(rknn_matmul_run(d->ctx), 0);
  size_t wrong = 0;
  for (size_t i = 0; i < (size_t)(shape->M * shape->N); i++) {
    int32_t value;
    memcpy(&value, data_of(d->c) + 4 * i, 4);
    wrong += value != shape->K * (int)(i / (size_t)shape->N + 1) * (int)(i % (size_t)shape->N % 5);
  }
  CHECK(wrong == 0, "M %d, K %d, N %d: %zu wrong", shape->M, shape->K, shape->N, wrong);
}

/* Only M differs: B is set once. */
static void test_rows(void) {
  static const rknn_matmul_shape shapes[SHAPES] = {{1, 64, 96}, {4, 64, 96}, {17, 64, 96}};
  for (int b_layout = 0; b_layout <= 2; b_layout++) {
    dynamic d;
    CHECK(open_dynamic(&d, shapes, b_layout), "not created");
    for (int i = 0; i < SHAPES; i++) {
      CHECK_IS(d.io[i].A.dims[0], shapes[i].M);
      CHECK_IS(d.io[i].A.size, shapes[i].M * 64);
      CHECK_IS(d.io[i].C.size, shapes[i].M * 96 * 4);
    }
    fill_b(&d, &shapes[0], b_layout);
    static const int order[] = {1, 0, 2, 0};
    for (size_t i = 0; i < 4; i++) {
      rknn_matmul_shape shape = shapes[order[i]];
      CHECK_IS(rknn_matmul_set_dynamic_shape(d.ctx, &shape), 0);
      if (i == 0) CHECK_IS(rknn_matmul_set_io_mem(d.ctx, d.b, &d.io[order[i]].B), 0);
      run_shape(&d, &shape, &d.io[order[i]]);
    }
    close_dynamic(&d);
  }
}

/* With TP_NORM, K and N differ too, and B is set for each. */
static void test_all_dimensions(void) {
  static const rknn_matmul_shape shapes[SHAPES] = {{2, 64, 96}, {3, 128, 32}, {1, 8192 + 32, 64}};
  dynamic d;
  CHECK(open_dynamic(&d, shapes, 2), "not created");
  for (int round = 0; round < 2; round++) {
    for (int i = 0; i < SHAPES; i++) {
      rknn_matmul_shape shape = shapes[i];
      CHECK_IS(rknn_matmul_set_dynamic_shape(d.ctx, &shape), 0);
      CHECK_IS(rknn_matmul_set_io_mem(d.ctx, d.a, &d.io[i].A), 0);
      CHECK_IS(rknn_matmul_set_io_mem(d.ctx, d.c, &d.io[i].C), 0);
      CHECK_IS(rknn_matmul_run(d.ctx), -1); /* the B of another shape */
      fill_b(&d, &shape, 2);
      CHECK_IS(rknn_matmul_set_io_mem(d.ctx, d.b, &d.io[i].B), 0);
      run_shape(&d, &shape, &d.io[i]);
    }
  }
  close_dynamic(&d);
}

static int create_code(const rknn_matmul_shape *shapes, int count, int b_layout) {
  rknn_matmul_info info = make_info(RKNN_INT8_MM_INT8_TO_INT32, 1, 32, 32, b_layout, 0);
  rknn_matmul_shape copy[SHAPES];
  rknn_matmul_io_attr io[SHAPES];
  rknn_matmul_ctx ctx;
  memcpy(copy, shapes, (size_t)count * sizeof *copy);
  int result = rknn_matmul_create_dynamic_shape(&ctx, &info, count, copy, io);
  if (result == 0) CHECK_IS(rknn_matmul_destroy(ctx), 0);
  return result;
}

static void test_refusals(void) {
  static const rknn_matmul_shape shapes[SHAPES] = {{1, 64, 32}, {2, 64, 32}, {3, 64, 32}};
  dynamic d;
  CHECK(open_dynamic(&d, shapes, 1), "not created");
  CHECK_IS(rknn_matmul_set_io_mem(d.ctx, d.a, &d.io[0].A), -5);
  CHECK(logged("rknn_matmul_set_io_mem, simulator: set_dynamic_shape must be called before"), "log");
  CHECK_IS(rknn_matmul_run(d.ctx), -1);
  rknn_matmul_shape shape = {4, 64, 32}, negative = {-1, 64, 32};
  CHECK_IS(rknn_matmul_set_dynamic_shape(d.ctx, &shape), -5);
  CHECK(logged("rknn_matmul_set_dynamic_shape, simulator: M 4, K 64, N 32 is none of the shapes"), "log");
  CHECK_IS(rknn_matmul_set_dynamic_shape(d.ctx, &negative), -5);
  CHECK_IS(rknn_matmul_set_dynamic_shape(d.ctx, NULL), -5);
  shape.M = 2;
  CHECK_IS(rknn_matmul_set_dynamic_shape(d.ctx, &shape), 0);
  CHECK_IS(rknn_matmul_set_io_mem(d.ctx, d.a, &d.io[1].A), 0);
  CHECK_IS(rknn_matmul_set_io_mem(d.ctx, d.b, &d.io[1].B), 0);
  CHECK_IS(rknn_matmul_set_io_mem(d.ctx, d.c, &d.io[1].C), 0);
  CHECK_IS(rknn_matmul_run(d.ctx), 0);
  shape.M = 1;
  CHECK_IS(rknn_matmul_set_dynamic_shape(d.ctx, &shape), 0);
  CHECK_IS(rknn_matmul_run(d.ctx), -1); /* A and C must be set again */
  close_dynamic(&d);

  static const rknn_matmul_shape other_k[] = {{1, 64, 32}, {1, 96, 32}}, other_n[] = {{1, 64, 32}, {1, 64, 64}};
  static const rknn_matmul_shape misaligned[] = {{1, 64, 32}, {1, 65, 32}}, empty[] = {{0, 64, 32}};
  CHECK_IS(create_code(other_k, 2, 0), -5);
  CHECK_IS(create_code(other_k, 2, 1), -5);
  CHECK_IS(create_code(other_k, 2, 2), 0);
  CHECK_IS(create_code(other_n, 2, 1), -5);
  CHECK_IS(create_code(other_n, 2, 2), 0);
  CHECK_IS(create_code(misaligned, 2, 2), -5);
  CHECK(logged("rknn_matmul_create_dynamic_shape, matmul K must be align with 32!"), "log");
  CHECK_IS(create_code(empty, 1, 0), -5);
  CHECK_IS(create_code(shapes, 0, 0), -5);

  rknn_matmul_info info = make_info(RKNN_INT8_MM_INT8_TO_INT32, 1, 32, 32, 0, 0);
  rknn_matmul_io_attr io;
  rknn_matmul_ctx ctx;
  shape = shapes[0];
  CHECK_IS(rknn_matmul_create_dynamic_shape(&ctx, &info, 513, &shape, &io), -5);
  CHECK_IS(rknn_matmul_create_dynamic_shape(&ctx, NULL, 1, &shape, &io), -5);
  CHECK_IS(rknn_matmul_create_dynamic_shape(&ctx, &info, 1, NULL, &io), -5);
  CHECK_IS(rknn_matmul_create_dynamic_shape(&ctx, &info, 1, &shape, NULL), -5);
  CHECK_IS(rknn_matmul_create_dynamic_shape(NULL, &info, 1, &shape, &io), -7);
}

/* Scales per channel: as many as the largest N. */
static void test_scales(void) {
  rknn_matmul_shape shapes[2] = {{1, 64, 32}, {1, 64, 64}};
  rknn_matmul_info info = make_info(RKNN_INT8_MM_INT8_TO_INT8, 1, 32, 32, 2, 0);
  info.B_quant_type = RKNN_QUANT_TYPE_PER_CHANNEL_SYM;
  rknn_matmul_io_attr io[2];
  rknn_matmul_ctx ctx;
  CHECK_IS(rknn_matmul_create_dynamic_shape(&ctx, &info, 2, shapes, io), 0);
  float scales[64];
  for (size_t i = 0; i < 64; i++) scales[i] = 1;
  rknn_quant_params params = {.name = "B", .scale = scales, .scale_len = 32};
  CHECK_IS(rknn_matmul_set_quant_params(ctx, &params), -5);
  params.scale_len = 64;
  CHECK_IS(rknn_matmul_set_quant_params(ctx, &params), 0);
  CHECK_IS(rknn_matmul_destroy(ctx), 0);
}

int main(void) {
  start_log();
  test_rows();
  test_all_dimensions();
  test_refusals();
  test_scales();
  return report("test_dynamic");
}
