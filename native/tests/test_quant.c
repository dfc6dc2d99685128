/*
 * Quantization parameters: lengths, names, values, and the formulas of facts 5.5 written here on their own, in double.
 * Normal layouts only; test_chips.c has the others.
 */
#define _GNU_SOURCE
#include "check.h"

typedef struct {
  int type;
  const char *soc;
  rknn_matmul_quant_type b_quant, ac_quant;
  int group;
  double a_scale, c_scale;
  int a_zero, c_zero;
  bool same_scales; /* of B */
} quant_case;

enum { M = 3, K = 128, N = 64 };

static int a_values[M * K], b_values[K * N];
static float b_scales[N * K];
static int32_t b_zeros[N * K];

static int b_bits(int type) { return type == 7 || type == 8 || type == 11 ? 4 : 8; }
static bool half_a(int type) { return type == 5 || type == 7 || type == 8; }

static size_t b_length(const quant_case *of) {
  if (of->b_quant >= RKNN_QUANT_TYPE_PER_GROUP_SYM) return (size_t)(N * (K / of->group));
  return of->b_quant >= RKNN_QUANT_TYPE_PER_CHANNEL_SYM ? N : 1;
}

static size_t b_parameter(const quant_case *of, size_t k, size_t n) {
  if (of->b_quant >= RKNN_QUANT_TYPE_PER_GROUP_SYM) return k / (size_t)of->group * N + n;
  return of->b_quant >= RKNN_QUANT_TYPE_PER_CHANNEL_SYM ? n : 0;
}

static int set_params(rknn_matmul_ctx ctx, const char *name, float *scales, int scale_len, int32_t *zp, int zp_len) {
  rknn_quant_params params = {.scale = scales, .scale_len = scale_len, .zp = zp, .zp_len = zp_len};
  snprintf(params.name, sizeof params.name, "%s", name);
  return rknn_matmul_set_quant_params(ctx, &params);
}

static void fill(matmul *mm, const quant_case *of) {
  bool int4 = b_bits(of->type) == 4;
  for (size_t i = 0; i < M * K; i++) {
    a_values[i] = random_between(-100, 100);
    if (half_a(of->type)) {
      a_values[i] /= 10;
      uint16_t half = exact_half(a_values[i]); /* eighths */
      memcpy(data_of(mm->a) + 2 * i, &half, 2);
    } else {
      data_of(mm->a)[i] = (uint8_t)a_values[i];
    }
  }
  for (size_t i = 0; i < K * N; i++) {
    b_values[i] = int4 ? random_between(-8, 7) : random_between(-128, 127);
    if (!int4) data_of(mm->b)[i] = (uint8_t)b_values[i];
    else if (i % 2 == 0) data_of(mm->b)[i / 2] = (uint8_t)(b_values[i] & 15);
    else data_of(mm->b)[i / 2] |= (uint8_t)((b_values[i] & 15) << 4);
  }
  bool asymmetric = of->b_quant % 2 == 1;
  for (size_t i = 0; i < b_length(of); i++) {
    b_scales[i] = of->same_scales ? 0.25f : (float)random_between(1, 40) / 64;
    b_zeros[i] = asymmetric ? (int4 ? random_between(-8, 7) : random_between(-128, 127)) : 0;
  }
}

/* The formulas of facts 5.5; type 2 with a B per channel: sums brought to the largest scale. */
static double expected(const quant_case *of, size_t m, size_t n) {
  double sum = 0, plain = 0, largest = 0;
  for (size_t k = 0; k < K; k++) {
    double a = a_values[m * K + k], b = b_values[k * N + n];
    size_t p = b_parameter(of, k, n);
    plain += a * b;
    sum += (half_a(of->type) ? a / 8 : (a - of->a_zero) * of->a_scale) * (b - b_zeros[p]) * (double)b_scales[p];
  }
  for (size_t i = 0; i < N; i++) {
    if ((double)b_scales[i] > largest) largest = (double)b_scales[i];
  }
  switch (of->type) {
    case 2:
      return b_length(of) == 1 ? plain : nearbyint(sum / of->a_scale / largest);
    case 3:
      return fmin(fmax(trunc(sum / of->c_scale + of->c_zero), -128), 127);
    case 11:
      return plain;
    default:
      return sum;
  }
}

