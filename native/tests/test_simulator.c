/*
 * The simulator of one chip (rk3588, 2.3.2) through its public functions only: products, attributes, wrong calls,
 * memory, threads. Layout formulas, conversions and products are written here anew.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "check.h"

/* ---- layouts ----------------------------------------------------------------------------------------------------- */

/* Elements per group or tile on rk3588 (facts 4.2). */
typedef struct {
  rknn_matmul_type type;
  int a_bits, c_bytes;
  size_t a_group, tile_n, tile_k, c_group;
} layout;

static const layout layouts[] = {
    {RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32, 16, 4, 8, 16, 32, 4},
    {RKNN_INT8_MM_INT8_TO_INT32, 8, 4, 16, 32, 32, 4},
    {RKNN_INT4_MM_INT4_TO_INT16, 4, 2, 32, 64, 32, 8},
};

static size_t a_index(const rknn_matmul_info *info, const layout *l, size_t m, size_t k) {
  if (info->AC_layout == RKNN_MM_LAYOUT_NORM) return m * (size_t)info->K + k;
  return (k / l->a_group * (size_t)info->M + m) * l->a_group + k % l->a_group;
}

static size_t c_index(const rknn_matmul_info *info, const layout *l, size_t m, size_t n) {
  if (info->AC_layout == RKNN_MM_LAYOUT_NORM) return m * (size_t)info->N + n;
  return (n / l->c_group * (size_t)info->M + m) * l->c_group + n % l->c_group;
}

static size_t b_native_index(size_t K, size_t N, const layout *l, size_t k, size_t n) {
  size_t base = k / 8192 * 8192;
  size_t depth = K - base < 8192 ? K - base : 8192;
  size_t in_segment = k - base;
  size_t tile = n / l->tile_n * (depth / l->tile_k) + in_segment / l->tile_k;
  return base * N + (tile * l->tile_n + n % l->tile_n) * l->tile_k + in_segment % l->tile_k;
}

static size_t b_index(const rknn_matmul_info *info, const layout *l, size_t k, size_t n) {
  if (info->B_layout == RKNN_MM_LAYOUT_NORM) return k * (size_t)info->N + n;
  if (info->B_layout == RKNN_MM_LAYOUT_TP_NORM) return n * (size_t)info->K + k;
  return b_native_index((size_t)info->K, (size_t)info->N, l, k, n);
}

static void put(uint8_t *buffer, int bits, size_t index, int value) {
  if (bits == 16) {
    uint16_t half = exact_half(value);
    memcpy(buffer + 2 * index, &half, 2);
  } else if (bits == 8) {
    buffer[index] = (uint8_t)value;
  } else if (index % 2 == 0) {
    buffer[index / 2] = (uint8_t)((buffer[index / 2] & 0xf0) | (value & 15));
  } else {
    buffer[index / 2] = (uint8_t)((buffer[index / 2] & 0x0f) | (value & 15) << 4);
  }
}

/* C as a number; for halves in units of 1/64, the square of exact_half's. */
static double get_c(const uint8_t *buffer, const layout *l, size_t index) {
  if (l->c_bytes == 2) {
    int16_t narrow;
    memcpy(&narrow, buffer + 2 * index, 2);
    return narrow;
  }
  if (l->a_bits == 16) {
    float value;
    memcpy(&value, buffer + 4 * index, 4);
    return (double)value * 64;
  }
  int32_t wide;
  memcpy(&wide, buffer + 4 * index, 4);
  return wide;
}

/* Fills A and B with random numbers of at most limit, runs, and compares with a triple loop. Returns wrong elements. */
static size_t wrong_products(matmul *mm, const layout *l, int limit) {
  size_t M = (size_t)mm->info.M, K = (size_t)mm->info.K, N = (size_t)mm->info.N, wrong = 0;
  int *a = need(M * K * sizeof *a), *b = need(N * K * sizeof *b); /* b as [N, K] */
  for (size_t m = 0; m < M; m++) {
    for (size_t k = 0; k < K; k++) {
      a[m * K + k] = random_between(-limit, limit);
      put(data_of(mm->a), l->a_bits, a_index(&mm->info, l, m, k), a[m * K + k]);
    }
  }
  for (size_t n = 0; n < N; n++) {
    for (size_t k = 0; k < K; k++) {
      b[n * K + k] = random_between(-limit, limit);
      put(data_of(mm->b), l->a_bits, b_index(&mm->info, l, k, n), b[n * K + k]);
    }
  }
  memset(data_of(mm->c), 0xee, mm->io.C.size);
  bind_all(mm);
  CHECK_IS(rknn_matmul_run(mm->ctx), 0);
  for (size_t m = 0; m < M; m++) {
    for (size_t n = 0; n < N; n++) {
      int64_t sum = 0;
      for (size_t k = 0; k < K; k++) sum += a[m * K + k] * b[n * K + k];
      if (l->c_bytes == 2) sum = sum > 32767 ? 32767 : sum < -32768 ? -32768 : sum;
      wrong += get_c(data_of(mm->c), l, c_index(&mm->info, l, m, n)) != (double)sum;
    }
  }
  free(a);
  free(b);
  return wrong;
}

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

