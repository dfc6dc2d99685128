/*
 * The built libraries as a program finds them: libnpumm.so and a simulator are loaded, and matrix multiplications go
 * from plain matrices through the executor and back. Usage: load_libraries libnpumm.so libnpumm_sim.so...
 */
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "npumatmul_executor.h"
#include "npumatmul_kernels.h"
#include "rknn_abi.h"

/* Odd extents, padded to what the context takes. */
enum { M = 5, K = 90, N = 61, PADDED_M = 8, PADDED_K = 96, PADDED_N = 64 };

/* Pointers to data become pointers to functions without a cast that ISO C does not have. */
static void find(void *library, const char *name, void *function, size_t size) {
  void *found = dlsym(library, name);
  if (!found) {
    printf("%s is not exported\n", name);
    exit(1);
  }
  memcpy(function, &found, size);
}

#define FIND(library, name, function) find((library), (name), &(function), sizeof(function))

typedef struct {
  int (*create)(rknn_matmul_ctx *, rknn_matmul_info *, rknn_matmul_io_attr *);
  int (*destroy)(rknn_matmul_ctx);
  rknn_tensor_mem *(*create_mem)(rknn_context, uint32_t);
  int (*destroy_mem)(rknn_context, rknn_tensor_mem *);
  const char *(*describe)(int *);
  npumm_runtime runtime;
} simulator;

typedef struct {
  int (*pack)(const npumm_tiling *, const npumm_values *, const void *, int64_t, int64_t, void *, int64_t);
  int (*execute)(npumm_executor *, const npumm_placed_matmul *, const npumm_call *, npumm_report *);
  const char *(*instruction_set)(void);
} host;

/* What differs between int8 and float16 on rk3588 (facts 4.2). */
typedef struct {
  rknn_matmul_type type;
  npumm_conversion conversion;
  npumm_row_scaling scaling;
  npumm_result_type result;
  int element_bytes; /* of the plain matrices */
  int a_group, tile_n;
} kind;

static const kind kinds[] = {
    {RKNN_INT8_MM_INT8_TO_INT32, NPUMM_COPY_8, NPUMM_ROWS_UNSCALED, NPUMM_C_INT32, 1, 16, 32},
    {RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32, NPUMM_F32_TO_F16, NPUMM_ROWS_POWER_OF_TWO, NPUMM_C_FLOAT32, 4, 8, 16},
};

static int8_t a_int[M][K], b_int[K][N];
static float a_float[M][K], b_float[K][N];

static void fill(void) {
  uint32_t state = 1;
  for (int i = 0; i < M * K; i++) {
    state = state * 1664525u + 1013904223u;
    (&a_int[0][0])[i] = (int8_t)(state >> 24);
    (&a_float[0][0])[i] = (float)((int)(state >> 24) - 128) / 64.0f; /* exact in a half */
  }
  for (int i = 0; i < K * N; i++) {
    state = state * 1664525u + 1013904223u;
    (&b_int[0][0])[i] = (int8_t)(state >> 24);
    (&b_float[0][0])[i] = (float)((int)(state >> 24) - 128) / 64.0f;
  }
}

/* Elements of C that differ from a plain sum; the floats here are multiples of 2^-12 whose sums float32 holds exactly. */
static int wrong_elements(const kind *of, const void *c) {
  int wrong = 0;
  for (int m = 0; m < M; m++) {
    for (int n = 0; n < N; n++) {
      int64_t sum = 0;
      double float_sum = 0;
      for (int k = 0; k < K; k++) {
        sum += (int64_t)a_int[m][k] * b_int[k][n];
        float_sum += (double)a_float[m][k] * b_float[k][n];
      }
      if (of->result == NPUMM_C_INT32) {
        wrong += ((const int32_t *)c)[m * N + n] != sum;
      } else {
        wrong += ((const float *)c)[m * N + n] != float_sum;
      }
    }
  }
  return wrong;
}