static double get_c(const matmul *mm, int type, size_t i) {
  const uint8_t *c = data_of(mm->c);
  int32_t wide;
  float single;
  uint16_t half;
  switch (type) {
    case 2:
    case 11:
      memcpy(&wide, c + 4 * i, 4);
      return wide;
    case 3:
      return (int8_t)c[i];
    case 8:
      memcpy(&half, c + 2 * i, 2);
      return half_value(half);
    default:
      memcpy(&single, c + 4 * i, 4);
      return (double)single;
  }
}

static const quant_case cases[] = {
    {2, "rk3588", RKNN_QUANT_TYPE_PER_LAYER_SYM, 0, 0, 0.5, 1, 0, 0, false},
    {2, "rk3588", RKNN_QUANT_TYPE_PER_CHANNEL_SYM, 0, 0, 0.5, 1, 0, 0, false},
    {2, "rk3588", RKNN_QUANT_TYPE_PER_CHANNEL_SYM, 0, 0, 0.5, 1, 0, 0, true},
    {2, "rk3566", RKNN_QUANT_TYPE_PER_CHANNEL_ASYM, 1, 0, 0.5, 1, 7, 0, false},
    {3, "rk3588", RKNN_QUANT_TYPE_PER_LAYER_SYM, 0, 0, 0.25, 64, 0, 0, false},
    {3, "rk3588", RKNN_QUANT_TYPE_PER_LAYER_ASYM, 1, 0, 0.25, 128, -9, 11, false},
    {3, "rk3588", RKNN_QUANT_TYPE_PER_CHANNEL_SYM, 0, 0, 0.25, 100, 0, 0, false},
    {3, "rk3588", RKNN_QUANT_TYPE_PER_CHANNEL_ASYM, 1, 0, 0.25, 4, 100, -100, false}, /* much saturates */
    {9, "rk3588", RKNN_QUANT_TYPE_PER_LAYER_SYM, 0, 0, 0.125, 1, 0, 0, false},
    {9, "rk3588", RKNN_QUANT_TYPE_PER_LAYER_ASYM, 1, 0, 0.125, 1, 5, 0, false},
    {9, "rk3588", RKNN_QUANT_TYPE_PER_GROUP_SYM, 0, 32, 0.125, 1, 0, 0, false},
    {9, "rk3588", RKNN_QUANT_TYPE_PER_GROUP_SYM, 1, 64, 0.125, 1, -3, 0, false},
    {5, "rk3576", RKNN_QUANT_TYPE_PER_LAYER_ASYM, 0, 0, 1, 1, 0, 0, false},
    {5, "rk3576", RKNN_QUANT_TYPE_PER_CHANNEL_SYM, 0, 0, 1, 1, 0, 0, false},
    {5, "rk3576", RKNN_QUANT_TYPE_PER_CHANNEL_ASYM, 0, 0, 1, 1, 0, 0, false},
    {7, "rk3576", RKNN_QUANT_TYPE_PER_LAYER_SYM, 0, 0, 1, 1, 0, 0, false},
    {7, "rk3576", RKNN_QUANT_TYPE_PER_CHANNEL_ASYM, 0, 0, 1, 1, 0, 0, false},
    {7, "rk3576", RKNN_QUANT_TYPE_PER_GROUP_SYM, 0, 32, 1, 1, 0, 0, false},
    {8, "rk3576", RKNN_QUANT_TYPE_PER_GROUP_SYM, 0, 128, 1, 1, 0, 0, false},
    {8, "rk3576", RKNN_QUANT_TYPE_PER_CHANNEL_SYM, 0, 0, 1, 1, 0, 0, false},
    {11, "rk3576", RKNN_QUANT_TYPE_PER_CHANNEL_SYM, 0, 0, 0.5, 1, 0, 0, false},
};

