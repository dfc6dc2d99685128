/*
 * One library per version of the vendor's runtime: its symbols, prototypes, struct sizes, limits, log lines. The folder
 * with the libraries is the program's argument; it is compiled without the simulator's sources:
 *   gcc -std=c17 -O2 -Wall -Wextra -Werror -Iinclude -o test_versions tests/test_versions.c -ldl -lm
 *   ./test_versions ../build
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/mman.h>

#include "check.h"
#include "rknn_api.h"

typedef struct {
  void *library;
  int (*create)(rknn_matmul_ctx *, void *, rknn_matmul_io_attr *);
  int (*set_io_mem)(rknn_matmul_ctx, rknn_tensor_mem *, rknn_matmul_tensor_attr *);
  int (*run)(rknn_matmul_ctx);
  int (*destroy)(rknn_matmul_ctx);
  rknn_tensor_mem *(*create_mem)(rknn_context, uint32_t);
  int (*destroy_mem)(rknn_context, rknn_tensor_mem *);
  int (*query)(rknn_context, rknn_query_cmd, void *, uint32_t);
  int (*select)(const char *);
  int (*configure)(const char *, const char *);
} runtime;

static const char *folder;

static void *symbol(const runtime *of, const char *name) { return dlsym(of->library, name); }

/* Casting through memcpy: ISO C has no conversion from an object pointer to a function pointer. */
#define FIND(of, member, name)                   \
  do {                                           \
    void *found = symbol(of, name);              \
    memcpy(&(of)->member, &found, sizeof found); \
  } while (0)

static bool open_runtime(runtime *of, const char *version) {
  char path[4096];
  snprintf(path, sizeof path, "%s/libnpumm_sim%s%s.so", folder, *version ? "_" : "", version);
  *of = (runtime){.library = dlopen(path, RTLD_NOW | RTLD_LOCAL)};
  CHECK(of->library, "%s", dlerror());
  if (!of->library) return false;
  FIND(of, create, "rknn_matmul_create");
  FIND(of, set_io_mem, "rknn_matmul_set_io_mem");
  FIND(of, run, "rknn_matmul_run");
  FIND(of, destroy, "rknn_matmul_destroy");
  FIND(of, create_mem, "rknn_create_mem");
  FIND(of, destroy_mem, "rknn_destroy_mem");
  FIND(of, query, "rknn_query");
  FIND(of, select, "npumm_sim_select");
  FIND(of, configure, "npumm_sim_configure");
  return of->create && of->set_io_mem && of->run && of->destroy && of->create_mem && of->destroy_mem && of->query &&
         of->select && of->configure;
}

static const struct {
  const char *name;
  int number;
} versions[] = {
    {"1.5.2", 152}, {"1.6.0", 160}, {"2.0.0b0", 200}, {"2.1.0", 210}, {"2.3.0", 230}, {"2.3.2", 232}, {"", 232},
};

/* ---- symbols: facts 1.5 ------------------------------------------------------------------------------------------ */

static const struct {
  const char *name;
  int first, last;
} symbols[] = {
    {"rknn_matmul_create", 152, 999},
    {"rknn_matmul_set_io_mem", 152, 999},
    {"rknn_matmul_set_core_mask", 152, 999},
    {"rknn_matmul_run", 152, 999},
    {"rknn_matmul_destroy", 152, 999},
    {"rknn_matmul_create_dyn_shape", 200, 200},
    {"rknn_matmul_create_dynamic_shape", 210, 999},
    {"rknn_matmul_set_dynamic_shape", 200, 999},
    {"rknn_matmul_set_quant_params", 200, 999},
    {"rknn_matmul_get_quant_params", 200, 999},
    {"rknn_B_normal_layout_to_native_layout", 200, 999},
    {"rknn_create_mem", 152, 999},
    {"rknn_create_mem2", 200, 999},
    {"rknn_create_mem_from_fd", 152, 999},
    {"rknn_create_mem_from_phys", 152, 999},
    {"rknn_create_mem_from_mb_blk", 1000, 1000}, /* declared everywhere, exported nowhere */
    {"rknn_destroy_mem", 152, 999},
    {"rknn_mem_sync", 160, 999},
    {"rknn_query", 152, 999},
    {"rknn_init", 152, 999},
    {"rknn_dup_context", 152, 999},
    {"rknn_destroy", 152, 999},
    {"rknn_inputs_set", 152, 999},
    {"rknn_set_batch_core_num", 152, 999},
    {"rknn_set_core_mask", 152, 999},
    {"rknn_run", 152, 999},
    {"rknn_wait", 152, 999},
    {"rknn_outputs_get", 152, 999},
    {"rknn_outputs_release", 152, 999},
    {"rknn_set_weight_mem", 152, 999},
    {"rknn_set_internal_mem", 152, 999},
    {"rknn_set_io_mem", 152, 999},
    {"rknn_set_input_shape", 152, 999},
    {"rknn_set_input_shapes", 152, 999},
    {"rknn_register_custom_ops", 160, 999},
    {"rknn_custom_op_get_op_attr", 160, 999},
    {"npumm_sim_describe", 152, 999},
    {"npumm_sim_select", 152, 999},
    {"npumm_sim_configure", 152, 999},
    {"npumm_sim_setting", 152, 999},
    {"npumm_sim_counters_json", 152, 999},
    {"sim_matmul_create", 1000, 1000}, /* the core is hidden */
};

