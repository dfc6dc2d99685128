/*
 * Nothing may crash, whatever is called with whatever: random calls with arguments that are right, nearly right and
 * wild, under several settings. Worth most under the sanitizers. The program's arguments are the number of calls, 40000
 * without one, and a seed.
 */
#define _GNU_SOURCE
#include <limits.h>

#include "check.h"

enum { CONTEXTS = 8, MEMORIES = 24, ATTRS = 8, SHAPES = 3 };

static rknn_matmul_ctx contexts[CONTEXTS];
static rknn_matmul_io_attr attrs[CONTEXTS][SHAPES];
static rknn_tensor_mem *memories[MEMORIES];
static rknn_tensor_mem *stale; /* destroyed: passed on, never followed here */
static float scales[4096];
static int32_t zero_points[4096];

static int any(const int *list, int count) { return list[random_between(0, count - 1)]; }
#define ANY(...) any((const int[]){__VA_ARGS__}, sizeof((const int[]){__VA_ARGS__}) / sizeof(int))

/* Mostly small and aligned, as otherwise nothing would ever be created: 64 suits every type. */
static int extent(void) {
  static const int odd[] = {0, -1, 1, 31, 33, INT_MAX, INT_MIN, 1 << 20, (1 << 20) + 32, 65536};
  return random_between(0, 15) ? 64 * random_between(1, 4) : odd[random_between(0, 9)];
}

static rknn_matmul_ctx some_context(void) {
  int choice = random_between(0, 19);
  if (choice == 0) return 0;
  if (choice == 1) return (rknn_matmul_ctx)random_between(0, 1 << 30) << 20;
  return contexts[random_between(0, CONTEXTS - 1)] + (choice == 2);
}

static rknn_tensor_mem *some_memory(void) {
  static rknn_tensor_mem foreign;
  int choice = random_between(0, 19);
  if (choice == 0) return NULL;
  if (choice == 1) return &foreign;
  if (choice == 2) return stale;
  return memories[random_between(0, MEMORIES - 1)];
}

static rknn_matmul_info some_info(void) {
  rknn_matmul_info info = make_info((rknn_matmul_type)random_between(-1, 16), random_between(0, 9), extent(), extent(),
                                    ANY(0, 0, 1, 1, 2, 2, 3, -1), ANY(0, 0, 1, 1, 1, 2));
  if (random_between(0, 3) == 0) info.B_quant_type = (int16_t)random_between(-1, 6);
  if (random_between(0, 3) == 0) info.AC_quant_type = (int16_t)random_between(-1, 3);
  info.group_size = (int16_t)ANY(0, 32, 32, 64, -32, 31);
  info.iommu_domain_id = ANY(0, 0, 0, 1, 15, 16, -1);
  return info;
}

static void create(void) {
  int slot = random_between(0, CONTEXTS - 1);
  rknn_matmul_info info = some_info();
  npumm_sim_select((const char *[]){"rk3588", "rk3576", "rk3566", "rk3562", NULL}[random_between(0, 4)]);
  if (contexts[slot]) rknn_matmul_destroy(contexts[slot]);
  contexts[slot] = 0;
  if (random_between(0, 2)) {
    rknn_matmul_create(&contexts[slot], &info, attrs[slot]);
    return;
  }
  rknn_matmul_shape shapes[SHAPES];
  for (int i = 0; i < SHAPES; i++) {
    shapes[i] = (rknn_matmul_shape){random_between(1, 9), info.K, info.N};
    if (random_between(0, 3) == 0) shapes[i].K = extent();
  }
  rknn_matmul_create_dynamic_shape(&contexts[slot], &info, random_between(0, SHAPES), shapes, attrs[slot]);
  rknn_matmul_set_dynamic_shape(contexts[slot], &shapes[0]);
}

