/*
 * Every chip with every matmul type in every layout against a triple loop, and what each chip refuses. The tables
 * here restate facts 3.2, 3.3, 3.4, 4.2 and 4.5 on their own.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "check.h"

/* Bits of A, B, C; float C or not; elements per group or tile. */
typedef struct {
  const char *soc;
  int type;
  int a_bits, b_bits, c_bits;
  bool float_c;
  size_t k_align, n_align;
  size_t a_group, tile_n, tile_k, c_group;
  size_t segment;
} row;

static const row rows[] = {
    {"rk3562", 1, 16, 16, 32, true, 32, 8, 8, 8, 32, 4, 0},
    {"rk3562", 2, 8, 8, 32, false, 32, 16, 16, 16, 32, 4, 0},
    {"rk3566", 1, 16, 16, 32, true, 16, 8, 4, 8, 16, 4, 0},
    {"rk3566", 2, 8, 8, 32, false, 32, 16, 8, 16, 32, 4, 0},
    {"rk3568", 1, 16, 16, 32, true, 16, 8, 4, 8, 16, 4, 0},
    {"rk3568", 2, 8, 8, 32, false, 32, 16, 8, 16, 32, 4, 0},
    {"rk3576", 1, 16, 16, 32, true, 32, 16, 8, 16, 32, 4, 4096},
    {"rk3576", 2, 8, 8, 32, false, 32, 32, 16, 32, 32, 4, 4096},
    {"rk3576", 4, 16, 16, 16, true, 32, 16, 8, 16, 32, 8, 4096},
    {"rk3576", 5, 16, 8, 32, true, 32, 16, 8, 16, 32, 4, 4096},
    {"rk3576", 7, 16, 4, 32, true, 32, 16, 8, 16, 32, 4, 4096},
    {"rk3576", 8, 16, 4, 16, true, 32, 16, 8, 16, 32, 8, 4096},
    {"rk3576", 11, 8, 4, 32, false, 32, 32, 16, 32, 32, 4, 4096},
    {"rk3588", 1, 16, 16, 32, true, 32, 16, 8, 16, 32, 4, 8192},
    {"rk3588", 2, 8, 8, 32, false, 32, 32, 16, 32, 32, 4, 8192},
    {"rk3588", 3, 8, 8, 8, false, 32, 32, 16, 32, 32, 16, 8192},
    {"rk3588", 4, 16, 16, 16, true, 32, 16, 8, 16, 32, 8, 8192},
    {"rk3588", 9, 8, 8, 32, true, 32, 32, 16, 32, 32, 4, 8192},
    {"rk3588", 10, 4, 4, 16, false, 32, 64, 32, 64, 32, 8, 8192},
};

static const char *const socs[] = {"rk3562", "rk3566", "rk3568", "rk3576", "rk3588"};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static size_t a_index(const matmul *mm, const row *of, size_t m, size_t k) {
  if (mm->info.AC_layout == RKNN_MM_LAYOUT_NORM) return m * (size_t)mm->info.K + k;
  return (k / of->a_group * (size_t)mm->info.M + m) * of->a_group + k % of->a_group;
}

static size_t c_index(const matmul *mm, const row *of, size_t m, size_t n) {
  if (mm->info.AC_layout == RKNN_MM_LAYOUT_NORM) return m * (size_t)mm->info.N + n;
  return (n / of->c_group * (size_t)mm->info.M + m) * of->c_group + n % of->c_group;
}

static size_t b_index(const matmul *mm, const row *of, size_t k, size_t n) {
  size_t K = (size_t)mm->info.K, N = (size_t)mm->info.N;
  if (mm->info.B_layout == RKNN_MM_LAYOUT_NORM) return k * N + n;
  if (mm->info.B_layout == RKNN_MM_LAYOUT_TP_NORM) return n * K + k;
  size_t base = of->segment ? k / of->segment * of->segment : 0;
  size_t depth = of->segment && K - base > of->segment ? of->segment : K - base;
  size_t tile = n / of->tile_n * (depth / of->tile_k) + (k - base) / of->tile_k;
  return base * N + (tile * of->tile_n + n % of->tile_n) * of->tile_k + (k - base) % of->tile_k;
}

static void put(uint8_t *buffer, int bits, size_t index, int value) {
  if (bits == 16) {
    uint16_t half = exact_half(value);
    memcpy(buffer + 2 * index, &half, 2);
  } else if (bits == 8) {
    buffer[index] = (uint8_t)value;
  } else {
    int shift = index % 2 == 0 ? 0 : 4;
    buffer[index / 2] = (uint8_t)((buffer[index / 2] & ~(15 << shift)) | (value & 15) << shift);
  }
}