static void test_symbols(void) {
  for (size_t v = 0; v < sizeof versions / sizeof *versions; v++) {
    runtime of;
    if (!open_runtime(&of, versions[v].name)) continue;
    for (size_t s = 0; s < sizeof symbols / sizeof *symbols; s++) {
      bool expected = versions[v].number >= symbols[s].first && versions[v].number <= symbols[s].last;
      CHECK(!!symbol(&of, symbols[s].name) == expected, "%s: %s", versions[v].name, symbols[s].name);
    }
  }
}

/* ---- the size of rknn_matmul_info: it ends where a page without access begins ------------------------------------ */

static void *at_page_end(const void *data, size_t bytes) {
  static uint8_t *pages;
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  if (!pages) {
    pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + page, page, PROT_NONE)) abort();
  }
  memcpy(pages + page - bytes, data, bytes);
  return pages + page - bytes;
}

/* info as the version has it: 24 bytes before 2.0.0b0. */
static int create(const runtime *of, int number, rknn_matmul_info info, rknn_matmul_ctx *ctx, rknn_matmul_io_attr *io) {
  if (number >= 200) return of->create(ctx, at_page_end(&info, sizeof info), io);
  int32_t old[6] = {info.M, info.K, info.N, (int32_t)info.type, info.B_layout, info.AC_layout};
  return of->create(ctx, at_page_end(old, sizeof old), io);
}

static int create_code(const runtime *of, int number, int type, int M, int K, int N, int b_layout) {
  rknn_matmul_ctx ctx;
  rknn_matmul_io_attr io;
  int result = create(of, number, make_info((rknn_matmul_type)type, M, K, N, b_layout, 0), &ctx, &io);
  if (result == 0) CHECK_IS(of->destroy(ctx), 0);
  return result;
}

/* ---- versions and types ------------------------------------------------------------------------------------------ */

static void test_versions(void) {
  for (size_t v = 0; v < sizeof versions / sizeof *versions; v++) {
    runtime of;
    if (!open_runtime(&of, versions[v].name)) continue;
    int number = versions[v].number;
    const char *name = *versions[v].name ? versions[v].name : "2.3.2";
    rknn_matmul_ctx ctx;
    rknn_matmul_io_attr io;
    rknn_sdk_version told;
    CHECK_IS(create(&of, number, make_info(2, 1, 32, 32, 0, 0), &ctx, &io), 0);
    CHECK_IS(of.query(ctx, RKNN_QUERY_SDK_VERSION, &told, sizeof told), 0);
    CHECK(strncmp(told.api_version, name, strlen(name)) == 0 &&
              strncmp(told.api_version + strlen(name), " (npumatmul-simulator@20", 23) == 0,
          "%s tells %s", name, told.api_version);
    CHECK_IS(of.destroy(ctx), 0);

    /* A library with a version in its name stays what it is. */
    CHECK_IS(of.configure("NPUMATMUL_SIM_RUNTIME", "2.1.0"), 0);
    CHECK_IS(create(&of, number, make_info(2, 1, 32, 32, 0, 0), &ctx, &io), 0);
    CHECK_IS(of.query(ctx, RKNN_QUERY_SDK_VERSION, &told, sizeof told), 0);
    const char *now = *versions[v].name ? name : "2.1.0";
    CHECK(strncmp(told.api_version, now, strlen(now)) == 0, "%s tells %s", name, told.api_version);
    CHECK_IS(of.destroy(ctx), 0);
    CHECK_IS(of.configure("NPUMATMUL_SIM_RUNTIME", NULL), 0);

    static const int types[] = {1, 2, 3, 4, 9, 10}, since[] = {152, 152, 200, 200, 210, 160};
    for (size_t t = 0; t < 6; t++) {
      int code = create_code(&of, number, types[t], 1, 64, 64, 0);
      CHECK(code == (number >= since[t] ? 0 : -5), "%s, type %d: %d", name, types[t], code);
    }
    CHECK_IS(create_code(&of, number, 1, 1, 64, 64, 2), number == 200 ? -5 : 0); /* before: any layout is native */
    of.select("rk3576");
    CHECK_IS(create_code(&of, number, 2, 1, 64, 64, 0), number >= 200 ? 0 : -1);
    of.select(NULL);
  }
}

