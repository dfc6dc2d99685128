/*
 * Contexts of the simulator (rk3588, 2.3.2): attributes and return codes of create, wrong use, threads, counters.
 */
#define _GNU_SOURCE
#include <pthread.h>

#include <stddef.h>
#include <sys/resource.h>

#include "check.h"
#include "rk3588_layouts.h"

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
  CHECK(logged("rknn_matmul_create_dynamic_shape, unsupported matmul dtype : UNKNOW in this platform"), "log");
  CHECK_IS(create_code(make_info(-1, 4, 32, 32, 0, 0)), -5);
  CHECK_IS(create_code(make_info(7, 4, 32, 32, 0, 0)), -5);
  CHECK(logged("rknn_matmul_create_dynamic_shape, unsupported matmul dtype : RKNN_FLOAT16_MM_INT4_TO_FLOAT32 in this "
               "platform"),
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
  CHECK_IS(create_code(make_info(2, INT32_MAX, 32, 32, 0, 0)), -5);    /* 64 GiB of A */
  CHECK_IS(create_code(make_info(2, 1, 1 << 20, 1 << 30, 0, 0)), -5);  /* B */
  CHECK_IS(create_code(make_info(2, 1 << 16, 32, 1 << 16, 0, 0)), -5); /* C */
  CHECK_IS(create_code(make_info(10, 1024, 256, 64, 1, 1)), 0);        /* M K = 262144 */
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
  /* A struct that was not zeroed, or that of an older header: a runtime does not look; the simulator tells. */
  memset(info.reserved, 1, sizeof info.reserved);
  CHECK_IS(create_code(info), 0);
  CHECK(
      logged("rknn_matmul_create, simulator: reserved bytes of rknn_matmul_info are set: was it zeroed, or is it that "
             "of a header before 2.0.0b0"),
      "log");
  npumm_sim_configure("NPUMATMUL_SIM_STRICT", "1");
  CHECK_IS(create_code(info), -5);
  CHECK(logged("rknn_matmul_create, simulator: reserved bytes of rknn_matmul_info are set"), "log");
  npumm_sim_configure("NPUMATMUL_SIM_STRICT", NULL);
  memset(&info.iommu_domain_id, 0x5a, sizeof info - offsetof(rknn_matmul_info, iommu_domain_id));
  CHECK_IS(create_code(info), -5);
  CHECK(
      logged("rknn_matmul_create, simulator: iommu_domain_id 1515870810 is not in 0..15: was rknn_matmul_info zeroed"),
      "log");
  info = make_info(2, 4, 32, 32, 1, 0);
  info.iommu_domain_id = 15;
  CHECK_IS(create_code(info), 0);
  CHECK(!logged(""), "a line without a reason");

  /* A success writes the documented fields and leaves the rest of the caller's struct. */
  memset(&io, 0x5a, sizeof io);
  CHECK_IS(rknn_matmul_create(&ctx, &info, &io), 0);
  CHECK(io.A.name[1] == 0 && io.A.name[2] == 0x5a && io.A.dims[2] == 0x5a5a5a5a, "create wrote too much");
  CHECK_IS(rknn_matmul_destroy(ctx), 0);
}

enum { MANY = 2000 }; /* a real client holds 1,876 (facts 15) */

static uint64_t descriptors_now(void) {
  npumm_sim_counters counters;
  npumm_sim_read_counters(&counters);
  return counters.descriptors_now;
}

