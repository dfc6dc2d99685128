/*
 * Where the simulator reads and writes elements (rk3588, 2.3.2): products in every layout, numbers at the edges, the helper
 * that packs B. Layout formulas, conversions and products are written here anew.
 */
#define _GNU_SOURCE
#include "check.h"
#include "rk3588_layouts.h"

static void test_products(void) {
  static const int shapes[][3] = {{1, 32, 64},  {1, 576, 192}, {2, 64, 128},  {3, 96, 64},   {4, 1344, 64},
                                  {5, 64, 192}, {7, 672, 64},  {8, 640, 128}, {33, 352, 64}, {300, 96, 64}};
  static const int limits[] = {32, 127, 7};
  for (size_t t = 0; t < 3; t++) {
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
      for (int b_layout = 0; b_layout <= 2; b_layout++) {
        for (int ac_layout = 0; ac_layout <= 1; ac_layout++) {
          const int *x = shapes[s];
          matmul mm;
          bool open = open_matmul(&mm, make_info(layouts[t].type, x[0], x[1], x[2], b_layout, ac_layout));
          CHECK(open, "type %d, %d %d %d: not created", layouts[t].type, x[0], x[1], x[2]);
          if (!open) continue;
          size_t wrong = wrong_products(&mm, &layouts[t], limits[t]);
          CHECK(wrong == 0, "type %d, %d %d %d, layouts %d %d: %zu wrong", layouts[t].type, x[0], x[1], x[2], b_layout,
                ac_layout, wrong);
          close_matmul(&mm);
        }
      }
    }
  }
}

/* K above 8192: B in three segments, the last one shorter. */
static void test_segments(void) {
  static const int limits[] = {8, 127, 7};
  for (size_t t = 0; t < 3; t++) {
    for (int b_layout = 0; b_layout <= 2; b_layout++) {
      for (int M = 1; M <= 5; M += 4) {
        matmul mm;
        CHECK(open_matmul(&mm, make_info(layouts[t].type, M, 8192 + 8192 + 96, 128, b_layout, 0)), "not created");
        size_t wrong = wrong_products(&mm, &layouts[t], limits[t]);
        CHECK(wrong == 0, "segments: type %d, B layout %d, M %d: %zu wrong", layouts[t].type, b_layout, M, wrong);
        close_matmul(&mm);
      }
    }
  }
}

/* Rows in chunks: with K this large the unpacked A of all rows is larger than a run keeps. */
static void test_many_rows(void) {
  matmul mm;
  CHECK(open_matmul(&mm, make_info(RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32, 13, 1 << 20, 16, 1, 0)), "not created");
  CHECK(wrong_products(&mm, &layouts[0], 1) == 0, "13 rows of 2^20");
  close_matmul(&mm);
}

/* ---- numbers at the edges ---------------------------------------------------------------------------------------- */

/* C of 1 x 32 times 32 x n_align, A all a, B all b as raw bytes or halves. */
static void constant_run(size_t which, int M, int K, unsigned a, unsigned b, uint8_t *c, size_t c_bytes) {
  static const int n_align[] = {16, 32, 64};
  matmul mm;
  CHECK(open_matmul(&mm, make_info(layouts[which].type, M, K, n_align[which], 1, 0)), "not created");
  for (uint32_t i = 0; i < mm.io.A.size; i++) data_of(mm.a)[i] = (uint8_t)(which == 0 && i % 2 ? a >> 8 : a);
  for (uint32_t i = 0; i < mm.io.B.size; i++) data_of(mm.b)[i] = (uint8_t)(which == 0 && i % 2 ? b >> 8 : b);
  bind_all(&mm);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  memcpy(c, data_of(mm.c), c_bytes);
  close_matmul(&mm);
}