/* ---- limits and log lines of 1.x --------------------------------------------------------------------------------- */

static void test_recorded_lines(void) {
  runtime of;
  if (!open_runtime(&of, "1.6.0")) return;
  static const struct {
    const char *soc;
    int type, K, N;
    const char *line;
  } refused[] = {
      {"rk3588", 3, 32, 32, "rknn_matmul_create, meet unsupported matmul dtype : UNKNOW"},
      {"rk3566", 10, 33, 33, "rknn_matmul_create, meet unsupported matmul dtype : RKNN_INT4_MM_INT4_TO_INT16"},
      {"rk3588", 2, 10305, 33, "rknn_matmul_create, k > limit: 10305"},
      {"rk3566", 1, 14352, 8, "rknn_matmul_create, k > limit: 14352"},
      {"rk3562", 1, 12384, 8, "rknn_matmul_create, k > limit: 12384"},
      {"rk3588", 2, 33, 33, "rknn_matmul_create, matmul K must be align with 32!"},
      {"rk3566", 1, 24, 4, "rknn_matmul_create, matmul K must be align with 16!"},
      {"rk3588", 1, 32, 24, "rknn_matmul_create, matmul N must be align with 16!"},
      {"rk3588", 10, 32, 32, "rknn_matmul_create, matmul N must be align with 64!"},
  };
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
    of.select(refused[i].soc);
    CHECK_IS(create_code(&of, 160, refused[i].type, 4, refused[i].K, refused[i].N, 0), -5);
    CHECK(logged(refused[i].line), "%s", refused[i].line);
  }
  of.select("rk3588");
  CHECK_IS(create_code(&of, 160, 2, 1, 10304, 152064, 1), 0);
  of.select("rk3566");
  CHECK_IS(create_code(&of, 160, 1, 1, 14336, 8, 1), 0);
  of.select("rk3562");
  CHECK_IS(create_code(&of, 160, 1, 1, 12352, 8, 1), 0);
  of.select(NULL);

  if (!open_runtime(&of, "1.5.2")) return;
  CHECK_IS(create_code(&of, 152, 1, 1, 2048, 32, 0), 0);
  CHECK_IS(create_code(&of, 152, 1, 1, 2080, 32, 0), -5);
  CHECK(logged("matmul K must be less than or equal 2048!"), "log");
  CHECK_IS(create_code(&of, 152, 2, 1, 4096, 32, 0), 0);
  CHECK_IS(create_code(&of, 152, 2, 1, 4128, 32, 0), -5);
  CHECK(logged("matmul K must be less than or equal 4096!"), "log");
  CHECK_IS(create_code(&of, 152, 10, 1, 64, 64, 0), -5);
  CHECK(logged("meet unsupported matmul dtype: 10"), "log");
  CHECK_IS(create_code(&of, 152, 2, 1, 33, 64, 0), -5);
  CHECK(logged("matmul K must be align with 32!"), "log");
}

/* ---- int4: the even element is the high nibble before 2.0.0b0 ---------------------------------------------------- */