static void allocate(void) {
  int slot = random_between(0, MEMORIES - 1);
  if (memories[slot]) {
    if (random_between(0, 3) || rknn_destroy_mem(some_context(), memories[slot])) rknn_destroy_mem(0, memories[slot]);
    stale = memories[slot];
    memories[slot] = NULL;
  }
  rknn_tensor_mem *of = memories[random_between(0, MEMORIES - 1)];
  uint32_t size = random_between(0, 9) ? (uint32_t)random_between(1, 1 << 16) : (uint32_t)extent();
  switch (random_between(0, 3)) {
    case 0:
      memories[slot] = rknn_create_mem2(some_context(), size, (uint64_t)ANY(0, 1, 2, 4, 0x20000, 0x20002, 64));
      break;
    case 1:
      memories[slot] = of && of->size ? rknn_create_mem_from_fd(some_context(), of->fd, of->virt_addr, size,
                                                                ANY(0, 64, 4096, 1, -1, INT_MAX))
                                      : NULL;
      break;
    default:
      memories[slot] = rknn_create_mem(some_context(), size);
  }
  if (memories[slot] && memories[slot]->flags == RKNN_TENSOR_MEMORY_FLAGS_ALLOC_INSIDE) {
    uint8_t *bytes = memories[slot]->virt_addr;
    for (uint32_t i = 0; i < size && i < 65536; i++) bytes[i] = (uint8_t)random_between(0, 255);
  }
}

/* All three tensors of one context, so that runs happen. */
static void bind_and_run(void) {
  int slot = random_between(0, CONTEXTS - 1);
  rknn_matmul_ctx ctx = contexts[slot];
  rknn_matmul_io_attr *io = &attrs[slot][0];
  rknn_matmul_tensor_attr *of[] = {&io->A, &io->B, &io->C};
  rknn_tensor_mem *made[3];
  for (int i = 0; i < 3; i++) {
    made[i] = rknn_create_mem(ctx, of[i]->size < (1u << 22) ? of[i]->size : 1);
    rknn_matmul_set_io_mem(ctx, made[i], of[i]);
  }
  rknn_matmul_run(ctx);
  for (int i = 0; i < 3; i++) {
    if (random_between(0, 3)) rknn_destroy_mem(0, made[i]);
    else rknn_mem_sync(0, made[i], (rknn_mem_sync_mode)random_between(0, 4)), rknn_destroy_mem(ctx, made[i]);
  }
}

static void set_parameters(void) {
  rknn_quant_params params = {.scale = random_between(0, 9) ? scales : NULL,
                              .scale_len = ANY(1, 1, 32, 64, 128, 192, 256, 384, 4096, -1, 0),
                              .zp = random_between(0, 1) ? zero_points : NULL};
  params.zp_len = random_between(0, 4) ? params.scale_len : random_between(-1, 64);
  params.name[0] = (char)ANY('A', 'B', 'B', 'B', 'C', 'D', 0);
  float scale;
  rknn_matmul_set_quant_params(some_context(), &params);
  rknn_matmul_get_quant_params(some_context(), &params, &scale);
}

static void disturb(void) {
  rknn_tensor_mem *mem = memories[random_between(0, MEMORIES - 1)];
  if (!mem) return;
  switch (random_between(0, 2)) {
    case 0:
      mem->offset = ANY(0, 64, -64, INT_MIN, INT_MAX);
      break;
    case 1:
      mem->size = (uint32_t)ANY(0, 64, -1, 1 << 20);
      break;
    default:
      mem->virt_addr = (void *)(uintptr_t)random_between(0, 1 << 12);
  }
}

static void ask(void) {
  union {
    rknn_sdk_version version;
    uint8_t bytes[1024];
  } answer;
  rknn_query(some_context(), (rknn_query_cmd)random_between(-1, 20), &answer, (uint32_t)ANY(4, 8, 64, 512, 0));
  rknn_matmul_set_core_mask(some_context(), (rknn_core_mask)random_between(-1, 8));
  char text[4096];
  npumm_sim_counters_json(text, (size_t)random_between(0, 4096));
}