/* ---- attributes and return codes of create ----------------------------------------------------------------------- */

static int create_code(rknn_matmul_info info) {
  rknn_matmul_ctx ctx = 12345;
  rknn_matmul_io_attr io;
  memset(&io, 0x5a, sizeof io);
  int result = rknn_matmul_create(&ctx, &info, &io);
  if (result == RKNN_SUCC) {
    CHECK(ctx > UINT32_MAX, "a handle is a large number");
    CHECK_IS(rknn_matmul_destroy(ctx), 0);
  } else {
    const unsigned char *bytes = (const unsigned char *)&io;
    bool untouched = ctx == 12345;
    for (size_t i = 0; i < sizeof io; i++) untouched = untouched && bytes[i] == 0x5a;
    CHECK(untouched, "a failed create wrote to its results");
  }
  return result;
}

static void check_attr(const rknn_matmul_tensor_attr *attr, const char *name, rknn_tensor_type type, uint32_t size,
                       uint32_t n_dims, const uint32_t *dims) {
  CHECK(strcmp(attr->name, name) == 0, "attr %s is named %s", name, attr->name);
  CHECK_IS(attr->type, type);
  CHECK_IS(attr->size, size);
  CHECK_IS(attr->n_dims, n_dims);
  for (uint32_t i = 0; i < n_dims; i++) CHECK_IS(attr->dims[i], dims[i]);
}

static void test_attributes(void) {
  matmul mm;
  CHECK(open_matmul(&mm, make_info(1, 4, 64, 48, 1, 1)), "not created");
  check_attr(&mm.io.A, "A", RKNN_TENSOR_FLOAT16, 512, 3, (uint32_t[]){8, 4, 8});
  check_attr(&mm.io.B, "B", RKNN_TENSOR_FLOAT16, 6144, 4, (uint32_t[]){3, 2, 16, 32});
  check_attr(&mm.io.C, "C", RKNN_TENSOR_FLOAT32, 768, 3, (uint32_t[]){12, 4, 4});
  close_matmul(&mm);
  CHECK(open_matmul(&mm, make_info(10, 4, 64, 128, 1, 1)), "not created");
  check_attr(&mm.io.A, "A", RKNN_TENSOR_INT4, 128, 3, (uint32_t[]){2, 4, 32});
  check_attr(&mm.io.B, "B", RKNN_TENSOR_INT4, 4096, 4, (uint32_t[]){2, 2, 64, 32});
  check_attr(&mm.io.C, "C", RKNN_TENSOR_INT16, 1024, 3, (uint32_t[]){16, 4, 8});
  close_matmul(&mm);
  CHECK(open_matmul(&mm, make_info(2, 4, 64, 32, 0, 0)), "not created");
  check_attr(&mm.io.A, "A", RKNN_TENSOR_INT8, 256, 2, (uint32_t[]){4, 64});
  check_attr(&mm.io.B, "B", RKNN_TENSOR_INT8, 2048, 2, (uint32_t[]){64, 32});
  check_attr(&mm.io.C, "C", RKNN_TENSOR_INT32, 512, 2, (uint32_t[]){4, 32});
  close_matmul(&mm);
  CHECK(open_matmul(&mm, make_info(2, 4, 64, 32, 2, 0)), "not created");
  check_attr(&mm.io.B, "B", RKNN_TENSOR_INT8, 2048, 2, (uint32_t[]){32, 64});
  close_matmul(&mm);
  CHECK(open_matmul(&mm, make_info(2, 1, 16384 + 32, 32, 1, 0)), "not created");
  check_attr(&mm.io.B, "B", RKNN_TENSOR_INT8, 16416 * 32, 4, (uint32_t[]){1, 513, 32, 32});
  close_matmul(&mm);
}