static void test_nibbles(void) {
  for (size_t v = 1; v < sizeof versions / sizeof *versions; v++) {
    runtime of;
    if (!open_runtime(&of, versions[v].name)) continue;
    for (int b_layout = 0; b_layout <= 1; b_layout++) {
      rknn_matmul_ctx ctx;
      rknn_matmul_io_attr io;
      CHECK_IS(create(&of, versions[v].number, make_info(10, 1, 32, 64, b_layout, 0), &ctx, &io), 0);
      rknn_tensor_mem *a = of.create_mem(ctx, io.A.size), *b = of.create_mem(ctx, io.B.size),
                      *c = of.create_mem(ctx, io.C.size);
      /* A is 1 at k = 0 only; B is 2 where the element's index is even and 3 where it is odd. */
      bool high_first = versions[v].number < 200;
      data_of(a)[0] = high_first ? 0x10 : 0x01;
      memset(data_of(b), high_first ? 0x23 : 0x32, io.B.size);
      CHECK_IS(of.set_io_mem(ctx, a, &io.A), 0);
      CHECK_IS(of.set_io_mem(ctx, b, &io.B), 0);
      CHECK_IS(of.set_io_mem(ctx, c, &io.C), 0);
      CHECK_IS(of.run(ctx), 0);
      int16_t values[64];
      memcpy(values, data_of(c), sizeof values);
      size_t wrong = 0; /* index k N + n, and inside a native tile n 32 + k: even for k = 0 */
      for (int n = 0; n < 64; n++) wrong += values[n] != (b_layout == 0 && n % 2 == 1 ? 3 : 2);
      CHECK(wrong == 0, "%s, B layout %d: %zu wrong", versions[v].name, b_layout, wrong);
      CHECK_IS(of.destroy_mem(ctx, a), 0);
      CHECK_IS(of.destroy_mem(ctx, b), 0);
      CHECK_IS(of.destroy_mem(ctx, c), 0);
      CHECK_IS(of.destroy(ctx), 0);
    }
  }
}

/* ---- native B deeper than a segment: slices from 2.0.0b0, one block in 1.6.0 ------------------------------------- */

static void test_segments(void) {
  enum { K = 8192 + 64, N = 64 }; /* two N tiles: with one, both forms are the same bytes */
  for (size_t v = 1; v < sizeof versions / sizeof *versions; v++) {
    runtime of;
    if (!open_runtime(&of, versions[v].name)) continue;
    rknn_matmul_ctx ctx;
    rknn_matmul_io_attr io;
    CHECK_IS(create(&of, versions[v].number, make_info(2, 1, K, N, 1, 0), &ctx, &io), 0);
    rknn_tensor_mem *a = of.create_mem(ctx, io.A.size), *b = of.create_mem(ctx, io.B.size),
                    *c = of.create_mem(ctx, io.C.size);
    memset(data_of(a), 1, K);
    memset(data_of(b), 1, (size_t)K * N / 2); /* the first half of the bytes */
    CHECK_IS(of.set_io_mem(ctx, a, &io.A), 0);
    CHECK_IS(of.set_io_mem(ctx, b, &io.B), 0);
    CHECK_IS(of.set_io_mem(ctx, c, &io.C), 0);
    CHECK_IS(of.run(ctx), 0);
    int32_t first, last;
    memcpy(&first, data_of(c), 4);
    memcpy(&last, data_of(c) + 4 * (N - 1), 4);
    /* One block: the first N tile. Slices: 8192 k's of it, and the beginning of the second tile. */
    CHECK_IS(first, versions[v].number < 200 ? K : 8192);
    CHECK_IS(last, versions[v].number < 200 ? 0 : 64);
    CHECK_IS(of.destroy_mem(ctx, a), 0);
    CHECK_IS(of.destroy_mem(ctx, b), 0);
    CHECK_IS(of.destroy_mem(ctx, c), 0);
    CHECK_IS(of.destroy(ctx), 0);
  }
}

/* ---- 2.0.0b0 ----------------------------------------------------------------------------------------------------- */