static void change_settings(void) {
  static const char *const settings[][2] = {
      {"NPUMATMUL_SIM_STRICT", "1"},
      {"NPUMATMUL_SIM_STRICT", "0"},
      {"NPUMATMUL_SIM_ROWS", "ceil4"},
      {"NPUMATMUL_SIM_ROWS", "exact"},
      {"NPUMATMUL_SIM_OVERFLOW", "wrap"},
      {"NPUMATMUL_SIM_OVERFLOW", "error"},
      {"NPUMATMUL_SIM_BROKEN", "1"},
      {"NPUMATMUL_SIM_LIMITS", "documented"},
      {"NPUMATMUL_SIM_LIMITS", "observed"},
      {"NPUMATMUL_SIM_RUNTIME", "1.6.0"},
      {"NPUMATMUL_SIM_RUNTIME", "2.3.2"},
      {"NPUMATMUL_SIM_RUNTIME", "2.1.0"},
      {"NPUMATMUL_SIM_FAULTS", "run:prob=0.1:code=-2;create_mem:prob=0.05:code=-4"},
      {"NPUMATMUL_SIM_FAULTS", ""},
      {"NPUMATMUL_SIM_DOMAIN_BYTES", "300000"},
      {"NPUMATMUL_SIM_DOMAIN_BYTES", ""},
      {"NPUMATMUL_SIM_INT4_ROWS", "any"},
      {"NPUMATMUL_SIM_INT4_ROWS", "refused"},
      {"NPUMATMUL_SIM_TIMING", "model"},
      {"NPUMATMUL_SIM_TIMING", "off"},
      {"NPUMATMUL_SIM_TIMING_CONSTANTS", "start_seconds=9e17,bandwidth_one_core=1e-17,buffer_bytes=1"},
      {"NPUMATMUL_SIM_TIMING_CONSTANTS", ""},
  };
  int chosen = random_between(0, sizeof settings / sizeof *settings - 1);
  CHECK_IS(npumm_sim_configure(settings[chosen][0], settings[chosen][1]), 0);
}

static void set_shape(void) {
  rknn_matmul_shape shape = {random_between(1, 9), extent(), extent()};
  rknn_matmul_set_dynamic_shape(some_context(), &shape);
}

static void bind_one(void) {
  rknn_matmul_tensor_attr attr = attrs[random_between(0, CONTEXTS - 1)][random_between(0, SHAPES - 1)].A;
  attr.name[0] = (char)ANY('A', 'B', 'C', 'D');
  attr.name[1] = 0;
  rknn_matmul_set_io_mem(some_context(), some_memory(), random_between(0, 19) ? &attr : NULL);
}

static void run_one(void) { rknn_matmul_run(some_context()); }

int main(int argc, char **argv) {
  start_log();
  int calls = argc > 1 ? atoi(argv[1]) : 40000;
  if (argc > 2) random_state = (uint32_t)atoi(argv[2]);
  for (size_t i = 0; i < 4096; i++) {
    scales[i] = (float)random_between(1, 100) / 50;
    zero_points[i] = i % 7 ? random_between(-8, 7) : 0;
  }
  static void (*const actions[])(void) = {
      create, create,    allocate, allocate, bind_and_run, bind_and_run,    set_parameters,
      ask,    set_shape, bind_one, bind_one, run_one,      change_settings, disturb,
  };
  for (int i = 0; i < calls; i++) actions[random_between(0, sizeof actions / sizeof *actions - 1)]();
  npumm_sim_counters counters;
  npumm_sim_read_counters(&counters);
  CHECK(counters.macs > (uint64_t)calls * 100, "only %llu products", (unsigned long long)counters.macs);
  for (int i = 0; i < CONTEXTS; i++) rknn_matmul_destroy(contexts[i]);
  npumm_sim_configure("NPUMATMUL_SIM_FAULTS", "");
  for (int i = 0; i < MEMORIES; i++) rknn_destroy_mem(0, memories[i]);
  npumm_sim_read_counters(&counters);
  CHECK_IS(counters.contexts_now, 0);
  CHECK_IS(counters.memories_now, 0);
  CHECK_IS(counters.bytes_now, 0);
  CHECK_IS(counters.descriptors_now, 0);
  return report("test_random_calls");
}