static int multiply(const simulator *sim, const host *host, const kind *of) {
  rknn_matmul_info info;
  memset(&info, 0, sizeof info);
  info.M = PADDED_M;
  info.K = PADDED_K;
  info.N = PADDED_N;
  info.type = of->type;
  info.B_layout = RKNN_MM_LAYOUT_NATIVE;
  info.AC_layout = RKNN_MM_LAYOUT_NATIVE;
  npumm_context context = {0, 0, 0, 0};
  npumm_shape shape = {.context = &context,
                       .padded_m = PADDED_M,
                       .padded_k = PADDED_K,
                       .padded_n = PADDED_N,
                       .a_group = of->a_group,
                       .c_group = 4};
  memset(&shape.io_attr, 0, sizeof shape.io_attr);
  if (sim->create(&context.handle, &info, &shape.io_attr) != RKNN_SUCC) return -1;
  rknn_tensor_mem *a = sim->create_mem(context.handle, shape.io_attr.A.size);
  rknn_tensor_mem *b = sim->create_mem(context.handle, shape.io_attr.B.size);
  rknn_tensor_mem *c = sim->create_mem(context.handle, shape.io_attr.C.size);
  void *result = calloc(M * N, 4);
  int wrong = -1;
  if (a && b && c && result) {
    /* B's tiles have the columns of the matrix as rows. */
    const npumm_tiling tiling = {.rows = N,
                                 .cols = K,
                                 .padded_rows = PADDED_N,
                                 .padded_cols = PADDED_K,
                                 .tile_rows = of->tile_n,
                                 .tile_cols = 32};
    const int integers = of->result == NPUMM_C_INT32;
    const void *from = integers ? (const void *)b_int : (const void *)b_float;
    const int bytes = of->element_bytes;
    const npumm_values values = {.conversion = of->conversion};
    int code = host->pack(&tiling, &values, from, bytes, (int64_t)N * bytes, b->virt_addr, b->size);
    if (code == NPUMM_OK && sim->runtime.mem_sync) {
      code = sim->runtime.mem_sync(context.handle, b, RKNN_MEMORY_SYNC_TO_DEVICE);
    }
    const npumm_range rows = {0, M}, columns = {0, N};
    const npumm_slice slice = {.k = {0, K}};
    const int32_t core = 0;
    npumm_shape *shapes[] = {&shape};
    const npumm_placed_matmul placed = {.runtime = &sim->runtime,
                                        .activation = {.conversion = of->conversion, .scaling = of->scaling},
                                        .c_type = of->result,
                                        .row_images = 1,
                                        .common_scale = 1,
                                        .m_count = 1,
                                        .slice_count = 1,
                                        .n_count = 1,
                                        .core_count = 1,
                                        .a_count = 1,
                                        .m_ranges = &rows,
                                        .n_ranges = &columns,
                                        .slices = &slice,
                                        .tile_cores = &core,
                                        .a_memories = &a,
                                        .c_memories = &c,
                                        .b_memories = &b,
                                        .shapes = shapes};
    const npumm_call call = {.a = integers ? (const void *)a_int : (const void *)a_float,
                             .a_row_stride = (int64_t)K * bytes,
                             .a_col_stride = bytes,
                             .out = result,
                             .out_row_stride = (int64_t)N * 4,
                             .out_type = integers ? NPUMM_INT32 : NPUMM_FLOAT32};
    npumm_report report = {.step = NPUMM_STEP_NONE};
    if (code == 0) code = host->execute(NULL, &placed, &call, &report);
    if (code == 0 && report.run_calls == 1) wrong = wrong_elements(of, result);
  }
  free(result);
  if (a && sim->destroy_mem(context.handle, a) != RKNN_SUCC) wrong = -1;
  if (b && sim->destroy_mem(context.handle, b) != RKNN_SUCC) wrong = -1;
  if (c && sim->destroy_mem(context.handle, c) != RKNN_SUCC) wrong = -1;
  if (sim->destroy(context.handle) != RKNN_SUCC) wrong = -1;
  return wrong;
}

static void *load(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    printf("%s\n", dlerror());
    exit(1);
  }
  return library;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  host host;
  void *library = load(argv[1]);
  FIND(library, "npumm_pack", host.pack);
  FIND(library, "npumm_execute", host.execute);
  FIND(library, "npumm_instruction_set", host.instruction_set);
  printf("host kernels: %s\n", host.instruction_set());
  fill();
  int failed = 0, passed = 0;
  for (int i = 2; i < argc; i++) {
    simulator sim;
    library = load(argv[i]);
    FIND(library, "rknn_matmul_create", sim.create);
    FIND(library, "rknn_matmul_destroy", sim.destroy);
    FIND(library, "rknn_create_mem", sim.create_mem);
    FIND(library, "rknn_destroy_mem", sim.destroy_mem);
    FIND(library, "rknn_matmul_set_io_mem", sim.runtime.set_io_mem);
    FIND(library, "rknn_matmul_run", sim.runtime.run);
    FIND(library, "npumm_sim_describe", sim.describe);
    sim.runtime.mem_sync = NULL; /* since 1.6.0 */
    sim.runtime.set_dynamic_shape = NULL;
    if (dlsym(library, "rknn_mem_sync")) FIND(library, "rknn_mem_sync", sim.runtime.mem_sync);
    int cores;
    printf("%s: simulates %s\n", argv[i], sim.describe(&cores));
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
      const int wrong = multiply(&sim, &host, &kinds[k]);
      if (wrong) printf("type %d: %d elements are wrong\n", (int)kinds[k].type, wrong);
      failed += wrong != 0;
      passed += wrong == 0;
    }
  }
  printf("load_libraries: %d passed, %d failed\n", passed, failed);
  return failed != 0;
}