static double get_c(const uint8_t *buffer, const row *of, size_t index) {
  if (of->float_c && of->c_bits == 32) {
    float value;
    memcpy(&value, buffer + 4 * index, 4);
    return (double)value;
  }
  if (of->c_bits == 32) {
    int32_t value;
    memcpy(&value, buffer + 4 * index, 4);
    return value;
  }
  if (of->c_bits == 8) return (int8_t)buffer[index];
  uint16_t bits;
  memcpy(&bits, buffer + 2 * index, 2);
  return of->float_c ? half_value(bits) : (int16_t)bits;
}

/* Small enough numbers for every sum to be exact in C's type, or saturated where it is an integer. */
static size_t wrong_products(matmul *mm, const row *of) {
  size_t M = (size_t)mm->info.M, K = (size_t)mm->info.K, N = (size_t)mm->info.N, wrong = 0;
  int *a = need(M * K * sizeof *a), *b = need(N * K * sizeof *b);
  int limit = of->float_c && of->c_bits == 16 ? 1 : 7;
  double unit = (of->a_bits == 16 ? 1 / 8.0 : 1) * (of->b_bits == 16 ? 1 / 8.0 : 1);
  for (size_t i = 0; i < M * K; i++) {
    a[i] = random_between(-limit, limit);
    put(data_of(mm->a), of->a_bits, a_index(mm, of, i / K, i % K), a[i]);
  }
  for (size_t i = 0; i < N * K; i++) {
    b[i] = random_between(-limit, limit);
    put(data_of(mm->b), of->b_bits, b_index(mm, of, i % K, i / K), b[i]);
  }
  memset(data_of(mm->c), 0xee, mm->io.C.size);
  bind_all(mm);
  CHECK_IS(rknn_matmul_run(mm->ctx), 0);
  for (size_t m = 0; m < M; m++) {
    for (size_t n = 0; n < N; n++) {
      double sum = 0;
      for (size_t k = 0; k < K; k++) sum += a[m * K + k] * b[n * K + k];
      if (!of->float_c && of->c_bits == 8) sum = sum > 127 ? 127 : sum < -128 ? -128 : sum;
      wrong += get_c(data_of(mm->c), of, c_index(mm, of, m, n)) != sum * unit;
    }
  }
  free(a);
  free(b);
  return wrong;
}

static bool transposes(const char *soc) { return strcmp(soc, "rk3566") != 0 && strcmp(soc, "rk3568") != 0; }

static void check_shape(const row *of, int M, int K, int N) {
  for (int b_layout = 0; b_layout <= (transposes(of->soc) ? 2 : 1); b_layout++) {
    for (int ac_layout = 0; ac_layout <= 1; ac_layout++) {
      matmul mm;
      bool open = open_matmul(&mm, make_info((rknn_matmul_type)of->type, M, K, N, b_layout, ac_layout));
      CHECK(open, "%s type %d, %d %d %d: not created", of->soc, of->type, M, K, N);
      if (!open) continue;
      CHECK_IS(mm.io.A.size, M * K * of->a_bits / 8);
      CHECK_IS(mm.io.B.size, K * N * of->b_bits / 8);
      CHECK_IS(mm.io.C.size, M * N * of->c_bits / 8);
      if (b_layout == 1) CHECK(mm.io.B.dims[2] == of->tile_n && mm.io.B.dims[3] == of->tile_k, "tile");
      if (ac_layout == 1) CHECK(mm.io.A.dims[2] == of->a_group && mm.io.C.dims[2] == of->c_group, "groups");
      size_t wrong = wrong_products(&mm, of);
      CHECK(wrong == 0, "%s type %d, %d %d %d, layouts %d %d: %zu wrong", of->soc, of->type, M, K, N, b_layout,
            ac_layout, wrong);
      close_matmul(&mm);
    }
  }
}