static bool open_case(matmul *mm, const quant_case *of) {
  rknn_matmul_info info = make_info((rknn_matmul_type)of->type, M, K, N, 0, 0);
  info.B_quant_type = (int16_t)of->b_quant;
  info.AC_quant_type = (int16_t)of->ac_quant;
  info.group_size = (int16_t)of->group;
  CHECK_IS(npumm_sim_select(of->soc), 0);
  return open_matmul(mm, info);
}

static void set_all(matmul *mm, const quant_case *of) {
  float a_scale = (float)of->a_scale, c_scale = (float)of->c_scale;
  int32_t a_zero = of->a_zero, c_zero = of->c_zero;
  int length = (int)b_length(of);
  bool symmetric = of->b_quant % 2 == 0;
  CHECK_IS(set_params(mm->ctx, "A", &a_scale, 1, &a_zero, 1), 0);
  CHECK_IS(set_params(mm->ctx, "C", &c_scale, 1, &c_zero, 1), 0);
  CHECK_IS(set_params(mm->ctx, "B", b_scales, length, symmetric ? NULL : b_zeros, symmetric ? 0 : length), 0);
}

static void test_formulas(void) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const quant_case *of = &cases[i];
    matmul mm;
    CHECK(open_case(&mm, of), "case %zu: not created", i);
    fill(&mm, of);
    set_all(&mm, of);
    bind_all(&mm);
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    /* Floats are rounded a few times: group sums, total, half. Integers are compared exactly. */
    double tolerance = of->type == 8 ? 1e-3 : half_a(of->type) || of->type == 9 ? 1e-5 : 0, worst = 0;
    size_t wrong = 0;
    for (size_t m = 0; m < M; m++) {
      for (size_t n = 0; n < N; n++) {
        double error = fabs(get_c(&mm, of->type, m * N + n) - expected(of, m, n));
        worst = fmax(worst, error);
        wrong += error > tolerance * fmax(fabs(expected(of, m, n)), 50);
      }
    }
    CHECK(wrong == 0, "case %zu, type %d, B %d: %zu wrong, by up to %g", i, of->type, of->b_quant, wrong, worst);
    close_matmul(&mm);
  }
}

static void test_defaults(void) {
  static const quant_case of = {3, "rk3588", RKNN_QUANT_TYPE_PER_CHANNEL_SYM, 0, 0, 1, 1, 0, 0, false};
  matmul mm;
  CHECK(open_case(&mm, &of), "not created");
  fill(&mm, &of);
  for (size_t n = 0; n < N; n++) b_scales[n] = 1;
  bind_all(&mm);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  size_t wrong = 0;
  for (size_t i = 0; i < M * N; i++) wrong += get_c(&mm, 3, i) != expected(&of, i / N, i % N);
  CHECK_IS(wrong, 0);
  close_matmul(&mm);
}

static void test_common_scale(void) {
  static const quant_case of = {2, "rk3588", RKNN_QUANT_TYPE_PER_CHANNEL_SYM, 0, 0, 1, 1, 0, 0, false};
  matmul mm;
  float scale = 0;
  rknn_quant_params params = {.name = "B"};
  CHECK(open_case(&mm, &of), "not created");
  CHECK_IS(rknn_matmul_get_quant_params(mm.ctx, &params, &scale), 0);
  CHECK((double)scale == 1, "default scale %g", (double)scale);
  for (size_t n = 0; n < N; n++) b_scales[n] = 0.5f;
  b_scales[17] = 2;
  CHECK_IS(set_params(mm.ctx, "B", b_scales, N, NULL, 0), 0);
  CHECK_IS(rknn_matmul_get_quant_params(mm.ctx, &params, &scale), 0);
  CHECK((double)scale == 2, "largest scale %g", (double)scale);
  CHECK_IS(rknn_matmul_get_quant_params(mm.ctx, &params, NULL), -5);
  CHECK_IS(rknn_matmul_get_quant_params(mm.ctx, NULL, &scale), -5);
  params.name[0] = 'A';
  CHECK_IS(rknn_matmul_get_quant_params(mm.ctx, &params, &scale), -5);
  close_matmul(&mm);
  CHECK(open_matmul(&mm, make_info(2, 1, 32, 32, 0, 0)), "not created");
  params.name[0] = 'B';
  CHECK_IS(rknn_matmul_get_quant_params(mm.ctx, &params, &scale), -5); /* per layer */
  close_matmul(&mm);
}

