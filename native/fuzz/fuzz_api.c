/*
 * Bytes as a sequence of calls of the C API, with plausible and with hostile arguments: stale and made-up handles,
 * forged pointers, sizes and layouts at and beyond the limits, rewritten structs. Whatever is called, the simulator must
 * refuse or obey without leaving its memory, and must hold nothing when everything has been destroyed.
 *
 * With libFuzzer: clang -g -O1 -fsanitize=fuzzer,address,undefined, this file and simulator/[a-z]*.c. Without it
 * -DREPLAY makes a program that runs the files that it is given, to reproduce a finding or to replay the corpus.
 *
 * Arguments that the documented API cannot check are kept honest: an array is as long as its length says, and the
 * helper's buffers hold K x N elements.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "npumatmul_sim.h"
#include "rknn_abi.h"

enum {
  CONTEXTS = 8,
  MEMORIES = 16,
  CALLS_MOST = 100,
  HELPER_SIDE = 256,      /* most rows and columns that go through the helper that packs B */
  RUN_MACS_MOST = 1 << 16 /* a run beyond it takes its time and shows nothing new */
};

/* ---- the input ---------------------------------------------------------------------------------------------------- */

static const uint8_t *input, *input_end;

static unsigned byte(void) { return input < input_end ? *input++ : 0; }

static unsigned pick(unsigned count) { return byte() % count; }

static uint32_t word(void) {
  uint32_t value = 0;
  for (int i = 0; i < 4; i++) value = value << 8 | byte();
  return value;
}

#define ITEM(table) (table)[pick(sizeof(table) / sizeof *(table))]

/* A size that makes sense, a size at some edge, or any size. */
static int32_t extent(void) {
  static const int32_t edges[] = {0,     -1,    1,     INT32_MAX, INT32_MIN, 4096, 8192, 8224,  10240,
                                  10304, 10336, 65535, 65536,     65537,     33,   -32,  46368, 1 << 30};
  switch (pick(8)) {
    case 0:
      return ITEM(edges);
    case 1:
      return (int32_t)word();
    case 2:
      return (int32_t)pick(70);
    default:
      return (int32_t)(32 * (1 + pick(8)));
  }
}

/* ---- what the calls made ------------------------------------------------------------------------------------------- */

typedef struct {
  rknn_matmul_ctx handle; /* of a destroyed context after its end */
  int alive;
  rknn_matmul_io_attr attr;
  double macs; /* of the largest shape */
} context;

typedef struct {
  rknn_tensor_mem *mem; /* dangling after its end */
  int alive;
} memory;

static context contexts[CONTEXTS];
static memory memories[MEMORIES];
static rknn_tensor_mem forged; /* a struct that no call made */
static uint8_t helper_in[HELPER_SIDE * HELPER_SIDE * 2], helper_out[HELPER_SIDE * HELPER_SIDE * 2];

/* Mostly a living one, where there is any. */
static context *some_context(void) {
  const unsigned choice = byte(), first = choice % CONTEXTS;
  for (unsigned i = 0; choice < 224 && i < CONTEXTS; i++) {
    if (contexts[(first + i) % CONTEXTS].alive) return &contexts[(first + i) % CONTEXTS];
  }
  return &contexts[first];
}

static memory *some_kept_memory(void) {
  const unsigned choice = byte(), first = choice % MEMORIES;
  for (unsigned i = 0; choice < 224 && i < MEMORIES; i++) {
    if (memories[(first + i) % MEMORIES].alive) return &memories[(first + i) % MEMORIES];
  }
  return &memories[first];
}

/* Mostly a handle that was given out, living or not. */
static rknn_matmul_ctx some_handle(void) {
  const unsigned choice = pick(32);
  if (choice == 0) return 0;
  if (choice == 1) return word();
  if (choice == 2) return (rknn_matmul_ctx)word() << 32 | word();
  if (choice == 3) return some_context()->handle + pick(4) - 1;
  return some_context()->handle;
}