static void test_types(void) {
  for (size_t i = 0; i < COUNT(rows); i++) {
    const row *of = &rows[i];
    int k = (int)of->k_align, n = (int)of->n_align;
    CHECK_IS(npumm_sim_select(of->soc), 0);
    CHECK(strcmp(npumm_sim_describe(NULL), of->soc) == 0, "describe");
    /* int4 that a runtime is not known to survive is multiplied all the same */
    CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_INT4_ROWS", "any"), 0);
    check_shape(of, 1, k, n);
    check_shape(of, 3, 3 * k, 5 * n);
    check_shape(of, 4, 22 * k, 2 * n);
    check_shape(of, 9, 2 * k, 3 * n);
    if (of->segment) check_shape(of, 5, (int)(2 * of->segment) + 96, 2 * n);
    CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_INT4_ROWS", "refused"), 0);
  }
}

static int create_code(int type, int M, int K, int N, int b_layout) {
  rknn_matmul_info info = make_info((rknn_matmul_type)type, M, K, N, b_layout, 0);
  rknn_matmul_ctx ctx;
  rknn_matmul_io_attr io;
  int result = rknn_matmul_create(&ctx, &info, &io);
  if (result == 0) CHECK_IS(rknn_matmul_destroy(ctx), 0);
  return result;
}

static const row *find(const char *soc, int type) {
  for (size_t i = 0; i < COUNT(rows); i++) {
    if (rows[i].type == type && strcmp(rows[i].soc, soc) == 0) return &rows[i];
  }
  return NULL;
}

static void test_refused_types(void) {
  for (size_t s = 0; s < COUNT(socs); s++) {
    CHECK_IS(npumm_sim_select(socs[s]), 0);
    for (int type = -1; type <= 17; type++) {
      int code = create_code(type, 4, 64, 64, 0);
      CHECK(code == (find(socs[s], type) ? 0 : -5), "%s type %d: %d", socs[s], type, code);
    }
    CHECK_IS(create_code(6, 4, 64, 64, 0), -5);
    CHECK(logged("rknn_matmul_create_dynamic_shape, unsupported matmul dtype : RKNN_FLOAT16_MM_INT8_TO_FLOAT16 in this "
                 "platform"),
          "log");
    CHECK_IS(create_code(15, 4, 64, 64, 0), -5);
    CHECK(logged("rknn_matmul_create_dynamic_shape, unsupported matmul dtype : UNKNOW in this platform"), "log");
    CHECK_IS(create_code(13, 4, 64, 64, 0), -5);
    CHECK(logged("rknn_matmul_create_dynamic_shape, unsupported matmul dtype : UNKNOW in this platform"), "log");
    CHECK_IS(create_code(2, 4, 64, 64, 2), transposes(socs[s]) ? 0 : -5);
  }
}

static void test_limits(void) {
  for (size_t i = 0; i < COUNT(rows); i++) {
    const row *of = &rows[i];
    int k = (int)of->k_align, n = (int)of->n_align;
    CHECK_IS(npumm_sim_select(of->soc), 0);
    CHECK_IS(create_code(of->type, 1, k + k / 2, n, 0), -5);
    CHECK_IS(create_code(of->type, 1, k, n + n / 2, 0), -5);
    CHECK_IS(create_code(of->type, 1, k, 65536 + n, 1), 0); /* no maximum of N */
  }
  static const struct {
    const char *soc;
    int observed, documented, step;
  } depths[] = {{"rk3562", 12352, 10240, 32}, {"rk3566", 14336, 10240, 32}, {"rk3568", 14336, 10240, 32}};
  for (size_t i = 0; i < COUNT(depths); i++) {
    CHECK_IS(npumm_sim_select(depths[i].soc), 0);
    CHECK_IS(create_code(2, 1, depths[i].observed, 16, 1), 0);
    CHECK_IS(create_code(2, 1, depths[i].observed + 32, 16, 1), -5);
    CHECK(logged("rknn_matmul_create, k > limit: "), "log");
    CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_LIMITS", "documented"), 0);
    CHECK_IS(create_code(2, 1, depths[i].documented, 16, 1), 0);
    CHECK_IS(create_code(2, 1, depths[i].documented + 32, 16, 1), -5);
    CHECK_IS(create_code(1, 1, 32, 16, 1), 0);
    CHECK_IS(create_code(1, 1, 32, 8, 1), -5);
    CHECK(logged("rknn_matmul_create, matmul N must be align with 16!"), "log");
    CHECK_IS(create_code(1, 1, 16, 16, 1), -5);
    CHECK_IS(create_code(2, 1, 32, 4096, 1), 0);
    CHECK_IS(create_code(2, 1, 32, 4096 + 16, 1), -5);
    CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_LIMITS", NULL), 0);
  }
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_LIMITS", "documented"), 0);
  CHECK_IS(npumm_sim_select("rk3588"), 0);
  CHECK_IS(create_code(1, 1, 32, 16, 1), -5);
  CHECK_IS(create_code(1, 1, 32768, 32, 1), 0);
  CHECK_IS(create_code(10, 1, 32, 8192, 1), 0);
  CHECK_IS(create_code(10, 1, 32, 8192 + 64, 1), -5);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_LIMITS", ""), 0);
  CHECK_IS(create_code(1, 1, 32, 16, 1), 0);
}