static void test_refusals(void) {
  static const quant_case of = {3, "rk3588", RKNN_QUANT_TYPE_PER_CHANNEL_SYM, 0, 0, 1, 1, 0, 0, false};
  matmul mm;
  CHECK(open_case(&mm, &of), "not created");
  for (size_t n = 0; n < N; n++) b_scales[n] = 1;
  int32_t zero[N] = {0}, one = 1;
  CHECK_IS(set_params(mm.ctx, "B", b_scales, N, zero, N), 0);
  CHECK_IS(set_params(mm.ctx, "B", b_scales, N - 1, NULL, 0), -5);
  CHECK(logged("rknn_matmul_set_quant_params, simulator: B needs 64 scales"), "log");
  CHECK_IS(set_params(mm.ctx, "B", b_scales, N, zero, 1), -5);
  CHECK_IS(set_params(mm.ctx, "B", NULL, N, NULL, 0), -5);
  CHECK_IS(set_params(mm.ctx, "B", b_scales, -1, NULL, 0), -5);
  CHECK_IS(set_params(mm.ctx, "A", b_scales, N, NULL, 0), -5);
  CHECK_IS(set_params(mm.ctx, "A", b_scales, 1, &one, 1), -5); /* symmetric */
  CHECK_IS(set_params(mm.ctx, "", b_scales, 1, NULL, 0), -5);
  CHECK_IS(set_params(mm.ctx, "BB", b_scales, N, NULL, 0), -5);
  static const float bad[] = {0, -1, (float)INFINITY, (float)NAN};
  for (size_t i = 0; i < 4; i++) {
    b_scales[5] = bad[i];
    CHECK_IS(set_params(mm.ctx, "B", b_scales, N, NULL, 0), -5);
  }
  rknn_quant_params unterminated;
  memset(&unterminated, 'B', sizeof unterminated);
  CHECK_IS(rknn_matmul_set_quant_params(mm.ctx, &unterminated), -5);
  close_matmul(&mm);

  /* Which quantization goes with which type, as the runtime reports it and as the documents say. */
  matmul none;
  quant_case wanted = {9, "rk3588", RKNN_QUANT_TYPE_PER_CHANNEL_SYM, 0, 0, 1, 1, 0, 0, false};
  CHECK(!open_case(&none, &wanted), "type 9 per channel");
  CHECK(logged("rknn_matmul_create, B_quant_type = RKNN_QUANT_TYPE_PER_CHANNEL_SYM, only supported matmul dtype : "
               "RKNN_INT8_MM_INT8_TO_INT8 and RKNN_INT8_MM_INT8_TO_INT32"),
        "log");
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_LIMITS", "documented"), 0);
  CHECK(open_case(&mm, &wanted), "type 9 per channel, documented");
  close_matmul(&mm);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_LIMITS", NULL), 0);
  static const int groups[] = {0, -32, 16, 48, 96, 256};
  for (size_t i = 0; i < 6; i++) {
    wanted = (quant_case){9, "rk3588", RKNN_QUANT_TYPE_PER_GROUP_SYM, 0, groups[i], 1, 1, 0, 0, false};
    CHECK(!open_case(&none, &wanted), "groups of %d", groups[i]);
  }
  wanted = (quant_case){9, "rk3588", RKNN_QUANT_TYPE_PER_GROUP_ASYM, 0, 32, 1, 1, 0, 0, false};
  CHECK(!open_case(&none, &wanted), "asymmetric groups");
  wanted = (quant_case){3, "rk3588", RKNN_QUANT_TYPE_PER_GROUP_SYM, 0, 32, 1, 1, 0, 0, false};
  CHECK(!open_case(&none, &wanted), "groups of type 3");
}

