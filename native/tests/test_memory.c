/*
 * Memory of the simulator (rk3588, 2.3.2): set_io_mem and when data move, fields, slices, limits.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/resource.h>

#include "check.h"
#include "rk3588_layouts.h"

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
  CHECK(!rknn_create_mem_from_fd(mm.ctx, other.a->fd, other.a->virt_addr, 64, 0), "a slice in another domain");
  CHECK(!rknn_create_mem_from_fd(0, other.a->fd, other.a->virt_addr, 64, 0), "without a context: domain 0");
  rknn_tensor_mem *same = rknn_create_mem_from_fd(other.ctx, other.a->fd, other.a->virt_addr, other.a->size, 0);
  CHECK(same != NULL, "a slice in its own domain");
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, same, &mm.io.A), -5);
  CHECK_IS(rknn_matmul_set_io_mem(other.ctx, same, &other.io.A), 0);
  CHECK_IS(rknn_destroy_mem(other.ctx, same), 0);
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

  /* Pages cannot be taken away under the runtime's hands. */
  mem = rknn_create_mem(0, 8192);
  CHECK(mem && ftruncate(mem->fd, 0) != 0 && ftruncate(mem->fd, 1 << 20) != 0, "the size was changed");
  CHECK_IS(rknn_destroy_mem(0, mem), 0);

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

static int mappings(void) {
  FILE *maps = fopen("/proc/self/maps", "r");
  int lines = 0;
  for (int c; maps && (c = fgetc(maps)) != EOF;) lines += c == '\n';
  if (maps) fclose(maps);
  return lines;
}

/* Large memory begins where a large page can; whatever its pages are, it is one with its descriptor, and goes as a whole. */
static void test_large_memory(void) {
  enum { LARGE = 2 << 20, SIZE = 3 * LARGE + 4096 };
  const int before = mappings();
  for (int round = 0; round < 3; round++) {
    rknn_tensor_mem *mem = rknn_create_mem(0, SIZE);
    CHECK(mem != NULL, "no memory");
    char *own = mem->virt_addr, *seen = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, mem->fd, 0);
    CHECK(seen != MAP_FAILED && (uintptr_t)own % LARGE == 0, "%p", (void *)own);
    for (size_t i = 0; i < SIZE; i += 1024) CHECK(own[i] == 0, "byte %zu is not zero", i);
    for (size_t i = 0; i < SIZE; i += 1024) own[i] = (char)(i / 1024 + (size_t)round);
    for (size_t i = 0; i < SIZE; i += 1024) CHECK(seen[i] == own[i], "byte %zu by its descriptor", i);
    munmap(seen, SIZE);
    CHECK_IS(rknn_destroy_mem(0, mem), 0);
  }
  CHECK(mappings() <= before + 1, "%d mappings, %d before", mappings(), before);
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
  CHECK(!rknn_create_mem_from_fd(0, -1, page->virt_addr, 64, 0), "fd -1");
  CHECK(logged("failed to convert fd(-1) to handle, ret: -1, errno: 9, errstr: Bad file descriptor"), "log");
  CHECK(!rknn_create_mem_from_fd(0, 9999, page->virt_addr, 64, 0), "fd that is not open");
  CHECK(!rknn_create_mem_from_fd(0, page->fd, page->virt_addr, 0, 0), "no bytes");
  CHECK(!rknn_create_mem_from_fd(0, page->fd, page->virt_addr, 64, -1), "negative offset");
  CHECK(!rknn_create_mem_from_fd(0, page->fd, page->virt_addr, 64, 4096 - 63), "one byte beyond");
  CHECK(!rknn_create_mem_from_fd(0, page->fd, page->virt_addr, UINT32_MAX, INT32_MAX), "far beyond");
  rknn_tensor_mem *no_virt = rknn_create_mem_from_fd(0, page->fd, NULL, 4096, 0);
  CHECK(no_virt != NULL, "a slice that the CPU does not map");
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, no_virt, &mm.io.A), -4);
  CHECK_IS(rknn_destroy_mem(0, no_virt), 0);
  CHECK_IS(rknn_destroy_mem(0, page), 0);
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

int main(void) {
  start_log();
  test_binding_codes();
  test_when_data_moves();
  test_memory_fields();
  test_large_memory();
  test_slices();
  test_memory_limits();
  return report("test_memory");
}