static void test_core_masks(void) {
  static const int cores[] = {1, 1, 1, 2, 3};
  for (size_t s = 0; s < COUNT(socs); s++) {
    CHECK_IS(npumm_sim_select(socs[s]), 0);
    int told = 0;
    npumm_sim_describe(&told);
    CHECK_IS(told, cores[s]);
    matmul mm;
    CHECK(open_matmul(&mm, make_info(RKNN_INT8_MM_INT8_TO_INT32, 1, 32, 32, 0, 0)), "not created");
    for (int mask = -1; mask <= 8; mask++) {
      bool single = mask == 0 || mask == 1 || mask == 2 || (mask == 4 && cores[s] == 3);
      int result = rknn_matmul_set_core_mask(mm.ctx, (rknn_core_mask)mask);
      CHECK(result == (cores[s] > 1 && single ? 0 : -1), "%s, mask %d: %d", socs[s], mask, result);
    }
    close_matmul(&mm);
  }
}

/* ---- several chips at once --------------------------------------------------------------------------------------- */

static void *on_one_chip(void *argument) {
  const char *soc = argument;
  CHECK_IS(npumm_sim_select(soc), 0);
  for (int i = 0; i < 20; i++) {
    CHECK(strcmp(npumm_sim_describe(NULL), soc) == 0, "another thread's chip");
    matmul mm;
    CHECK(open_matmul(&mm, make_info(RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32, 1, 32, 16, 1, 0)), "not created");
    CHECK_IS(mm.io.B.dims[3], strcmp(soc, "rk3566") == 0 ? 16 : 32);
    bind_all(&mm);
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    close_matmul(&mm);
  }
  return NULL;
}

static void test_select(void) {
  pthread_t threads[2];
  static char first[] = "rk3566", second[] = "rk3576";
  pthread_create(&threads[0], NULL, on_one_chip, first);
  pthread_create(&threads[1], NULL, on_one_chip, second);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);

  CHECK_IS(npumm_sim_select("rk1808"), -5);
  CHECK_IS(npumm_sim_select(NULL), 0);
  CHECK(strcmp(npumm_sim_describe(NULL), "rk3588") == 0, "the default chip");
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_SOC", "rk3568"), 0);
  CHECK(strcmp(npumm_sim_describe(NULL), "rk3568") == 0, "another default chip");
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_SOC", NULL), 0);

  /* Budgets and counts of contexts are each chip's own; memory of one is none of another's. */
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_CONTEXTS", "1"), 0);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_DOMAIN_BYTES", "16384"), 0);
  matmul one, other;
  CHECK_IS(npumm_sim_select("rk3576"), 0);
  CHECK(open_matmul(&one, make_info(RKNN_INT8_MM_INT8_TO_INT32, 1, 32, 32, 1, 0)), "not created");
  CHECK_IS(create_code(2, 1, 32, 32, 1), -1);
  CHECK_IS(npumm_sim_select("rk3588"), 0);
  CHECK(open_matmul(&other, make_info(RKNN_INT8_MM_INT8_TO_INT32, 1, 32, 32, 1, 0)), "not created");
  CHECK_IS(rknn_matmul_set_io_mem(other.ctx, one.a, &other.io.A), -5);
  CHECK(logged("rknn_matmul_set_io_mem, simulator: memory of rk3576 for a context on rk3588"), "log");
  CHECK(!rknn_create_mem_from_fd(other.ctx, one.a->fd, one.a->virt_addr, 32, 0), "a slice from another chip");
  rknn_tensor_mem *last = rknn_create_mem(other.ctx, 4096);
  CHECK(last && !rknn_create_mem(other.ctx, 1), "budget of 16384 bytes");
  rknn_tensor_mem *there = rknn_create_mem(one.ctx, 4096); /* on the context's chip, not the thread's */
  CHECK(there != NULL && !rknn_create_mem(one.ctx, 1), "budget of the other chip");
  CHECK_IS(rknn_destroy_mem(0, last), 0);
  CHECK_IS(rknn_destroy_mem(0, there), 0);
  close_matmul(&one);
  close_matmul(&other);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_CONTEXTS", NULL), 0);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_DOMAIN_BYTES", NULL), 0);
}