/* As many contexts as there are descriptors for, four each. */
static void test_many_contexts(void) {
  static rknn_matmul_ctx all[MANY];
  rknn_matmul_info info = make_info(2, 1, 32, 32, 0, 0);
  rknn_matmul_io_attr io;
  struct rlimit before, set;
  getrlimit(RLIMIT_NOFILE, &before);
  set = before;
  set.rlim_cur = before.rlim_max;
  setrlimit(RLIMIT_NOFILE, &set);
  int most = before.rlim_max >= 4 * MANY + 100 ? MANY : 200; /* the machine may forbid so many descriptors */
  for (int i = 0; i < most; i++) CHECK_IS(rknn_matmul_create(&all[i], &info, &io), 0);
  CHECK_IS(descriptors_now(), 4 * most);
  for (int i = 0; i < most; i += 2) CHECK_IS(rknn_matmul_destroy(all[i]), 0);
  for (int i = 0; i < most; i += 2) CHECK_IS(rknn_matmul_run(all[i]), -7);
  for (int i = 1; i < most; i += 2) CHECK_IS(rknn_matmul_set_core_mask(all[i], RKNN_NPU_CORE_1), 0);
  for (int i = 1; i < most; i += 2) CHECK_IS(rknn_matmul_destroy(all[i]), 0);
  CHECK_IS(descriptors_now(), 0);

  set.rlim_cur = 60;
  setrlimit(RLIMIT_NOFILE, &set);
  int count = 0, code = 0;
  while (count < 60 && (code = rknn_matmul_create(&all[count], &info, &io)) == 0) count++;
  CHECK(count > 5 && count <= 15, "%d contexts with 60 descriptors", count);
  CHECK_IS(code, -1);
  CHECK_IS(descriptors_now(), 4 * count); /* nothing is left of the one that failed */
  CHECK(logged("rknn_matmul_create, simulator: a context holds 4 file descriptors, and there are no more"), "log");
  setrlimit(RLIMIT_NOFILE, &before);
  while (count > 0) CHECK_IS(rknn_matmul_destroy(all[--count]), 0);
}

static void test_context_limit(void) {
  rknn_matmul_ctx all[8];
  rknn_matmul_info info = make_info(2, 1, 32, 32, 0, 0);
  rknn_matmul_io_attr io;
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_CONTEXTS", "7"), 0);
  for (int i = 0; i < 7; i++) CHECK_IS(rknn_matmul_create(&all[i], &info, &io), 0);
  CHECK_IS(rknn_matmul_create(&all[7], &info, &io), -1);
  CHECK(logged("rknn_matmul_create, simulator: 7 contexts live already, as many as NPUMATMUL_SIM_CONTEXTS allows"),
        "log");
  for (int i = 0; i < 7; i++) CHECK_IS(rknn_matmul_destroy(all[i]), 0);
  CHECK_IS(rknn_matmul_create(&all[7], &info, &io), 0);
  for (int i = 0; i < 7; i++) CHECK_IS(rknn_matmul_run(all[i]), -7);
  CHECK_IS(rknn_matmul_destroy(all[7]), 0);
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_CONTEXTS", NULL), 0);
}

/* A program that closes all descriptors must not make the library close those of files it opens afterwards. */
static void test_descriptors_that_the_caller_closed(void) {
  rknn_matmul_ctx ctx;
  rknn_matmul_info info = make_info(2, 1, 32, 32, 0, 0);
  rknn_matmul_io_attr io;
  int first = open("/dev/null", O_RDONLY);
  close(first);
  CHECK_IS(rknn_matmul_create(&ctx, &info, &io), 0);
  for (int i = 0; i < 4; i++) CHECK_IS(close(first + i), 0);
  for (int i = 0; i < 4; i++) CHECK_IS(open("/dev/null", O_RDONLY), first + i);
  CHECK_IS(rknn_matmul_destroy(ctx), 0);
  for (int i = 0; i < 4; i++) CHECK_IS(close(first + i), 0);
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
  CHECK(logged("Not support core mask: 64, fallback to single core auto mode"), "log");
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
  CHECK_IS(counters.descriptors_now, 3 + 4); /* of the memories and the context */
  CHECK_IS(counters.bytes_now, 4 * 4096);    /* with the hidden copy of B, without the slice */
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
  test_attributes();
  test_create_codes();
  test_context_limit();
  test_many_contexts();
  test_descriptors_that_the_caller_closed();
  test_handles();
  test_core_masks();
  test_queries();
  test_threads();
  test_counters(); /* last: everything made above must be gone */
  return report("test_contexts");
}