static void test_create_codes(void) {
  rknn_matmul_info info = make_info(2, 4, 64, 32, 0, 0);
  rknn_matmul_io_attr io;
  rknn_matmul_ctx ctx = 0;
  CHECK_IS(rknn_matmul_create(NULL, &info, &io), -7);
  CHECK_IS(rknn_matmul_create(&ctx, NULL, &io), -5);
  CHECK_IS(rknn_matmul_create(&ctx, &info, NULL), -5);

  CHECK_IS(create_code(make_info(99, 4, 33, 33, 0, 0)), -5);
  CHECK(logged("rknn_matmul_create, meet unsupported matmul dtype : UNKNOW"), "log");
  CHECK_IS(create_code(make_info(-1, 4, 32, 32, 0, 0)), -5);
  CHECK_IS(create_code(make_info(7, 4, 32, 32, 0, 0)), -5);
  CHECK(logged("rknn_matmul_create, unsupported matmul dtype in this platform : RKNN_FLOAT16_MM_INT4_TO_FLOAT32"),
        "log");
  CHECK_IS(create_code(make_info(2, 4, (1 << 20) + 1, 33, 0, 0)), -5);
  CHECK(logged("rknn_matmul_create, k > limit: 1048577"), "log");
  CHECK_IS(create_code(make_info(2, 4, 33, 33, 0, 0)), -5);
  CHECK(logged("rknn_matmul_create, matmul K must be align with 32!"), "log");
  CHECK_IS(create_code(make_info(1, 4, 32, 8, 0, 0)), -5);
  CHECK(logged("rknn_matmul_create, matmul N must be align with 16!"), "log");
  CHECK_IS(create_code(make_info(2, 4, 32, 16, 0, 0)), -5);
  CHECK(logged("rknn_matmul_create, matmul N must be align with 32!"), "log");
  CHECK_IS(create_code(make_info(10, 4, 32, 32, 0, 0)), -5);
  CHECK(logged("rknn_matmul_create, matmul N must be align with 64!"), "log");

  CHECK_IS(create_code(make_info(2, 0, 32, 32, 0, 0)), -5);
  CHECK_IS(create_code(make_info(2, 4, -32, 32, 0, 0)), -5);
  CHECK_IS(create_code(make_info(2, 4, 32, INT32_MIN, 0, 0)), -5);
  CHECK_IS(create_code(make_info(2, 4, 32, 32, 3, 0)), -5);
  CHECK_IS(create_code(make_info(2, 4, 32, 32, -1, 0)), -5);
  CHECK_IS(create_code(make_info(2, 4, 32, 32, 0, 2)), -5);
  CHECK_IS(create_code(make_info(2, INT32_MAX, 32, 32, 0, 0)), -5);         /* 64 GiB of A */
  CHECK_IS(create_code(make_info(2, 1, 1 << 20, 1 << 30, 0, 0)), -5);       /* B */
  CHECK_IS(create_code(make_info(2, 1 << 16, 32, 1 << 16, 0, 0)), -5);      /* C */
  CHECK_IS(create_code(make_info(10, 1024, 256, 64, 1, 1)), 0);             /* M K = 262144 */
  CHECK_IS(create_code(make_info(10, 1025, 256, 64, 1, 1)), -1);
  CHECK(logged("rknn_matmul_create, simulator: RKNN_INT4_MM_INT4_TO_INT16 with native A and C"), "log");
  CHECK_IS(create_code(make_info(10, 1025, 256, 64, 1, 0)), 0);
  CHECK_IS(create_code(make_info(1, 1, 2048, 152064, 1, 0)), 0); /* no maximum of N */

  info.B_quant_type = 6;
  CHECK_IS(create_code(info), -5);
  info.B_quant_type = 0;
  info.AC_quant_type = RKNN_QUANT_TYPE_PER_CHANNEL_SYM;
  CHECK_IS(create_code(info), -5);
  info.AC_quant_type = 0;
  info.iommu_domain_id = 16;
  CHECK_IS(create_code(info), -5);
  info.iommu_domain_id = -1;
  CHECK_IS(create_code(info), -5);
  info.iommu_domain_id = 15;
  memset(info.reserved, 1, sizeof info.reserved);
  CHECK_IS(create_code(info), 0);

  /* A success writes the documented fields and leaves the rest of the caller's struct. */
  memset(&io, 0x5a, sizeof io);
  CHECK_IS(rknn_matmul_create(&ctx, &info, &io), 0);
  CHECK(io.A.name[1] == 0 && io.A.name[2] == 0x5a && io.A.dims[2] == 0x5a5a5a5a, "create wrote too much");
  CHECK_IS(rknn_matmul_destroy(ctx), 0);
}

static void test_context_limit(void) {
  rknn_matmul_ctx all[151];
  rknn_matmul_info info = make_info(2, 1, 32, 32, 0, 0);
  rknn_matmul_io_attr io;
  for (int i = 0; i < 150; i++) CHECK_IS(rknn_matmul_create(&all[i], &info, &io), 0);
  CHECK_IS(rknn_matmul_create(&all[150], &info, &io), -1);
  for (int i = 0; i < 150; i++) CHECK_IS(rknn_matmul_destroy(all[i]), 0);
  CHECK_IS(rknn_matmul_create(&all[150], &info, &io), 0);
  for (int i = 0; i < 150; i++) CHECK_IS(rknn_matmul_run(all[i]), -7); /* their slots are in use again */
  CHECK_IS(rknn_matmul_destroy(all[150]), 0);
}

/* ---- wrong use of contexts --------------------------------------------------------------------------------------- */