static rknn_tensor_mem *some_memory(void) {
  const unsigned choice = pick(32);
  rknn_tensor_mem *mem = some_kept_memory()->mem;
  if (choice == 0) return NULL;
  if (choice == 1) return &forged;
  if (choice == 2) return (rknn_tensor_mem *)(void *)helper_in;
  if (choice == 3) return (rknn_tensor_mem *)((uintptr_t)mem + 8); /* inside of a struct */
  if (choice == 4) return (rknn_tensor_mem *)(uintptr_t)word();
  return mem;
}

static void keep_memory(rknn_tensor_mem *mem) {
  if (!mem) return;
  for (int i = 0; i < MEMORIES; i++) {
    if (memories[i].alive) continue;
    memories[i] = (memory){.mem = mem, .alive = 1};
    return;
  }
  if (rknn_destroy_mem(0, mem) != RKNN_SUCC) { /* it may be told to fail: then without faults */
    npumm_sim_configure("NPUMATMUL_SIM_FAULTS", NULL);
    if (rknn_destroy_mem(0, mem) != RKNN_SUCC) abort();
  }
}

static context *free_context(void) {
  for (int i = 0; i < CONTEXTS; i++) {
    if (!contexts[i].alive) return &contexts[i];
  }
  return NULL;
}

static rknn_matmul_info some_info(void) {
  rknn_matmul_info info;
  memset(&info, 0, sizeof info);
  info.M = pick(2) ? (int32_t)(1 + pick(9)) : extent();
  info.K = extent();
  info.N = extent();
  info.type = (rknn_matmul_type)(pick(4) ? 1 + pick(15) : word());
  info.B_layout = (int16_t)(pick(8) ? pick(3) : word());
  info.AC_layout = (int16_t)(pick(8) ? pick(2) : word());
  if (pick(2)) info.B_quant_type = (int16_t)(pick(8) ? pick(6) : word());
  if (pick(4) == 0) info.AC_quant_type = (int16_t)(pick(8) ? pick(6) : word());
  if (pick(4) == 0) info.iommu_domain_id = (int32_t)(pick(2) ? pick(17) : word());
  if (pick(2)) info.group_size = (int16_t)(pick(8) ? 32 * pick(8) : word());
  if (pick(16) == 0) info.reserved[pick(34)] = (int8_t)byte();
  return info;
}

static double macs_of(int32_t M, int32_t K, int32_t N) { return (double)M * (double)K * (double)N; }

/* ---- one call each --------------------------------------------------------------------------------------------------- */

static void call_create(void) {
  context *to = free_context();
  if (!to) return;
  rknn_matmul_info info = some_info();
  rknn_matmul_ctx handle = 0;
  rknn_matmul_io_attr attr;
  memset(&attr, 0, sizeof attr);
  const unsigned missing = pick(24);
  const int code =
      rknn_matmul_create(missing == 0 ? NULL : &handle, missing == 1 ? NULL : &info, missing == 2 ? NULL : &attr);
  if (code == RKNN_SUCC) {
    *to = (context){.handle = handle, .alive = 1, .attr = attr, .macs = macs_of(info.M, info.K, info.N)};
  }
}

static void call_create_dynamic(void) {
  static const int counts[] = {0, 1, 2, 3, 4, 5, 63, 64, 65, 512, 513, -1, INT32_MIN};
  context *to = free_context();
  if (!to) return;
  rknn_matmul_info info = some_info();
  const int count = ITEM(counts);
  const size_t room = count > 0 ? (size_t)count : 0;
  rknn_matmul_shape *shapes = malloc(room ? room * sizeof *shapes : 1);
  rknn_matmul_io_attr *attrs = calloc(room ? room : 1, sizeof *attrs);
  if (!shapes || !attrs) abort();
  double most = 0;
  const int same = (int)pick(4);
  for (size_t i = 0; i < room; i++) {
    shapes[i] = (rknn_matmul_shape){.M = (int32_t)(i + 1), .K = info.K, .N = info.N};
    if (same == 0 && i < 4) shapes[i] = (rknn_matmul_shape){.M = extent(), .K = extent(), .N = extent()};
    const double macs = macs_of(shapes[i].M, shapes[i].K, shapes[i].N);
    if (macs > most) most = macs;
  }
  rknn_matmul_ctx handle = 0;
  const unsigned missing = pick(24);
  const int code = rknn_matmul_create_dynamic_shape(missing == 0 ? NULL : &handle, missing == 1 ? NULL : &info, count,
                                                    missing == 2 ? NULL : shapes, missing == 3 ? NULL : attrs);
  if (code == RKNN_SUCC) *to = (context){.handle = handle, .alive = 1, .attr = attrs[0], .macs = most};
  free(shapes);
  free(attrs);
}