static void test_number_edges(void) {
  for (int M = 1; M <= 4; M += 3) { /* both loops: rows one by one and in fours */
    int16_t narrow;
    constant_run(2, M, 512, 0x88, 0x88, (uint8_t *)&narrow, 2);
    CHECK_IS(narrow, 32767); /* (-8)(-8) 512 is 32768: saturated */
    constant_run(2, M, 1024, 0x77, 0x88, (uint8_t *)&narrow, 2);
    CHECK_IS(narrow, -32768);
    constant_run(2, M, 64, 0x88, 0x88, (uint8_t *)&narrow, 2);
    CHECK_IS(narrow, 4096);
    int32_t wide;
    constant_run(1, M, 1 << 17, 0x80, 0x80, (uint8_t *)&wide, 4);
    CHECK_IS(wide, INT32_MIN); /* 2^14 times 2^17 wraps */
    float value;
    constant_run(0, M, 32, 0x7c00, 0x3c00, (uint8_t *)&value, 4);
    CHECK(isinf(value) && value > 0, "infinity times 1 is %g", (double)value);
    constant_run(0, M, 32, 0x7c00, 0x0000, (uint8_t *)&value, 4);
    CHECK(isnan(value), "infinity times 0 is %g", (double)value);
    constant_run(0, M, 32, 0x0001, 0x0001, (uint8_t *)&value, 4);
    CHECK((double)value == ldexp(1, -43), "smallest subnormals: %g", (double)value); /* 32 times 2^-48 */
    constant_run(0, M, 32, 0x7bff, 0x7bff, (uint8_t *)&value, 4);
    double largest = 32 * 65504.0 * 65504.0; /* more bits than float32 has: each order rounds in its own way */
    CHECK(fabs((double)value / largest - 1) < 1e-6, "largest halves: %g", (double)value);
  }
  int16_t narrow;
  logged("");
  setenv("RKNN_LOG_LEVEL", "1", 1);
  constant_run(2, 2, 512, 0x88, 0x88, (uint8_t *)&narrow, 2);
  unsetenv("RKNN_LOG_LEVEL");
  CHECK(logged("rknn_matmul_run, simulator: 128 int16 results were saturated"), "log");
  constant_run(2, 2, 512, 0x88, 0x88, (uint8_t *)&narrow, 2);
  CHECK(!logged("rknn_matmul_run"), "a warning without RKNN_LOG_LEVEL");
  CHECK(half_value(exact_half(-21)) == -2.625, "the test's own halves");
}

/* ---- the helper that packs B ------------------------------------------------------------------------------------- */

static void test_helper(void) {
  static const int depths[] = {64, 8192 + 64};
  for (size_t t = 0; t < 3; t++) {
    for (size_t d = 0; d < 2; d++) {
      const layout *l = &layouts[t];
      int K = depths[d], N = 128;
      size_t bytes = (size_t)K * (size_t)N * (size_t)l->a_bits / 8, wrong = 0;
      uint8_t *in = need(bytes), *out = need(bytes), *expected = need(bytes);
      for (size_t k = 0; k < (size_t)K; k++) {
        for (size_t n = 0; n < (size_t)N; n++) {
          int value = random_between(-7, 7);
          put(in, l->a_bits, k * (size_t)N + n, value);
          put(expected, l->a_bits, b_native_index((size_t)K, (size_t)N, l, k, n), value);
        }
      }
      rknn_matmul_info info = make_info(l->type, 1, K, N, 1, 0);
      CHECK_IS(rknn_B_normal_layout_to_native_layout(in, out, K, N, &info), 0);
      for (size_t i = 0; i < bytes; i++) wrong += out[i] != expected[i];
      CHECK(wrong == 0, "helper, type %d, K %d: %zu bytes wrong", l->type, K, wrong);
      CHECK_IS(rknn_B_normal_layout_to_native_layout(NULL, out, K, N, &info), -5);
      CHECK_IS(rknn_B_normal_layout_to_native_layout(in, NULL, K, N, &info), -5);
      CHECK_IS(rknn_B_normal_layout_to_native_layout(in, out, K, N, NULL), -5);
      CHECK_IS(rknn_B_normal_layout_to_native_layout(in, out, 33, N, &info), -5);
      CHECK_IS(rknn_B_normal_layout_to_native_layout(in, out, K, -64, &info), -5);
      info.type = 5;
      CHECK_IS(rknn_B_normal_layout_to_native_layout(in, out, K, N, &info), -5);
      free(in);
      free(out);
      free(expected);
    }
  }
}

int main(void) {
  start_log();
  test_products();
  test_segments();
  test_many_rows();
  test_number_edges();
  test_helper();
  return report("test_layouts");
}