/* ---- settings of results ----------------------------------------------------------------------------------------- */

/* int4 A and B of nothing but -8, K = 544: the sum is 34816. */
static int overflowing_run(const char *setting, int16_t *result) {
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_OVERFLOW", setting), 0);
  matmul mm;
  CHECK(open_matmul(&mm, make_info(RKNN_INT4_MM_INT4_TO_INT16, 1, 544, 64, 1, 0)), "not created");
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_OVERFLOW", NULL), 0); /* the context keeps its settings */
  memset(data_of(mm.a), 0x88, mm.io.A.size);
  memset(data_of(mm.b), 0x88, mm.io.B.size);
  bind_all(&mm);
  int code = rknn_matmul_run(mm.ctx);
  memcpy(result, data_of(mm.c), sizeof *result);
  close_matmul(&mm);
  return code;
}

static void test_overflow(void) {
  int16_t result;
  CHECK_IS(npumm_sim_select("rk3588"), 0);
  CHECK_IS(overflowing_run("saturate", &result), 0);
  CHECK_IS(result, 32767);
  CHECK_IS(overflowing_run("wrap", &result), 0);
  CHECK_IS(result, 34816 - 65536);
  CHECK_IS(overflowing_run("error", &result), -1);
  CHECK(logged("rknn_matmul_run, simulator: 64 int16 results overflowed"), "log");
}

/* M = 5 with native A and C: laid out by the attributes it is wrong, by eight rows it is right. */
static void test_stretched_rows(const char *strict) {
  const row *of = find("rk3588", 2);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_STRICT", strict), 0);
  CHECK_IS(npumm_sim_select("rk3588"), 0);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_ROWS", "ceil4"), 0);
  matmul mm;
  CHECK(open_matmul(&mm, make_info(RKNN_INT8_MM_INT8_TO_INT32, 4, 64, 32, 1, 1)), "not created");
  CHECK_IS(wrong_products(&mm, of), 0); /* a multiple of 4 is no trap */
  close_matmul(&mm);
  CHECK(open_matmul(&mm, make_info(RKNN_INT8_MM_INT8_TO_INT32, 5, 64, 32, 1, 0)), "not created");
  CHECK_IS(wrong_products(&mm, of), 0); /* nor is the normal layout */
  close_matmul(&mm);
  CHECK(open_matmul(&mm, make_info(RKNN_INT8_MM_INT8_TO_INT32, 5, 64, 32, 1, 1)), "not created");
  CHECK(wrong_products(&mm, of) > 0, "five rows");
  CHECK_IS(mm.io.A.dims[1], 5);

  memset(data_of(mm.a), 0, 4096);
  memset(data_of(mm.b), 1, mm.io.B.size);
  memset(data_of(mm.c), 0, 4096);
  for (size_t k = 0; k < 64; k++) {
    for (size_t m = 0; m < 5; m++) data_of(mm.a)[(k / 16 * 8 + m) * 16 + k % 16] = (uint8_t)(m + 1);
  }
  bind_all(&mm);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  size_t wrong = 0;
  for (size_t n = 0; n < 32; n++) {
    for (size_t m = 0; m < 5; m++) {
      int32_t value;
      memcpy(&value, data_of(mm.c) + ((n / 4 * 8 + m) * 4 + n % 4) * 4, sizeof value);
      wrong += value != (int32_t)(64 * (m + 1));
    }
  }
  CHECK_IS(wrong, 0);
  close_matmul(&mm);

  /* At the end of the memory nothing is read or written beyond it. */
  CHECK(open_matmul(&mm, make_info(RKNN_INT8_MM_INT8_TO_INT32, 5, 8192, 4096, 1, 1)), "not created");
  bind_all(&mm);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  close_matmul(&mm);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_ROWS", "exact"), 0);
}

/* ---- int4 with native A and C: more rows than a runtime survives -------------------------------------------------- */

static int int4_create(int M, int K, int N, int ac_layout) {
  rknn_matmul_info info = make_info(RKNN_INT4_MM_INT4_TO_INT16, M, K, N, 1, ac_layout);
  rknn_matmul_io_attr io;
  rknn_matmul_ctx ctx;
  int code = rknn_matmul_create(&ctx, &info, &io);
  if (code == 0) CHECK_IS(rknn_matmul_destroy(ctx), 0);
  return code;
}