/* Groups that do not end where segments do: K = 8192 + 4096 in groups of 6144. */
static void test_groups_and_segments(void) {
  rknn_matmul_info info = make_info(RKNN_INT8_MM_INT8_TO_FLOAT32, 2, 12288, 32, 1, 0);
  info.B_quant_type = RKNN_QUANT_TYPE_PER_GROUP_SYM;
  info.group_size = 6144;
  matmul mm;
  CHECK_IS(npumm_sim_select("rk3588"), 0);
  CHECK(open_matmul(&mm, info), "not created");
  float scales[64];
  for (size_t i = 0; i < 64; i++) scales[i] = i < 32 ? 1 : 0.5f;
  CHECK_IS(set_params(mm.ctx, "B", scales, 64, NULL, 0), 0);
  memset(data_of(mm.a), 1, mm.io.A.size);
  memset(data_of(mm.b), 3, mm.io.B.size);
  bind_all(&mm);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  for (size_t i = 0; i < 64; i++) CHECK_IS(get_c(&mm, 9, i), 6144 * 3 + 6144 * 3 / 2);
  close_matmul(&mm);
}

/* Several chunks of rows that no L2 cache holds, so that blocks of A meet several N tiles; zero points of both. */
static void test_many_tiles(void) {
  enum { ROWS = 260, DEPTH = 2112, COLUMNS = 288 };
  rknn_matmul_info info = make_info(RKNN_INT8_MM_INT8_TO_FLOAT32, ROWS, DEPTH, COLUMNS, 0, 0);
  info.B_quant_type = RKNN_QUANT_TYPE_PER_LAYER_ASYM;
  info.AC_quant_type = 1;
  matmul mm;
  CHECK_IS(npumm_sim_select("rk3588"), 0);
  CHECK(open_matmul(&mm, info), "not created");
  float a_scale = 0.125f, b_scale = 0.25f;
  int32_t a_zero = 5, b_zero = -7;
  CHECK_IS(set_params(mm.ctx, "A", &a_scale, 1, &a_zero, 1), 0);
  CHECK_IS(set_params(mm.ctx, "B", &b_scale, 1, &b_zero, 1), 0);
  for (size_t i = 0; i < ROWS * DEPTH; i++) data_of(mm.a)[i] = (uint8_t)random_between(-128, 127);
  for (size_t i = 0; i < DEPTH * COLUMNS; i++) data_of(mm.b)[i] = (uint8_t)random_between(-128, 127);
  bind_all(&mm);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  size_t wrong = 0;
  for (size_t m = 0; m < ROWS; m += 7) { /* and 259, the last */
    for (size_t n = 0; n < COLUMNS; n++) {
      int64_t sum = 0;
      for (size_t k = 0; k < DEPTH; k++) {
        int a = (int8_t)data_of(mm.a)[m * DEPTH + k], b = (int8_t)data_of(mm.b)[k * COLUMNS + n];
        sum += (a - a_zero) * (b - b_zero);
      }
      wrong += get_c(&mm, 9, m * COLUMNS + n) != (double)(float)((double)sum / 32);
    }
  }
  CHECK(wrong == 0, "%zu wrong of many tiles", wrong);
  close_matmul(&mm);
}

/* What is reported to give zeros gives zeros when asked to. */
static void test_broken(void) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const quant_case *of = &cases[i];
    CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_BROKEN", "1"), 0);
    matmul mm;
    CHECK(open_case(&mm, of), "case %zu: not created", i);
    CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_BROKEN", NULL), 0);
    fill(&mm, of);
    set_all(&mm, of);
    memset(data_of(mm.c), 0xee, mm.io.C.size);
    bind_all(&mm);
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    size_t zeros = 0;
    for (size_t c = 0; c < M * N; c++) zeros += get_c(&mm, of->type, c) == 0;
    bool broken = (of->type == 2 && b_length(of) == N) || (of->type == 9 && of->group != 0);
    CHECK(broken ? zeros == M * N : zeros < M * N / 2, "case %zu: %zu zeros", i, zeros);
    close_matmul(&mm);
  }
}

int main(void) {
  start_log();
  test_formulas();
  test_defaults();
  test_common_scale();
  test_refusals();
  test_groups_and_segments();
  test_many_tiles();
  test_broken();
  return report("test_quant");
}