static void test_2_0_0(void) {
  runtime of, later;
  if (!open_runtime(&of, "2.0.0b0") || !open_runtime(&later, "2.3.2")) return;
  rknn_matmul_ctx ctx;
  rknn_matmul_io_attr io;
  rknn_matmul_info info = make_info(2, 1, 64, 32, 0, 0);
  info.B_quant_type = 1; /* per channel here, per layer and asymmetric later */
  int (*set_quant)(rknn_matmul_ctx, rknn_quant_params *);
  void *found = symbol(&of, "rknn_matmul_set_quant_params");
  memcpy(&set_quant, &found, sizeof found);
  float scales[32];
  for (int i = 0; i < 32; i++) scales[i] = 1;
  rknn_quant_params params = {.name = "B", .scale = scales, .scale_len = 32};
  CHECK_IS(create(&of, 200, info, &ctx, &io), 0);
  CHECK_IS(set_quant(ctx, &params), 0);
  CHECK_IS(of.destroy(ctx), 0);
  info.B_quant_type = 2;
  CHECK_IS(create(&of, 200, info, &ctx, &io), -5);
  info.B_quant_type = 1;
  found = symbol(&later, "rknn_matmul_set_quant_params");
  memcpy(&set_quant, &found, sizeof found);
  CHECK_IS(create(&later, 232, info, &ctx, &io), 0);
  CHECK_IS(set_quant(ctx, &params), -5);
  params.scale_len = 1;
  CHECK_IS(set_quant(ctx, &params), 0);
  CHECK_IS(later.destroy(ctx), 0);

  /* The helper with its two argument lists. */
  int (*pack_7)(void *, void *, int, int, int, int, rknn_matmul_type);
  int (*pack_5)(void *, void *, int, int, rknn_matmul_info *);
  found = symbol(&of, "rknn_B_normal_layout_to_native_layout");
  memcpy(&pack_7, &found, sizeof found);
  found = symbol(&later, "rknn_B_normal_layout_to_native_layout");
  memcpy(&pack_5, &found, sizeof found);
  uint8_t *in = need(64 * 96), *first = need(64 * 96), *second = need(64 * 96);
  for (size_t i = 0; i < 64 * 96; i++) in[i] = (uint8_t)random_between(0, 255);
  info = make_info(2, 1, 64, 96, 1, 0);
  CHECK_IS(pack_7(in, first, 64, 96, 32, 32, RKNN_INT8_MM_INT8_TO_INT32), 0);
  CHECK_IS(pack_5(in, second, 64, 96, &info), 0);
  CHECK(memcmp(first, second, 64 * 96) == 0 && memcmp(first, in, 64 * 96) != 0, "helpers disagree");
  CHECK_IS(pack_7(in, first, 64, 96, 16, 32, RKNN_INT8_MM_INT8_TO_INT32), -5);
  CHECK_IS(pack_7(in, first, 64, 96, 32, 16, RKNN_INT8_MM_INT8_TO_INT32), -5);
  CHECK_IS(pack_7(NULL, first, 64, 96, 32, 32, RKNN_INT8_MM_INT8_TO_INT32), -5);
  free(in);
  free(first);
  free(second);

  int (*create_dyn)(rknn_matmul_ctx *, rknn_matmul_info *, int, rknn_matmul_shape *, rknn_matmul_io_attr *);
  found = symbol(&of, "rknn_matmul_create_dyn_shape");
  memcpy(&create_dyn, &found, sizeof found);
  rknn_matmul_shape shapes[2] = {{1, 64, 32}, {2, 64, 32}};
  rknn_matmul_io_attr attrs[2];
  info = make_info(2, 1, 1, 1, 0, 0);
  CHECK_IS(create_dyn(&ctx, &info, 2, shapes, attrs), 0);
  CHECK_IS(attrs[1].A.size, 128);
  CHECK_IS(of.destroy(ctx), 0);
}

/* ---- calls for models: only matmul is simulated ------------------------------------------------------------------ */

static void test_models(void) {
  for (size_t v = 0; v < sizeof versions / sizeof *versions; v++) {
    runtime of;
    if (!open_runtime(&of, versions[v].name)) continue;
    int (*init)(rknn_context *, void *, uint32_t, uint32_t, rknn_init_extend *);
    int (*run)(rknn_context, rknn_run_extend *);
    void *found = symbol(&of, "rknn_init");
    memcpy(&init, &found, sizeof found);
    found = symbol(&of, "rknn_run");
    memcpy(&run, &found, sizeof found);
    rknn_context context = 77;
    char model[] = "model.rknn";
    CHECK_IS(init(&context, model, 0, RKNN_FLAG_PRIOR_HIGH, NULL), -1);
    CHECK(logged("rknn_init, simulator: only the matmul API is simulated, models need a board"), "log");
    CHECK_IS(context, 77);
    CHECK_IS(run(context, NULL), -1);
    CHECK(logged("rknn_run, simulator: only the matmul API is simulated, models need a board"), "log");
    rknn_tensor_attr attr = {.index = 0};
    CHECK_IS(of.query(context, RKNN_QUERY_INPUT_ATTR, &attr, sizeof attr), -7);
    CHECK(logged("rknn_query, simulator: 0x4d is no matmul context; only the matmul API is simulated"), "log");
  }
}

/* ---- programs that were built with another version's header (facts 1.7) ------------------------------------------ */