static void test_handles(void) {
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 1, 32, 32, 1, 0)), "not created");
  rknn_matmul_shape shape = {1, 32, 32};
  rknn_quant_params params = {0};
  float scale;
  rknn_sdk_version version;
  rknn_matmul_ctx stale;
  rknn_matmul_io_attr io;
  CHECK_IS(rknn_matmul_create(&stale, &mm.info, &io), 0);
  CHECK_IS(rknn_matmul_destroy(stale), 0);
  const rknn_matmul_ctx bad[] = {0, 1, stale, mm.ctx + 1, mm.ctx ^ (1ull << 63), UINT64_MAX, (uintptr_t)&mm};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    CHECK_IS(rknn_matmul_destroy(bad[i]), -7);
    CHECK_IS(rknn_matmul_run(bad[i]), -7);
    CHECK_IS(rknn_matmul_set_io_mem(bad[i], mm.a, &mm.io.A), -7);
    CHECK_IS(rknn_matmul_set_core_mask(bad[i], RKNN_NPU_CORE_0), -7);
    CHECK_IS(rknn_matmul_set_quant_params(bad[i], &params), -7);
    CHECK_IS(rknn_matmul_get_quant_params(bad[i], &params, &scale), -7);
    CHECK_IS(rknn_matmul_set_dynamic_shape(bad[i], &shape), -7);
    CHECK_IS(rknn_query(bad[i], RKNN_QUERY_SDK_VERSION, &version, sizeof version), -7);
    if (bad[i] == 0) continue; /* memories may be had without a context */
    CHECK(!rknn_create_mem(bad[i], 64), "memory from handle %llx", (unsigned long long)bad[i]);
    CHECK(!rknn_create_mem_from_fd(bad[i], mm.a->fd, mm.a->virt_addr, 16, 0), "slice from a wrong handle");
    CHECK_IS(rknn_mem_sync(bad[i], mm.a, RKNN_MEMORY_SYNC_TO_DEVICE), -7);
    CHECK_IS(rknn_destroy_mem(bad[i], mm.a), -5);
  }
  CHECK_IS(rknn_matmul_set_quant_params(mm.ctx, NULL), -5);
  CHECK_IS(rknn_matmul_set_dynamic_shape(mm.ctx, &shape), -5);
  CHECK_IS(rknn_matmul_create_dynamic_shape(NULL, &mm.info, 1, &shape, &io), -7);
  CHECK_IS(rknn_matmul_create_dynamic_shape(&stale, &mm.info, 0, &shape, &io), -5);
  close_matmul(&mm);
}

static void test_core_masks(void) {
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 1, 32, 32, 1, 0)), "not created");
  static const int good[] = {0, 1, 2, 4}, bad[] = {3, 5, 6, 7, 8, -1, 100, 0xffff};
  for (size_t i = 0; i < 4; i++) CHECK_IS(rknn_matmul_set_core_mask(mm.ctx, (rknn_core_mask)good[i]), 0);
  for (size_t i = 0; i < 8; i++) CHECK_IS(rknn_matmul_set_core_mask(mm.ctx, (rknn_core_mask)bad[i]), -1);
  CHECK(logged("Not support core mask: 100, fallback to single core auto mode"), "log");
  rknn_matmul_set_core_mask(mm.ctx, RKNN_NPU_CORE_0_1);
  CHECK(logged("rknn_set_core_mask: failed to set core mask: 3"), "log");
  CHECK(wrong_products(&mm, &layouts[1], 127) == 0, "run after a refused mask");
  close_matmul(&mm);
}

static void test_queries(void) {
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 4, 64, 32, 0, 0)), "not created");
  rknn_sdk_version version;
  rknn_mem_size memory;
  rknn_input_output_num number;
  rknn_perf_run perf = {-1};
  CHECK_IS(rknn_query(mm.ctx, RKNN_QUERY_SDK_VERSION, &version, sizeof version), 0);
  CHECK(strncmp(version.api_version, "2.3.2 (", 7) == 0, "api %s", version.api_version);
  CHECK(strcmp(version.drv_version, "0.9.8") == 0, "driver %s", version.drv_version);
  CHECK_IS(rknn_query(mm.ctx, RKNN_QUERY_SDK_VERSION, &version, 511), -5);
  CHECK_IS(rknn_query(mm.ctx, RKNN_QUERY_SDK_VERSION, NULL, sizeof version), -5);
  CHECK_IS(rknn_query(mm.ctx, RKNN_QUERY_IN_OUT_NUM, &number, sizeof number), 0);
  CHECK(number.n_input == 1 && number.n_output == 1, "inputs and outputs");
  CHECK_IS(rknn_query(mm.ctx, RKNN_QUERY_PERF_RUN, &perf, sizeof perf), 0);
  CHECK_IS(perf.run_duration, 0);
  CHECK_IS(wrong_products(&mm, &layouts[1], 127), 0);
  CHECK_IS(rknn_query(mm.ctx, RKNN_QUERY_PERF_RUN, &perf, sizeof perf), 0);
  CHECK(perf.run_duration >= 0 && perf.run_duration < 10000000, "duration");
  CHECK_IS(rknn_query(mm.ctx, RKNN_QUERY_MEM_SIZE, &memory, sizeof memory), 0);
  CHECK_IS(memory.total_dma_allocated_size, 4 * 4096); /* A, B, C and the hidden copy of B, in pages */
  CHECK_IS(rknn_query(mm.ctx, RKNN_QUERY_PERF_DETAIL, &perf, sizeof perf), -5);
  CHECK_IS(rknn_query(mm.ctx, (rknn_query_cmd)77, &perf, sizeof perf), -5);
  close_matmul(&mm);
  int cores = 0;
  CHECK(strcmp(npumm_sim_describe(&cores), "rk3588") == 0 && cores == 3, "describe");
  CHECK(npumm_sim_describe(NULL) != NULL, "describe without cores");
}