static bool fatal_rows_counted(unsigned count) {
  char text[8192], wanted[32];
  npumm_sim_counters_json(text, sizeof text);
  snprintf(wanted, sizeof wanted, "\"fatal_rows\":%u,", count);
  return strstr(text, wanted) != NULL;
}

/* Recorded (facts 15); between two recorded K or N the least of the neighbours. */
static void test_fatal_rows(void) {
  static const struct {
    int K, N, most;
  } recorded[] = {
      {32, 64, 8192}, {480, 64, 546},   {512, 64, 512},   {608, 64, 408},     {608, 8192, 408},
      {992, 64, 220}, {1024, 64, 220},  {7264, 512, 32},  {7264, 1024, 24},   {7264, 576, 24},
      {7712, 64, 32}, {7712, 128, 24},  {8160, 8192, 24}, {8192, 8192, 32},   {8224, 64, 20},
      {10304, 64, 4}, {4096, 8192, 64}, {4096, 8256, 1},  {10304, 152064, 1},
  };
  npumm_sim_reset_counters();
  unsigned refused = 0;
  for (size_t i = 0; i < sizeof recorded / sizeof *recorded; i++) {
    int K = recorded[i].K, N = recorded[i].N, most = recorded[i].most;
    CHECK(int4_create(most, K, N, 1) == 0, "M %d, K %d, N %d is refused", most, K, N);
    CHECK(int4_create(most + 1, K, N, 1) == -1, "M %d, K %d, N %d is taken", most + 1, K, N);
    CHECK(int4_create(most + 1, K, N, 0) == 0, "normal layout: M %d, K %d, N %d is refused", most + 1, K, N);
    refused++;
  }
  CHECK(logged("rknn_matmul_create, simulator: RKNN_INT4_MM_INT4_TO_INT16 with native A and C, M 2, K 10304 and "
               "N 152064 can kill the runtime: at most 1 rows are known to be safe"),
        "log");
  CHECK(fatal_rows_counted(refused), "%u", refused);
  CHECK_IS(int4_create(1, 10336, 64, 1), -1); /* beyond the last recorded K not even one */
  CHECK_IS(int4_create(1, 10336, 64, 0), 0);
  CHECK(fatal_rows_counted(refused + 1), "%u", refused + 1);

  /* One such shape of several is enough. */
  rknn_matmul_info info = make_info(RKNN_INT4_MM_INT4_TO_INT16, 4, 608, 64, 1, 1);
  rknn_matmul_shape shapes[] = {{4, 608, 64}, {412, 608, 64}};
  rknn_matmul_io_attr io[2];
  rknn_matmul_ctx ctx;
  CHECK_IS(rknn_matmul_create_dynamic_shape(&ctx, &info, 2, shapes, io), -1);
  CHECK(logged("rknn_matmul_create_dynamic_shape, simulator: RKNN_INT4_MM_INT4_TO_INT16 with native A and C"), "log");
  shapes[1].M = 408;
  CHECK_IS(rknn_matmul_create_dynamic_shape(&ctx, &info, 2, shapes, io), 0);
  CHECK_IS(rknn_matmul_destroy(ctx), 0);

  /* Other types have no such limit. */
  info = make_info(RKNN_INT8_MM_INT8_TO_INT32, 4096, 4096, 64, 1, 1);
  CHECK_IS(rknn_matmul_create(&ctx, &info, io), 0);
  CHECK_IS(rknn_matmul_destroy(ctx), 0);

  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_INT4_ROWS", "any"), 0);
  CHECK_IS(int4_create(412, 608, 64, 1), 0);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_INT4_ROWS", "deadly"), 0);
  CHECK_IS(int4_create(408, 608, 64, 1), 0);
  pid_t child = fork();
  if (child == 0) {
    signal(SIGFPE, SIG_DFL); /* not the sanitizer's */
    int4_create(412, 608, 64, 1);
    _exit(0);
  }
  int status = 0;
  CHECK_IS(waitpid(child, &status, 0), child);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGFPE, "status %d", status);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_INT4_ROWS", NULL), 0);
}

int main(void) {
  start_log();
  test_fatal_rows();
  test_types();
  test_refused_types();
  test_limits();
  test_core_masks();
  test_select();
  test_overflow();
  test_stretched_rows("0");
  test_stretched_rows("1"); /* the rows beyond the attributes are synchronised too */
  return report("test_chips");
}