static void call_set_dynamic_shape(void) {
  rknn_matmul_shape shape = {.M = (int32_t)(1 + pick(5)), .K = extent(), .N = extent()};
  const rknn_matmul_io_attr *attr = &some_context()->attr;
  if (pick(4)) { /* one that the context may have */
    shape.K = (int32_t)(attr->A.n_dims == 2 ? attr->A.dims[1] : attr->A.dims[0] * attr->A.dims[2]);
    shape.N = (int32_t)(attr->C.n_dims == 2 ? attr->C.dims[1] : attr->C.dims[0] * attr->C.dims[2]);
  }
  rknn_matmul_set_dynamic_shape(some_handle(), pick(16) ? &shape : NULL);
}

static void call_set_io_mem(void) {
  const context *of = some_context();
  rknn_matmul_tensor_attr attrs[] = {of->attr.A, of->attr.B, of->attr.C};
  rknn_matmul_tensor_attr attr = attrs[pick(3)];
  switch (pick(16)) {
    case 0:
      attr.size = word();
      break;
    case 1:
      attr.n_dims = word();
      break;
    case 2:
      attr.dims[pick(RKNN_MAX_DIMS)] = word();
      break;
    case 3:
      attr.name[pick(3)] = (char)byte();
      break;
    case 4:
      memset(attr.name, 'A', sizeof attr.name); /* without an end */
      break;
    case 5:
      attr.type = (rknn_tensor_type)word();
      break;
    default:
      break;
  }
  rknn_matmul_set_io_mem(pick(8) ? of->handle : some_handle(), some_memory(), pick(32) ? &attr : NULL);
}

static void call_run(void) {
  const rknn_matmul_ctx handle = some_handle();
  for (int i = 0; i < CONTEXTS; i++) {
    if (contexts[i].alive && contexts[i].handle == handle && contexts[i].macs > RUN_MACS_MOST) return;
  }
  rknn_matmul_run(handle);
}

static void call_bind_all_and_run(void) {
  context *of = some_context();
  if (!of->alive || of->macs > RUN_MACS_MOST) return;
  rknn_matmul_tensor_attr *attrs[] = {&of->attr.A, &of->attr.B, &of->attr.C};
  for (int i = 0; i < 3; i++) {
    rknn_tensor_mem *mem = rknn_create_mem(of->handle, attrs[i]->size);
    if (mem && mem->virt_addr) memset(mem->virt_addr, (int)byte(), attrs[i]->size);
    if (mem) rknn_matmul_set_io_mem(of->handle, mem, attrs[i]);
    keep_memory(mem);
  }
  rknn_matmul_run(of->handle);
}

static void call_destroy(void) {
  const rknn_matmul_ctx handle = some_handle();
  if (rknn_matmul_destroy(handle) != RKNN_SUCC) return;
  for (int i = 0; i < CONTEXTS; i++) {
    if (contexts[i].alive && contexts[i].handle == handle) {
      contexts[i].alive = 0;
      return;
    }
  }
  abort(); /* it destroyed what does not live */
}

static void call_create_mem(void) {
  static const uint64_t sizes[] = {0, 1, 64, 4095, 4096, 4097, 65536, UINT32_MAX, (uint64_t)UINT32_MAX + 1, UINT64_MAX};
  static const uint64_t flags[] = {0, 1, 2, 4, RKNN_MEM_FLAG_ALLOC_NO_CONTEXT, RKNN_MEM_FLAG_ALLOC_NO_CONTEXT | 6};
  const uint64_t size = pick(3) ? some_context()->attr.B.size : ITEM(sizes);
  const rknn_context ctx = some_handle();
  if (pick(2)) {
    keep_memory(rknn_create_mem(ctx, (uint32_t)size));
  } else {
    keep_memory(rknn_create_mem2(ctx, size, pick(6) ? ITEM(flags) : word()));
  }
}