/* ---- set_io_mem and run ------------------------------------------------------------------------------------------ */

static const char submit_line[] =
    "failed to submit!, op id: 0, op name: MatMul, flags: 0x5, task start: 0, task number: 1, run task counter: 0, "
    "int status: 0, please try updating to the latest version of the toolkit2 and runtime";

static void test_binding_codes(void) {
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 2, 64, 32, 1, 0)), "not created");
  CHECK_IS(rknn_matmul_run(mm.ctx), -1);
  CHECK(logged(submit_line), "log");
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, NULL, &mm.io.A), -5);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, NULL), -5);
  rknn_tensor_mem copy = *mm.a;
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, &copy, &mm.io.A), -5);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, (rknn_tensor_mem *)(uintptr_t)8, &mm.io.A), -5);

  /* A name that is not exactly A, B or C binds nothing. */
  rknn_matmul_tensor_attr attr = mm.io.A;
  static const char *const names[] = {"", "a", "D", "AB", "A "};
  for (size_t i = 0; i < 5; i++) {
    snprintf(attr.name, sizeof attr.name, "%s", names[i]);
    CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &attr), 0);
  }
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.b, &mm.io.B), 0);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.c, &mm.io.C), 0);
  CHECK_IS(rknn_matmul_run(mm.ctx), -1);
  attr = mm.io.A;
  attr.size = 1; /* not looked at */
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &attr), 0);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);

  /* Fields of the struct that lead out of the memory. */
  rknn_tensor_mem saved = *mm.a;
  mm.a->virt_addr = NULL;
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &mm.io.A), -4);
  mm.a->virt_addr = (char *)saved.virt_addr + 4096;
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &mm.io.A), -5);
  CHECK(logged("rknn_matmul_set_io_mem, simulator: virt_addr, offset 0 and size 128 reach outside"), "log");
  mm.a->virt_addr = (char *)saved.virt_addr - 1;
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &mm.io.A), -5);
  mm.a->virt_addr = saved.virt_addr;
  static const int32_t offsets[] = {-1, INT32_MIN, INT32_MAX, 4096 - 127};
  for (size_t i = 0; i < 4; i++) {
    mm.a->offset = offsets[i];
    CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &mm.io.A), -5);
  }
  mm.a->offset = 4096 - 128; /* the rest of the page */
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &mm.io.A), 0);
  CHECK_IS(wrong_products(&mm, &layouts[1], 127), 0);
  *mm.a = saved;
  mm.a->size = mm.io.A.size - 1;
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &mm.io.A), -5);
  CHECK(logged("rknn_matmul_set_io_mem, simulator: memory of 127 bytes for a tensor of 128 bytes"), "log");
  mm.a->size = UINT32_MAX;
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &mm.io.A), 0);
  *mm.a = saved;

  /* Memory of another context is fine, of another IOMMU domain not. */
  rknn_matmul_info info = mm.info;
  info.iommu_domain_id = 3;
  matmul other;
  CHECK(open_matmul(&other, info), "not created");
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, other.a, &mm.io.A), -5);
  CHECK(wrong_products(&other, &layouts[1], 127) == 0, "domain 3");
  close_matmul(&other);
  CHECK(open_matmul(&other, mm.info), "not created");
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, other.a, &mm.io.A), 0);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  close_matmul(&other);

  /* That memory is gone now: a run must fail, and work again with another. */
  CHECK_IS(rknn_matmul_run(mm.ctx), -1);
  CHECK(logged(submit_line), "log");
  CHECK_IS(wrong_products(&mm, &layouts[1], 127), 0);
  CHECK_IS(rknn_destroy_mem(mm.ctx, mm.b), 0); /* native B is used in place */
  mm.b = NULL;
  CHECK_IS(rknn_matmul_run(mm.ctx), -1);
  close_matmul(&mm);
}

