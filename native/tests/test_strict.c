/*
 * Strict memory: CPU and NPU each have their copy of cacheable memory, and what is not synchronised is not seen. Every
 * promise is tried both ways: kept, the product is right; broken, it is wrong.
 */
#define _GNU_SOURCE
#include "check.h"

/* int8, M = 1, K = 32, N = 32: with A all a and B all b every element of C is 32 a b. */
static int32_t first_of(const rknn_tensor_mem *c) {
  int32_t value;
  memcpy(&value, data_of(c), sizeof value);
  return value;
}

static rknn_matmul_info small(int b_layout) { return make_info(RKNN_INT8_MM_INT8_TO_INT32, 1, 32, 32, b_layout, 0); }

static void fill(const rknn_tensor_mem *mem, int value, uint32_t bytes) { memset(data_of(mem), value, bytes); }

/* What the runtime does by itself: A and C in run, native B in set_io_mem. */
static void test_automatic(void) {
  for (int b_layout = 0; b_layout <= 2; b_layout++) {
    matmul mm;
    CHECK(open_matmul(&mm, small(b_layout)), "not created");
    fill(mm.a, 1, mm.io.A.size);
    fill(mm.b, 1, mm.io.B.size);
    bind_all(&mm);
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    CHECK_IS(first_of(mm.c), 32);
    fill(mm.a, 2, mm.io.A.size); /* seen at the next run */
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    CHECK_IS(first_of(mm.c), 64);

    fill(mm.b, 3, mm.io.B.size); /* not seen: neither bound nor synchronised again */
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    CHECK_IS(first_of(mm.c), 64);
    CHECK_IS(rknn_mem_sync(mm.ctx, mm.b, RKNN_MEMORY_SYNC_TO_DEVICE), 0);
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    CHECK_IS(first_of(mm.c), b_layout == 1 ? 192 : 64); /* the hidden copy of a normal B stays */
    CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.b, &mm.io.B), 0);
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    CHECK_IS(first_of(mm.c), 192);
    fill(mm.b, 4, mm.io.B.size);
    CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.b, &mm.io.B), 0);
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    CHECK_IS(first_of(mm.c), 256);
    close_matmul(&mm);
  }
}

/* One arena for a tensor of each kind; slices of it are left out of all maintenance. */
static void test_slices(void) {
  for (int synchronised = 0; synchronised <= 1; synchronised++) {
    for (int which = 0; which < 3; which++) { /* A, B, C */
      matmul mm;
      CHECK(open_matmul(&mm, small(1)), "not created");
      rknn_tensor_mem *whole[] = {mm.a, mm.b, mm.c}, **used[] = {&mm.a, &mm.b, &mm.c};
      rknn_tensor_mem *arena = rknn_create_mem(mm.ctx, 8192);
      rknn_tensor_mem *slice = rknn_create_mem_from_fd(mm.ctx, arena->fd, arena->virt_addr, 1024, 4096);
      *used[which] = slice;
      fill(mm.a, 1, mm.io.A.size);
      fill(mm.b, 1, mm.io.B.size);
      CHECK_IS(rknn_mem_sync(mm.ctx, slice, RKNN_MEMORY_SYNC_BIDIRECTIONAL), 0); /* does nothing */
      if (synchronised && which < 2) CHECK_IS(rknn_mem_sync(mm.ctx, arena, RKNN_MEMORY_SYNC_TO_DEVICE), 0);
      bind_all(&mm);
      CHECK_IS(rknn_matmul_run(mm.ctx), 0);
      if (synchronised && which == 2) CHECK_IS(rknn_mem_sync(mm.ctx, arena, RKNN_MEMORY_SYNC_FROM_DEVICE), 0);
      CHECK_IS(first_of(mm.c), synchronised ? 32 : 0);
      *used[which] = whole[which];
      CHECK_IS(rknn_destroy_mem(mm.ctx, slice), 0);
      CHECK_IS(rknn_destroy_mem(mm.ctx, arena), 0);
      close_matmul(&mm);
    }
  }
}