/* Memory of the program's own, which may shrink and grow. Other descriptors are a tester's own files: hands off. */
static int own_memory(void) {
  static int fd = -1;
  static const off_t sizes[] = {8192, 1 << 20, 100, 0};
  if (fd < 0) fd = memfd_create("own", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, ITEM(sizes))) abort();
  return fd;
}

static void call_create_mem_from_fd(void) {
  const memory *of = some_kept_memory();
  static const int32_t offsets[] = {0, 1, 64, 4096, -1, INT32_MAX, INT32_MIN};
  int32_t fd = of->alive ? of->mem->fd : -1;
  void *virt_addr = of->alive ? of->mem->virt_addr : NULL;
  uint32_t size = of->alive ? of->mem->size / (1 + pick(3)) : 64;
  if (pick(6) == 0) fd = pick(2) ? own_memory() : (int32_t)(word() | 1u << 30);
  if (pick(6) == 0) virt_addr = (void *)(uintptr_t)(pick(2) ? 0 : word());
  if (pick(6) == 0) size = (uint32_t)extent();
  keep_memory(rknn_create_mem_from_fd(some_handle(), fd, virt_addr, size, ITEM(offsets)));
}

static void call_create_mem_from_phys(void) {
  const memory *of = some_kept_memory();
  const uint64_t address = of->alive && pick(4) ? of->mem->phys_addr : word();
  keep_memory(rknn_create_mem_from_phys(some_handle(), address, pick(2) ? NULL : helper_in, (uint32_t)extent()));
}

static void call_destroy_mem(void) {
  rknn_tensor_mem *mem = some_memory();
  if (rknn_destroy_mem(some_handle(), mem) != RKNN_SUCC) return;
  for (int i = 0; i < MEMORIES; i++) {
    if (memories[i].alive && memories[i].mem == mem) {
      memories[i].alive = 0;
      return;
    }
  }
  abort();
}

/* The struct is the caller's to write to. */
static void rewrite_memory(void) {
  const memory *of = some_kept_memory();
  rknn_tensor_mem *mem = of->alive ? of->mem : &forged;
  switch (pick(7)) {
    case 0:
      mem->virt_addr = (void *)(uintptr_t)(pick(2) ? 0 : word());
      break;
    case 1:
      mem->virt_addr = (void *)((uintptr_t)mem->virt_addr + word() % 8192);
      break;
    case 2:
      mem->fd = (int32_t)word();
      break;
    case 3:
      mem->offset = extent();
      break;
    case 4:
      mem->size = (uint32_t)extent();
      break;
    case 5:
      mem->flags = word();
      break;
    default:
      mem->priv_data = (void *)(uintptr_t)word();
      break;
  }
}

static void call_set_quant_params(void) {
  static const float scales[] = {1.0f, 0.5f, 0.0f, -1.0f, 1e-38f, 3e38f, 1e-45f};
  rknn_quant_params params;
  memset(&params, 0, sizeof params);
  params.name[0] = (char)(pick(8) ? 'A' + pick(3) : byte());
  if (pick(16) == 0) memset(params.name, 'B', sizeof params.name);
  static const int32_t lengths[] = {0, -1, 1, 2, 32, INT32_MIN};
  const rknn_matmul_io_attr *attr = &some_context()->attr;
  const uint32_t columns = attr->C.n_dims == 2 ? attr->C.dims[1] : attr->C.dims[0] * attr->C.dims[2];
  params.scale_len = pick(2) && columns < 65536 ? (int32_t)columns : ITEM(lengths);
  if (pick(4) == 0 && columns < 4096) params.scale_len = (int32_t)(columns * pick(16));
  params.zp_len = pick(2) ? params.scale_len : ITEM(lengths);
  const size_t count = params.scale_len > 0 ? (size_t)params.scale_len : 0;
  const size_t zeros = params.zp_len > 0 ? (size_t)params.zp_len : 0;
  params.scale = pick(16) ? malloc(count ? count * sizeof(float) : 1) : NULL;
  params.zp = pick(4) ? malloc(zeros ? zeros * sizeof(int32_t) : 1) : NULL;
  const float scale = ITEM(scales);
  const int32_t zero_point = pick(2) ? 0 : (int32_t)pick(256) - 128;
  for (size_t i = 0; params.scale && i < count; i++) params.scale[i] = scale;
  for (size_t i = 0; params.zp && i < zeros; i++) params.zp[i] = zero_point;
  rknn_matmul_set_quant_params(some_handle(), pick(16) ? &params : NULL);
  free(params.scale);
  free(params.zp);
}