/* When the data moves: B in normal layout at set_io_mem, everything else at run. */
static void test_when_data_moves(void) {
  for (int b_layout = 0; b_layout <= 2; b_layout++) {
    matmul mm;
    CHECK(open_matmul(&mm, make_info(2, 1, 32, 32, b_layout, 0)), "not created");
    memset(data_of(mm.a), 1, mm.io.A.size);
    memset(data_of(mm.b), 1, mm.io.B.size);
    bind_all(&mm);
    memset(data_of(mm.b), 2, mm.io.B.size);
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    int32_t result;
    memcpy(&result, data_of(mm.c), 4);
    CHECK_IS(result, b_layout == RKNN_MM_LAYOUT_NATIVE ? 64 : 32);
    memset(data_of(mm.a), 3, mm.io.A.size);
    CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.b, &mm.io.B), 0);
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    memcpy(&result, data_of(mm.c), 4);
    CHECK_IS(result, 192);
    if (b_layout != RKNN_MM_LAYOUT_NATIVE) {
      CHECK_IS(rknn_destroy_mem(mm.ctx, mm.b), 0);
      mm.b = NULL;
      CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    }
    close_matmul(&mm);
  }
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static void test_memory_fields(void) {
  rknn_tensor_mem *mem = rknn_create_mem(0, 1000), *other = rknn_create_mem(0, 1);
  CHECK(mem && other, "no memory");
  CHECK_IS(mem->size, 1000);
  CHECK_IS(mem->flags, 1);
  CHECK_IS(mem->offset, 0);
  CHECK(mem->priv_data == mem->virt_addr && mem->virt_addr, "priv_data");
  CHECK(mem->fd >= 0 && mem->phys_addr != 0 && mem->phys_addr < 1ull << 32, "fd, phys_addr");
  CHECK(mem->phys_addr != other->phys_addr && mem->fd != other->fd, "two memories, one address");
  CHECK(fcntl(mem->fd, F_GETFD) & FD_CLOEXEC, "the descriptor would leak into child processes");
  for (size_t i = 0; i < 1000; i++) CHECK(((char *)mem->virt_addr)[i] == 0, "not zeroed");
  int fd = mem->fd;

  CHECK_IS(rknn_mem_sync(0, mem, RKNN_MEMORY_SYNC_TO_DEVICE), 0);
  CHECK_IS(rknn_mem_sync(0, mem, RKNN_MEMORY_SYNC_BIDIRECTIONAL), 0);
  CHECK_IS(rknn_mem_sync(0, mem, (rknn_mem_sync_mode)0), -5);
  CHECK_IS(rknn_mem_sync(0, NULL, RKNN_MEMORY_SYNC_TO_DEVICE), -5);
  CHECK(logged("rknn_mem_sync, invalid mem"), "log");
  CHECK_IS(rknn_destroy_mem(0, NULL), -5);
  CHECK_IS(rknn_destroy_mem(0, mem), 0);
  CHECK_IS(rknn_destroy_mem(0, mem), -5);
  CHECK_IS(rknn_mem_sync(0, mem, RKNN_MEMORY_SYNC_TO_DEVICE), -5);
  CHECK(fcntl(fd, F_GETFD) < 0, "the descriptor was left open");
  rknn_tensor_mem made_up = *other;
  CHECK_IS(rknn_destroy_mem(0, &made_up), -5);
  CHECK_IS(rknn_destroy_mem(0, other), 0);

  /* A descriptor that the caller closed by mistake: its number belongs to another file when the memory goes. */
  mem = rknn_create_mem(0, 64);
  CHECK(mem != NULL, "no memory");
  int number = mem->fd;
  close(number);
  CHECK_IS(open("/dev/null", O_RDONLY), number);
  CHECK_IS(rknn_destroy_mem(0, mem), 0);
  CHECK(fcntl(number, F_GETFD) >= 0, "someone else's file was closed");
  close(number);

  CHECK(!rknn_create_mem(0, 0), "memory of no bytes");
  CHECK(logged("rknn_create_mem, invalid size: 0"), "log");
  CHECK(!rknn_create_mem2(0, 64, RKNN_FLAG_MEMORY_CACHEABLE), "create_mem2 without a context");
  CHECK(!rknn_create_mem2(0, 64, RKNN_MEM_FLAG_ALLOC_NO_CONTEXT | 0x100), "unknown flag");
  CHECK(!rknn_create_mem2(0, 1ull << 32, RKNN_MEM_FLAG_ALLOC_NO_CONTEXT), "4 GiB");
  CHECK(!rknn_create_mem2(0, 0, RKNN_MEM_FLAG_ALLOC_NO_CONTEXT), "no bytes");
  mem = rknn_create_mem2(0, 64, RKNN_MEM_FLAG_ALLOC_NO_CONTEXT | RKNN_FLAG_MEMORY_TRY_ALLOC_SRAM);
  CHECK(mem != NULL, "create_mem2 without a context");
  CHECK_IS(rknn_destroy_mem(0, mem), 0);
  CHECK(!rknn_create_mem_from_phys(0, 0x1000, NULL, 64), "from_phys");
}