/* A normal B through a slice is packed from what the device has. */
static void test_normal_slice(void) {
  matmul mm;
  CHECK(open_matmul(&mm, small(0)), "not created");
  rknn_tensor_mem *slice = rknn_create_mem_from_fd(mm.ctx, mm.b->fd, mm.b->virt_addr, 1024, 0);
  fill(mm.a, 1, mm.io.A.size);
  fill(mm.b, 1, mm.io.B.size);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &mm.io.A), 0);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.c, &mm.io.C), 0);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, slice, &mm.io.B), 0);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  CHECK_IS(first_of(mm.c), 0);
  CHECK_IS(rknn_mem_sync(mm.ctx, mm.b, RKNN_MEMORY_SYNC_TO_DEVICE), 0);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, slice, &mm.io.B), 0);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  CHECK_IS(first_of(mm.c), 32);
  CHECK_IS(rknn_destroy_mem(mm.ctx, slice), 0);
  close_matmul(&mm);
}

/* To the device go changed lines only: results that the CPU has not fetched yet survive, and both directions work. */
static void test_lines(void) {
  matmul mm;
  CHECK(open_matmul(&mm, small(1)), "not created");
  rknn_tensor_mem *arena = rknn_create_mem(mm.ctx, 4096);
  rknn_tensor_mem *slice = rknn_create_mem_from_fd(mm.ctx, arena->fd, arena->virt_addr, 128, 1024);
  fill(mm.a, 1, mm.io.A.size);
  fill(mm.b, 1, mm.io.B.size);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &mm.io.A), 0);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.b, &mm.io.B), 0);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, slice, &mm.io.C), 0);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  uint8_t *bytes = arena->virt_addr;
  bytes[0] = 77; /* in another line than C */
  CHECK_IS(first_of(slice), 0);
  CHECK_IS(rknn_mem_sync(mm.ctx, arena, RKNN_MEMORY_SYNC_BIDIRECTIONAL), 0);
  CHECK_IS(first_of(slice), 32);
  CHECK_IS(bytes[0], 77);
  bytes[0] = 78;
  CHECK_IS(rknn_mem_sync(mm.ctx, arena, RKNN_MEMORY_SYNC_FROM_DEVICE), 0);
  CHECK_IS(bytes[0], 77); /* dropping a line loses what the CPU wrote */
  CHECK_IS(rknn_destroy_mem(mm.ctx, slice), 0);
  CHECK_IS(rknn_destroy_mem(mm.ctx, arena), 0);
  close_matmul(&mm);
}

/* Memory that is not cacheable has one copy. */
static void test_non_cacheable(void) {
  matmul mm;
  CHECK(open_matmul(&mm, small(1)), "not created");
  rknn_tensor_mem *arena = rknn_create_mem2(mm.ctx, 8192, RKNN_FLAG_MEMORY_NON_CACHEABLE);
  rknn_tensor_mem *slice = rknn_create_mem_from_fd(mm.ctx, arena->fd, arena->virt_addr, 1024, 4096);
  fill(mm.a, 1, mm.io.A.size);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &mm.io.A), 0);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, slice, &mm.io.B), 0);
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.c, &mm.io.C), 0);
  fill(slice, 5, mm.io.B.size);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  CHECK_IS(first_of(mm.c), 160);
  CHECK_IS(rknn_destroy_mem(mm.ctx, slice), 0);
  CHECK_IS(rknn_destroy_mem(mm.ctx, arena), 0);
  close_matmul(&mm);
}

/* Turned off again, new memory is one copy and nothing needs synchronising. */
static void test_off(void) {
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_STRICT", "0"), 0);
  matmul mm;
  CHECK(open_matmul(&mm, small(1)), "not created");
  bind_all(&mm);
  fill(mm.a, 1, mm.io.A.size);
  fill(mm.b, 1, mm.io.B.size);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  CHECK_IS(first_of(mm.c), 32);
  close_matmul(&mm);
}

int main(void) {
  start_log();
  CHECK_IS(npumm_sim_configure("NPUMATMUL_SIM_STRICT", "1"), 0);
  test_automatic();
  test_slices();
  test_normal_slice();
  test_lines();
  test_non_cacheable();
  test_off();
  return report("test_strict");
}