static void call_get_quant_params(void) {
  rknn_quant_params params;
  memset(&params, 0, sizeof params);
  params.name[0] = (char)(pick(4) ? 'B' : byte());
  float scale;
  rknn_matmul_get_quant_params(some_handle(), pick(8) ? &params : NULL, pick(8) ? &scale : NULL);
}

static void call_helper(void) {
  rknn_matmul_info info = some_info();
  const int K = (int)(pick(4) ? 32 * pick(9) : pick(HELPER_SIDE + 1)) - (pick(8) == 0 ? 300 : 0);
  const int N = (int)(pick(4) ? 16 * pick(17) : pick(HELPER_SIDE + 1)) - (pick(8) == 0 ? 300 : 0);
  rknn_B_normal_layout_to_native_layout(pick(16) ? helper_in : NULL, pick(16) ? helper_out : NULL, K, N,
                                        pick(16) ? &info : NULL);
}

static void call_query(void) {
  static const uint32_t sizes[] = {512, 64, 8, 16, 0, 1, 511, 513, 1024};
  const uint32_t size = ITEM(sizes);
  void *result = malloc(size ? size : 1);
  if (!result) abort();
  rknn_query(some_handle(), (rknn_query_cmd)(pick(4) ? pick(20) : word()), pick(16) ? result : NULL, size);
  free(result);
}

static void call_mem_sync(void) {
  const rknn_context ctx = some_handle();
  rknn_mem_sync(ctx, some_memory(), (rknn_mem_sync_mode)(pick(8) ? pick(5) : word()));
}

/* ---- the simulator's own functions ----------------------------------------------------------------------------------- */

static void call_select(void) {
  static const char *const names[] = {"rk3562", "rk3566", "rk3568", "rk3576", "rk3588", NULL, "", "rk9999"};
  npumm_sim_select(ITEM(names));
}

/* Nothing that waits: a hang would only be a hang. */
static void call_configure(void) {
  /* clang-format off */
  static const char *const settings[][2] = {
      {"RUNTIME", "1.5.2"},     {"RUNTIME", "1.6.0"},       {"RUNTIME", "2.0.0b0"},
      {"RUNTIME", "2.1.0"},     {"RUNTIME", "2.3.0"},       {"RUNTIME", "2.3.2"},
      {"LIMITS", "documented"}, {"LIMITS", "observed"},     {"BROKEN", "1"},
      {"OVERFLOW", "wrap"},     {"OVERFLOW", "error"},      {"STRICT", "1"},
      {"STRICT", "0"},          {"ROWS", "ceil4"},          {"CONTEXTS", "1"},
      {"CONTEXTS", "4096"},     {"DOMAIN_BYTES", "8192"},   {"FAULTS", "run:after=1:code=-2"},
      {"FAULTS", "create_mem:prob=0.5:code=-4;destroy_mem:times=1:code=-1"},
      {"FAULTS", "set_io_mem:times=2:code=-5;create:after=2:times=1:code=-3"},
      {"TRACE", "/dev/null"},   {"TRACE", ""},              {"TRACE", "/nowhere/trace"},
      {"SOC", "rk3576"},        {"SOC", "rk3566"},          {"NONSENSE", "1"},
      {"TIMING", "model"},      {"TIMING", "off"},          {"TIMING_CONSTANTS", "start_seconds=9e17,buffer_bytes=1e-9"},
  };
  /* clang-format on */
  char name[64], text[48];
  const unsigned which = pick(sizeof settings / sizeof *settings);
  snprintf(name, sizeof name, "NPUMATMUL_SIM_%s", settings[which][0]);
  const char *value = settings[which][1];
  if (pick(6) == 0) { /* any text; for a trace it could be the path of a real file */
    size_t length = 0;
    while (length < sizeof text - 1 && length < pick(48)) text[length++] = (char)byte();
    text[length] = '\0';
    const int waits = strstr(text, "hang") || strstr(text, "delay");
    static const char *const kept[] = {"TRACE", "DOMAIN_BYTES", "TIMING"}; /* which could become "realtime" */
    int is_kept = 0;
    for (int i = 0; i < 3; i++) is_kept |= strcmp(settings[which][0], kept[i]) == 0;
    if (!waits && !is_kept) value = text;
  }
  npumm_sim_configure(name, value);
}