static void test_headers_of_other_versions(void) {
  runtime old, first, new;
  if (!open_runtime(&old, "1.6.0") || !open_runtime(&first, "2.0.0b0") || !open_runtime(&new, "2.3.2")) return;
  rknn_matmul_ctx ctx;
  rknn_matmul_io_attr io;

  /* 24 bytes for a runtime that reads 64: zeros behind them are right, rubbish is seen. */
  int32_t info[16] = {4, 64, 64, RKNN_INT8_MM_INT8_TO_INT32, 1, 1};
  CHECK_IS(new.create(&ctx, info, &io), 0);
  CHECK_IS(new.destroy(ctx), 0);
  CHECK(!logged(""), "a line without a reason");
  memset(info + 6, 0x5a, sizeof info - 24);
  CHECK_IS(new.create(&ctx, info, &io), -5);
  CHECK(
      logged("rknn_matmul_create, simulator: iommu_domain_id 1515870810 is not in 0..15: was rknn_matmul_info zeroed, "
             "or is it that of a header before 2.0.0b0"),
      "log");

  /* 64 bytes for a runtime that reads 24: the quantization type becomes part of the layout. */
  rknn_matmul_info later = make_info(RKNN_INT8_MM_INT8_TO_INT32, 4, 64, 64, 0, 0);
  CHECK_IS(old.create(&ctx, &later, &io), 0);
  CHECK_IS(io.B.n_dims, 2);
  CHECK_IS(old.destroy(ctx), 0);
  CHECK(!logged(""), "a line without a reason");
  later.B_quant_type = RKNN_QUANT_TYPE_PER_CHANNEL_SYM;
  CHECK_IS(old.create(&ctx, &later, &io), 0);
  CHECK_IS(io.B.n_dims, 4);
  CHECK_IS(old.destroy(ctx), 0);
  CHECK(logged("rknn_matmul_create, simulator: the layouts are 0x20000 and 0x0, which runtime 1.6.0 takes for native"),
        "log");

  /* The helper's two forms: the fifth argument is an extent, or a pointer. */
  int (*pack_7)(void *, void *, int, int, int, int, rknn_matmul_type);
  int (*pack_5)(void *, void *, int, int, rknn_matmul_info *);
  void *found = symbol(&new, "rknn_B_normal_layout_to_native_layout");
  memcpy(&pack_7, &found, sizeof found);
  found = symbol(&first, "rknn_B_normal_layout_to_native_layout");
  memcpy(&pack_5, &found, sizeof found);
  uint8_t in[64 * 64] = {0}, out[64 * 64];
  CHECK_IS(pack_7(in, out, 64, 64, 32, 32, RKNN_INT8_MM_INT8_TO_INT32), -5);
  CHECK(
      logged("rknn_B_normal_layout_to_native_layout, simulator: info is 32, no pointer: is the program built with the "
             "header of 2.0.0b0"),
      "log");
  CHECK_IS(pack_5(in, out, 64, 64, at_page_end(&later, sizeof later)), -5);
  CHECK(logged("rknn_B_normal_layout_to_native_layout, simulator: subN"), "log");
}

/* ---- the library without a version in its name ------------------------------------------------------------------- */

static void test_runtime_setting(void) {
  runtime of;
  if (!open_runtime(&of, "")) return;
  CHECK_IS(of.configure("NPUMATMUL_SIM_RUNTIME", "1.6.0"), 0);
  CHECK_IS(create_code(&of, 160, 2, 1, 10336, 32, 0), -5);
  CHECK(logged("rknn_matmul_create, k > limit: 10336"), "log");
  rknn_tensor_mem *(*create_mem2)(rknn_context, uint64_t, uint64_t);
  void *found = symbol(&of, "rknn_create_mem2");
  memcpy(&create_mem2, &found, sizeof found);
  CHECK(!create_mem2(0, 64, RKNN_MEM_FLAG_ALLOC_NO_CONTEXT), "1.6.0 has no rknn_create_mem2");
  CHECK(logged("rknn_create_mem2, simulator: runtime 1.6.0 has no such function"), "log");
  CHECK_IS(of.configure("NPUMATMUL_SIM_RUNTIME", NULL), 0);
  CHECK_IS(create_code(&of, 232, 2, 1, 10336, 32, 0), 0);
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  folder = argv[1];
  start_log();
  test_symbols();
  test_versions();
  test_recorded_lines();
  test_nibbles();
  test_segments();
  test_2_0_0();
  test_models();
  test_headers_of_other_versions();
  test_runtime_setting();
  return report("test_versions");
}