static void test_slices(void) {
  matmul mm;
  CHECK(open_matmul(&mm, make_info(10, 3, 96, 64, 1, 0)), "not created");
  rknn_tensor_mem *arena = rknn_create_mem(0, 10000);
  CHECK(arena != NULL, "no memory");
  int duplicate = dup(arena->fd);
  rknn_tensor_mem *slice = rknn_create_mem_from_fd(mm.ctx, duplicate, arena->virt_addr, mm.io.B.size, 4097);
  CHECK(slice != NULL, "no slice");
  CHECK_IS(slice->flags, 2);
  CHECK_IS(slice->offset, 4097);
  CHECK_IS(slice->size, mm.io.B.size);
  CHECK_IS(slice->fd, duplicate);
  CHECK(slice->virt_addr == arena->virt_addr, "virt_addr is the start of the fd's memory");
  CHECK_IS(rknn_mem_sync(mm.ctx, slice, RKNN_MEMORY_SYNC_TO_DEVICE), 0);
  rknn_tensor_mem *whole = mm.b;
  mm.b = slice;
  CHECK_IS(wrong_products(&mm, &layouts[2], 7), 0);

  /* The caller's own mapping of the same descriptor. */
  void *mapping = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, duplicate, 0);
  CHECK(mapping != MAP_FAILED, "mmap");
  mm.b = rknn_create_mem_from_fd(mm.ctx, duplicate, mapping, mm.io.B.size, 64);
  CHECK(mm.b != NULL, "no slice");
  CHECK_IS(wrong_products(&mm, &layouts[2], 7), 0);
  CHECK_IS(rknn_destroy_mem(mm.ctx, mm.b), 0);
  munmap(mapping, 12288);

  /* The memory outlives the arena's struct and every descriptor. */
  close(duplicate);
  CHECK_IS(rknn_destroy_mem(0, arena), 0);
  mm.b = slice;
  CHECK_IS(wrong_products(&mm, &layouts[2], 7), 0);

  /* What cannot be wrapped. */
  rknn_tensor_mem *page = rknn_create_mem(0, 4096);
  int file = open("/dev/null", O_RDWR), foreign = memfd_create("foreign", MFD_CLOEXEC);
  CHECK(!rknn_create_mem_from_fd(0, -1, page->virt_addr, 64, 0), "fd -1");
  CHECK(logged("failed to convert fd(-1) to handle, ret: -1, errno: 22, errstr: Invalid argument"), "log");
  CHECK(!rknn_create_mem_from_fd(0, 9999, page->virt_addr, 64, 0), "fd that is not open");
  CHECK(!rknn_create_mem_from_fd(0, file, page->virt_addr, 64, 0), "/dev/null");
  CHECK(!rknn_create_mem_from_fd(0, foreign, page->virt_addr, 64, 0), "someone else's memfd");
  CHECK(!rknn_create_mem_from_fd(0, page->fd, page->virt_addr, 0, 0), "no bytes");
  CHECK(!rknn_create_mem_from_fd(0, page->fd, page->virt_addr, 64, -1), "negative offset");
  CHECK(!rknn_create_mem_from_fd(0, page->fd, page->virt_addr, 64, 4096 - 63), "one byte beyond");
  CHECK(!rknn_create_mem_from_fd(0, page->fd, page->virt_addr, UINT32_MAX, INT32_MAX), "far beyond");
  rknn_tensor_mem *no_virt = rknn_create_mem_from_fd(0, page->fd, NULL, 4096, 0);
  CHECK(no_virt != NULL, "a slice that the CPU does not map");
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, no_virt, &mm.io.A), -4);
  CHECK_IS(rknn_destroy_mem(0, no_virt), 0);
  CHECK_IS(rknn_destroy_mem(0, page), 0);
  close(file);
  close(foreign);
  CHECK_IS(rknn_destroy_mem(mm.ctx, whole), 0);
  close_matmul(&mm);
}