static void call_counters(void) {
  npumm_sim_counters counters;
  char json[600];
  npumm_sim_read_counters(pick(4) ? &counters : NULL);
  npumm_sim_counters_json(pick(2) ? json : NULL, pick(2) ? sizeof json : 0);
  if (pick(4) == 0) npumm_sim_reset_counters();
  int cores;
  npumm_sim_describe(pick(2) ? &cores : NULL);
}

static void call_set_core_mask(void) {
  rknn_matmul_set_core_mask(some_handle(), (rknn_core_mask)(pick(4) ? pick(9) : word()));
}

/* clang-format off */
static void (*const calls[])(void) = {
    call_create,           call_create,       call_create_dynamic,       call_set_dynamic_shape,
    call_set_io_mem,       call_set_io_mem,   call_bind_all_and_run,     call_bind_all_and_run,
    call_run,              call_destroy,      call_create_mem,           call_create_mem_from_fd,
    call_destroy_mem,      rewrite_memory,    call_create_mem_from_phys, call_set_quant_params,
    call_get_quant_params, call_helper,       call_query,                call_mem_sync,
    call_set_core_mask,    call_select,       call_configure,            call_counters,
};
/* clang-format on */

static void begin(void) {
  static const char *const names[] = {"RUNTIME", "LIMITS",   "BROKEN", "OVERFLOW", "STRICT", "ROWS",
                                      "SOC",     "CONTEXTS", "FAULTS", "TRACE",    "TIMING", "TIMING_CONSTANTS"};
  char name[64];
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    snprintf(name, sizeof name, "NPUMATMUL_SIM_%s", names[i]);
    npumm_sim_configure(name, NULL);
  }
  npumm_sim_configure("NPUMATMUL_SIM_DOMAIN_BYTES", "16777216"); /* 16 MiB: what is too large is refused soon */
  npumm_sim_select(NULL);
  memset(contexts, 0, sizeof contexts);
  memset(memories, 0, sizeof memories);
  memset(&forged, 0, sizeof forged);
}

/* Everything is given back, in either order of memories and contexts, and nothing may be left. */
static void end(void) {
  const int contexts_first = (int)pick(2);
  npumm_sim_configure("NPUMATMUL_SIM_FAULTS", NULL);
  npumm_sim_configure("NPUMATMUL_SIM_RUNTIME", NULL);
  for (int step = 0; step < 2; step++) {
    for (int i = 0; step == contexts_first && i < MEMORIES; i++) {
      if (memories[i].alive && rknn_destroy_mem(0, memories[i].mem) != RKNN_SUCC) abort();
    }
    for (int i = 0; step != contexts_first && i < CONTEXTS; i++) {
      if (contexts[i].alive && rknn_matmul_destroy(contexts[i].handle) != RKNN_SUCC) abort();
    }
  }
  npumm_sim_counters left;
  npumm_sim_read_counters(&left);
  if (left.contexts_now || left.memories_now || left.descriptors_now || left.bytes_now) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  input = data;
  input_end = data + size;
  begin();
  for (int i = 0; i < CALLS_MOST && input < input_end; i++) calls[pick(sizeof calls / sizeof *calls)]();
  end();
  return 0;
}

#ifdef REPLAY
int main(int argc, char **argv) {
  static uint8_t bytes[1 << 16];
  if (!freopen("/dev/null", "w", stderr) && argc > 1) return 2; /* the log lines of refused calls */
  for (int i = 1; i < argc; i++) {
    FILE *file = fopen(argv[i], "rb");
    if (!file) return 2;
    const size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    printf("%s\n", argv[i]);
    fflush(stdout);
    LLVMFuzzerTestOneInput(bytes, size);
  }
  printf("%d inputs replayed\n", argc - 1);
  return 0;
}
#endif