static void test_memory_limits(void) {
  /* 2 GiB - 64 KiB per domain; the pages are never touched. */
  rknn_tensor_mem *most = rknn_create_mem(0, (2047u << 20) + (960u << 10) - 4096);
  CHECK(most != NULL, "nearly 2 GiB");
  rknn_tensor_mem *last = rknn_create_mem(0, 1);
  CHECK(last != NULL, "the last page");
  CHECK(!rknn_create_mem(0, 1), "more than a domain has");
  CHECK(logged("failed to allocate handle, ret: -1, errno: 12, errstr: Cannot allocate memory"), "log");
  rknn_matmul_info info = make_info(2, 1, 32, 32, 1, 0);
  info.iommu_domain_id = 1;
  matmul mm;
  CHECK(open_matmul(&mm, info), "another domain has its own budget");
  close_matmul(&mm);
  rknn_matmul_ctx ctx;
  rknn_matmul_io_attr io;
  info.iommu_domain_id = 0;
  info.B_layout = 0;
  CHECK_IS(rknn_matmul_create(&ctx, &info, &io), 0);
  CHECK_IS(rknn_matmul_set_io_mem(ctx, last, &io.B), -5); /* 1 byte */
  last->size = 4096;
  CHECK_IS(rknn_matmul_set_io_mem(ctx, last, &io.B), -4); /* no room for the hidden copy */
  CHECK_IS(rknn_destroy_mem(0, most), 0);
  CHECK_IS(rknn_matmul_set_io_mem(ctx, last, &io.B), 0);
  CHECK_IS(rknn_matmul_destroy(ctx), 0);
  CHECK_IS(rknn_destroy_mem(0, last), 0);

  /* Addresses are reused: this would run through 4 GiB many times over. */
  for (int i = 0; i < 50; i++) {
    rknn_tensor_mem *mem = rknn_create_mem(0, 1u << 30);
    CHECK(mem && mem->phys_addr < 1ull << 32, "round %d", i);
    CHECK_IS(rknn_destroy_mem(0, mem), 0);
  }

  struct rlimit before, few;
  getrlimit(RLIMIT_NOFILE, &before);
  few = before;
  few.rlim_cur = 40;
  setrlimit(RLIMIT_NOFILE, &few);
  rknn_tensor_mem *many[64];
  int count = 0;
  while (count < 64 && (many[count] = rknn_create_mem(0, 64))) count++;
  CHECK(count > 0 && count < 40, "%d memories with 40 descriptors", count);
  CHECK(logged("failed to convert handle(1) to fd, ret: -1, errno: 24, errstr: Too many open files"), "log");
  while (count > 0) CHECK_IS(rknn_destroy_mem(0, many[--count]), 0);
  setrlimit(RLIMIT_NOFILE, &before);
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

/* ---- threads ----------------------------------------------------------------------------------------------------- */

/* Contexts, memories and runs of its own, all the time. random_state is not shared: the data is constant. */
static void *work_alone(void *argument) {
  int seed = *(int *)argument;
  for (int round = 0; round < 30; round++) {
    matmul mm;
    if (!open_matmul(&mm, make_info(2, 5, 256, 64, round % 3, 0))) {
      failed++;
      continue;
    }
    memset(data_of(mm.a), seed, mm.io.A.size);
    memset(data_of(mm.b), round, mm.io.B.size);
    rknn_tensor_mem *slice = rknn_create_mem_from_fd(0, mm.b->fd, mm.b->virt_addr, mm.b->size, 0);
    bind_all(&mm);
    for (int i = 0; i < 5; i++) CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    size_t wrong = 0;
    for (size_t i = 0; i < 5 * 64; i++) wrong += get_c(data_of(mm.c), &layouts[1], i) != 256.0 * seed * round;
    CHECK(wrong == 0, "thread %d, round %d: %zu wrong", seed, round, wrong);
    CHECK_IS(rknn_destroy_mem(0, slice), 0);
    close_matmul(&mm);
  }
  return NULL;
}

typedef struct {
  rknn_matmul_ctx ctx;
  int succeeded, refused, other;
} shared_run;

static void *run_shared(void *argument) {
  shared_run *mine = argument;
  for (int i = 0; i < 200; i++) {
    int result = rknn_matmul_run(mine->ctx);
    if (result == 0) mine->succeeded++;
    else if (result == -1) mine->refused++;
    else mine->other++;
  }
  return NULL;
}

static void test_threads(void) {
  pthread_t threads[3];
  int seeds[3] = {1, 2, 3};
  for (int i = 0; i < 3; i++) pthread_create(&threads[i], NULL, work_alone, &seeds[i]);
  for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);

  /* One context in two threads: some runs are refused, nothing else goes wrong. */
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 16, 1024, 256, 1, 0)), "not created");
  bind_all(&mm);
  shared_run both[2] = {{.ctx = mm.ctx}, {.ctx = mm.ctx}};
  for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, run_shared, &both[i]);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  CHECK(both[0].succeeded + both[1].succeeded > 0 && both[0].other + both[1].other == 0,
        "shared context: %d succeeded, %d other codes", both[0].succeeded + both[1].succeeded,
        both[0].other + both[1].other);
  if (both[0].refused + both[1].refused > 0) {
    CHECK(logged("rknn_matmul_run, simulator: another thread is using this context"), "log");
  }
  close_matmul(&mm);
}

/* ---- counters ---------------------------------------------------------------------------------------------------- */

static void test_counters(void) {
  npumm_sim_counters counters;
  npumm_sim_reset_counters();
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 4, 64, 32, 0, 0)), "not created");
  CHECK_IS(wrong_products(&mm, &layouts[1], 127), 0);
  rknn_mem_sync(mm.ctx, mm.c, RKNN_MEMORY_SYNC_FROM_DEVICE);
  rknn_tensor_mem *slice = rknn_create_mem_from_fd(0, mm.b->fd, mm.b->virt_addr, 64, 0);
  npumm_sim_read_counters(&counters);
  CHECK_IS(counters.run_calls, 1);
  CHECK_IS(counters.set_io_mem_calls, 3);
  CHECK_IS(counters.mem_sync_calls, 1);
  CHECK_IS(counters.macs, 4 * 64 * 32);
  CHECK_IS(counters.contexts_now, 1);
  CHECK_IS(counters.memories_now, 4);
  CHECK_IS(counters.descriptors_now, 3);
  CHECK_IS(counters.bytes_now, 4 * 4096); /* with the hidden copy of B, without the slice */
  CHECK_IS(rknn_destroy_mem(0, slice), 0);
  close_matmul(&mm);
  npumm_sim_read_counters(&counters);
  CHECK_IS(counters.contexts_now, 0);
  CHECK_IS(counters.memories_now, 0);
  CHECK_IS(counters.descriptors_now, 0);
  CHECK_IS(counters.bytes_now, 0);
  npumm_sim_read_counters(NULL);
}

int main(void) {
  start_log();
  test_products();
  test_segments();
  test_many_rows();
  test_number_edges();
  test_attributes();
  test_create_codes();
  test_context_limit();
  test_handles();
  test_core_masks();
  test_queries();
  test_binding_codes();
  test_when_data_moves();
  test_memory_fields();
  test_slices();
  test_memory_limits();
  test_helper();
  test_threads();
  test_counters(); /* last: everything made above must be gone */
  return report("test_simulator");
}
