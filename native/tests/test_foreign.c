/*
 * Memory that a program made itself, given to rknn_create_mem_from_fd (rk3588, 2.3.2): memfds and files, what is
 * checked, and files that shrink while they are wrapped.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "check.h"
#include "rk3588_layouts.h"

enum { SIZE = 3 * 65536 };

/* Someone's own memory: a descriptor, and the mapping through which it is filled. */
typedef struct {
  int fd;
  uint8_t *pages;
} own;

static own own_memory(unsigned flags) {
  own made = {.fd = memfd_create("own", MFD_CLOEXEC | flags)};
  if (made.fd < 0 || ftruncate(made.fd, SIZE)) abort();
  made.pages = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, made.fd, 0);
  if (made.pages == MAP_FAILED) abort();
  return made;
}

static own own_file(void) {
  char name[] = "/tmp/npumm_foreign_XXXXXX";
  own made = {.fd = mkstemp(name)};
  if (made.fd < 0 || ftruncate(made.fd, SIZE)) abort();
  unlink(name);
  made.pages = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, made.fd, 0);
  if (made.pages == MAP_FAILED) abort();
  return made;
}

static void give_up(own *memory) {
  munmap(memory->pages, SIZE);
  close(memory->fd);
}

static uint64_t domain_bytes(void) {
  npumm_sim_counters counters;
  npumm_sim_read_counters(&counters);
  return counters.bytes_now;
}

/* A matmul whose three tensors lie in one foreign memory, at odd offsets. */
static void wrap_all(matmul *mm, rknn_matmul_info info, const own *memory) {
  memset(mm, 0, sizeof *mm);
  mm->info = info;
  CHECK_IS(rknn_matmul_create(&mm->ctx, &mm->info, &mm->io), 0);
  mm->a = rknn_create_mem_from_fd(mm->ctx, memory->fd, memory->pages, mm->io.A.size, 3 * 64);
  mm->b = rknn_create_mem_from_fd(mm->ctx, memory->fd, memory->pages, mm->io.B.size, 65536);
  mm->c = rknn_create_mem_from_fd(mm->ctx, memory->fd, memory->pages, mm->io.C.size, 2 * 65536 + 4);
  if (!mm->a || !mm->b || !mm->c) abort();
}

static void test_products_in(own memory) {
  uint64_t before = domain_bytes();
  for (int b_layout = 0; b_layout < 3; b_layout++) {
    for (int ac_layout = 0; ac_layout < 2; ac_layout++) {
      matmul mm;
      wrap_all(&mm, make_info(2, 4, 96, 64, b_layout, ac_layout), &memory);
      CHECK_IS(mm.b->offset, 65536);
      CHECK_IS(mm.b->flags, RKNN_TENSOR_MEMORY_FLAGS_FROM_FD);
      CHECK(mm.b->virt_addr == memory.pages, "virt_addr is the program's");
      CHECK_IS(wrong_products(&mm, &layouts[1], 127), 0);
      CHECK_IS(wrong_products(&mm, &layouts[1], 127), 0);                   /* with other numbers in the same place */
      CHECK_IS(domain_bytes() - before, SIZE + (b_layout == 1 ? 0 : 8192)); /* once, and the packed copy of B */
      close_matmul(&mm);
      CHECK_IS(domain_bytes(), before);
    }
  }
  give_up(&memory);
}

/* The program may close its descriptor and its mapping: the memory lives on, and its number may be another file's. */
static void test_descriptor_closed_after_wrapping(void) {
  own memory = own_memory(0);
  matmul mm;
  wrap_all(&mm, make_info(2, 4, 64, 32, 1, 0), &memory);
  int number = memory.fd;
  close(number);
  CHECK_IS(open("/dev/null", O_RDONLY), number);
  CHECK_IS(wrong_products(&mm, &layouts[1], 127), 0);
  close_matmul(&mm);
  CHECK(fcntl(number, F_GETFD) >= 0, "someone else's file was closed");
  give_up(&memory);
}

/* Whoever kept a duplicate of its descriptor has the pages still. */
static void test_memory_of_the_library_that_was_destroyed(void) {
  rknn_tensor_mem *before = rknn_create_mem(0, SIZE);
  own memory = {.fd = dup(before->fd)};
  memory.pages = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd, 0);
  CHECK_IS(rknn_destroy_mem(0, before), 0);
  test_products_in(memory);
}

/* ---- what is checked --------------------------------------------------------------------------------------------- */

static void refused(int fd, uint32_t size, int32_t offset, const char *line) {
  CHECK(!rknn_create_mem_from_fd(0, fd, (void *)(uintptr_t)4096, size, offset), "fd %d, %u bytes at %d", fd, size,
        offset);
  CHECK(logged(line), "no line: %s", line);
}

static void test_what_is_refused(void) {
  own memory = own_memory(0);
  char nothing[80], line[128];
  int ends[2], null = open("/dev/null", O_RDWR), folder = open("/tmp", O_RDONLY);
  snprintf(line, sizeof line, "/proc/self/fd/%d", memory.fd);
  int unreadable[] = {open(line, O_PATH), open(line, O_WRONLY)}, empty = memfd_create("empty", MFD_CLOEXEC);
  if (pipe(ends)) abort();
  const int nothing_to_map[] = {null, folder, empty, ends[0]};
  for (size_t i = 0; i < sizeof nothing_to_map / sizeof *nothing_to_map; i++) {
    snprintf(nothing, sizeof nothing, "rknn_create_mem_from_fd, simulator: fd %d is nothing that can be mapped",
             nothing_to_map[i]);
    refused(nothing_to_map[i], 64, 0, nothing);
    close(nothing_to_map[i]);
  }
  for (int i = 0; i < 2; i++) {
    snprintf(line, sizeof line, "rknn_create_mem_from_fd, simulator: fd %d is not open for reading", unreadable[i]);
    refused(unreadable[i], 64, 0, line);
    close(unreadable[i]);
  }
  close(ends[1]);
  refused(-1, 64, 0, "rknn_create_mem_from_fd, simulator: fd -1 is not open for reading");
  refused(memory.fd, 64, -64, "rknn_create_mem_from_fd, simulator: offset -64 and size 64 reach outside");
  refused(memory.fd, SIZE, 1, "rknn_create_mem_from_fd, simulator: offset 1 and size 196608 reach outside");
  refused(memory.fd, UINT32_MAX, INT32_MAX, "rknn_create_mem_from_fd, simulator: offset 2147483647");
  refused(memory.fd, 0, 0, "rknn_create_mem_from_fd, invalid size: 0");

  /* Its whole size has to fit into the domain's addresses. */
  npumm_sim_configure("NPUMATMUL_SIM_DOMAIN_BYTES", "100000");
  snprintf(line, sizeof line, "rknn_create_mem_from_fd, simulator: fd %d does not fit into what is left", memory.fd);
  refused(memory.fd, 64, 0, line);
  npumm_sim_configure("NPUMATMUL_SIM_DOMAIN_BYTES", NULL);

  npumm_sim_configure("NPUMATMUL_SIM_FOREIGN", "refuse");
  snprintf(line, sizeof line, "rknn_create_mem_from_fd, simulator: fd %d is no memory of this library", memory.fd);
  refused(memory.fd, 64, 0, line);
  rknn_tensor_mem *mine = rknn_create_mem(0, 4096),
                  *slice = rknn_create_mem_from_fd(0, mine->fd, mine->virt_addr, 64, 0);
  CHECK(slice, "a slice of the runtime's own memory");
  npumm_sim_configure("NPUMATMUL_SIM_FOREIGN", NULL);
  CHECK_IS(rknn_destroy_mem(0, slice), 0);
  CHECK_IS(rknn_destroy_mem(0, mine), 0);
  give_up(&memory);
}

/* One memory, one domain (Q17), as with the runtime's own. */
static void test_one_domain(void) {
  own memory = own_memory(0);
  rknn_matmul_info info = make_info(2, 4, 64, 32, 1, 0);
  rknn_matmul_io_attr io;
  rknn_matmul_ctx ctx;
  info.iommu_domain_id = 2;
  CHECK_IS(rknn_matmul_create(&ctx, &info, &io), 0);
  rknn_tensor_mem *first = rknn_create_mem_from_fd(ctx, memory.fd, memory.pages, 64, 0);
  CHECK(first && !rknn_create_mem_from_fd(0, memory.fd, memory.pages, 64, 0), "in two domains");
  CHECK_IS(rknn_destroy_mem(ctx, first), 0);
  first = rknn_create_mem_from_fd(0, memory.fd, memory.pages, 64, 0);
  CHECK(first, "it is in none any more");
  CHECK_IS(rknn_destroy_mem(ctx, first), 0);
  CHECK_IS(rknn_matmul_destroy(ctx), 0);
  give_up(&memory);
}

/* A and B may be read-only, C may not. */
static void test_permissions(void) {
  own memory = own_memory(MFD_ALLOW_SEALING), file = own_file();
  char name[32];
  snprintf(name, sizeof name, "/proc/self/fd/%d", file.fd);
  int read_only = open(name, O_RDONLY), appending = open(name, O_RDWR | O_APPEND);
  const int fds[] = {memory.fd, read_only, appending};
  munmap(memory.pages, SIZE);
  if (fcntl(memory.fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK)) abort();
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 4, 64, 32, 1, 0)), "not created");
  bind_all(&mm);
  for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
    rknn_tensor_mem *wrapped = rknn_create_mem_from_fd(mm.ctx, fds[i], file.pages, 4096, 0);
    CHECK(wrapped, "%zu", i);
    CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, wrapped, &mm.io.C), -5);
    CHECK(logged("rknn_matmul_set_io_mem, simulator: C cannot be written to fd"), "log");
    CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, wrapped, &mm.io.A), 0);
    CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, wrapped, &mm.io.B), 0);
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    CHECK_IS(rknn_destroy_mem(mm.ctx, wrapped), 0);
  }
  close_matmul(&mm);
  close(memory.fd);
  close(read_only);
  close(appending);
  give_up(&file);
}

/* ---- files that shrink ------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t signals;

static void count_signal(int number) {
  (void)number;
  signals++;
}

/* Whichever tensor loses its end, the run fails, and works again when the end is back. */
static void test_shrinking(own memory) {
  matmul mm;
  wrap_all(&mm, make_info(2, 4, 64, 32, 1, 0), &memory);
  CHECK_IS(wrong_products(&mm, &layouts[1], 127), 0);
  const rknn_tensor_mem *tensors[] = {mm.a, mm.b, mm.c};
  for (int i = 0; i < 3; i++) {
    off_t end = tensors[i]->offset + (off_t)tensors[i]->size;
    const off_t cuts[] = {end - 1, tensors[i]->offset, 0};
    for (int cut = 0; cut < 3; cut++) {
      if (ftruncate(memory.fd, cuts[cut])) abort();
      CHECK_IS(rknn_matmul_run(mm.ctx), -1);
      CHECK(logged("rknn_matmul_run, simulator: the file of fd"), "log");
      CHECK_IS(lseek(memory.fd, 0, SEEK_END), cuts[cut]);
    }
    if (ftruncate(memory.fd, SIZE)) abort();
    CHECK_IS(wrong_products(&mm, &layouts[1], 127), 0);
  }
  /* Packing a normal B reads it in set_io_mem. */
  matmul normal;
  wrap_all(&normal, make_info(2, 4, 64, 32, 0, 0), &memory);
  if (ftruncate(memory.fd, 65536 + 5)) abort();
  CHECK_IS(rknn_matmul_set_io_mem(normal.ctx, normal.b, &normal.io.B), -1);
  CHECK(logged("rknn_matmul_set_io_mem, simulator: the file of fd"), "log");
  CHECK(!rknn_create_mem_from_fd(0, memory.fd, memory.pages, SIZE, 0), "more than is left");
  if (ftruncate(memory.fd, SIZE)) abort();
  close_matmul(&normal);
  close_matmul(&mm);
  CHECK_IS(signals, 0);
  give_up(&memory);
}

/* Programs that become daemons close every descriptor, also those of the library; the numbers are other files' then. */
static void test_descriptor_of_the_library_closed(void) {
  own memory = own_file(), other = own_file();
  matmul mm;
  wrap_all(&mm, make_info(2, 4, 64, 32, 1, 0), &memory);
  bind_all(&mm);
  memset(other.pages, 'v', SIZE);
  int kept = fcntl(other.fd, F_DUPFD, 500), log = fcntl(STDERR_FILENO, F_DUPFD, 500);
  if (kept < 0 || log < 0) abort();
  for (int fd = STDERR_FILENO + 1; fd < 500; fd++) {
    if (fd != fileno(log_file) && fcntl(fd, F_GETFD) >= 0 && dup2(kept, fd) != fd) abort();
  }
  CHECK_IS(rknn_matmul_run(mm.ctx), -1);
  CHECK(logged("rknn_matmul_run, simulator: the program closed the descriptor by which"), "log");
  close_matmul(&mm);
  for (int i = 0; i < SIZE; i++) {
    if (other.pages[i] == 'v') continue;
    CHECK(false, "byte %d of someone else's file was changed", i);
    break;
  }
  close(kept);
  close(log);
  munmap(memory.pages, SIZE);
  munmap(other.pages, SIZE);
}

typedef struct {
  int fd;
  atomic_bool stop;
} shrinker;

static void *shrink_and_grow(void *argument) {
  shrinker *with = argument;
  for (off_t size = 0; !with->stop; size = (size + 40000) % SIZE) {
    if (ftruncate(with->fd, size) || ftruncate(with->fd, SIZE)) abort();
  }
  return NULL;
}

/* At whatever moment it shrinks: a run ends well or with -1. */
static void test_shrinking_meanwhile(void) {
  own memory = own_memory(0);
  matmul mm;
  wrap_all(&mm, make_info(2, 4, 512, 64, 1, 0), &memory);
  bind_all(&mm);
  shrinker with = {.fd = memory.fd};
  pthread_t thread;
  if (pthread_create(&thread, NULL, shrink_and_grow, &with)) abort();
  for (int i = 0; i < 300; i++) {
    int code = rknn_matmul_run(mm.ctx);
    CHECK(code == 0 || code == -1, "run %d: %d", i, code);
  }
  with.stop = true;
  pthread_join(thread, NULL);
  CHECK_IS(wrong_products(&mm, &layouts[1], 127), 0);
  close_matmul(&mm);
  CHECK_IS(signals, 0);
  give_up(&memory);
}

/* A file that grew is wrapped anew, as large as it is now. */
static void test_growing(void) {
  own memory = own_memory(0);
  rknn_tensor_mem *before = rknn_create_mem_from_fd(0, memory.fd, memory.pages, SIZE, 0);
  if (ftruncate(memory.fd, 2 * SIZE)) abort();
  rknn_tensor_mem *after = rknn_create_mem_from_fd(0, memory.fd, memory.pages, SIZE, SIZE);
  CHECK(before && after, "not wrapped");
  CHECK_IS(rknn_destroy_mem(0, before), 0);
  CHECK_IS(rknn_destroy_mem(0, after), 0);
  give_up(&memory);
}

enum { WRAPPERS = 4, ROUNDS = 200 };

typedef struct {
  int fd;
  pthread_barrier_t *together;
  rknn_tensor_mem *made;
} wrapper;

static void *wrap_once(void *argument) {
  wrapper *now = argument;
  pthread_barrier_wait(now->together);
  now->made = rknn_create_mem_from_fd(0, now->fd, NULL, 64, 0);
  return NULL;
}

/* However many threads wrap a file at once, it takes its addresses once. */
static void test_wrapped_by_threads_at_once(void) {
  own memory = own_file();
  uint64_t before = domain_bytes();
  pthread_barrier_t together;
  pthread_barrier_init(&together, NULL, WRAPPERS);
  for (int round = 0; round < ROUNDS; round++) {
    wrapper wrappers[WRAPPERS];
    pthread_t threads[WRAPPERS];
    for (int i = 0; i < WRAPPERS; i++) {
      wrappers[i] = (wrapper){.fd = memory.fd, .together = &together};
      if (pthread_create(&threads[i], NULL, wrap_once, &wrappers[i])) abort();
    }
    for (int i = 0; i < WRAPPERS; i++) pthread_join(threads[i], NULL);
    CHECK_IS(domain_bytes() - before, SIZE);
    for (int i = 0; i < WRAPPERS; i++) CHECK_IS(rknn_destroy_mem(0, wrappers[i].made), 0);
    CHECK_IS(domain_bytes(), before);
  }
  pthread_barrier_destroy(&together);
  give_up(&memory);
}

int main(void) {
  start_log();
  struct sigaction own_handler = {.sa_handler = count_signal};
  sigaction(SIGBUS, &own_handler, NULL); /* the program's: nothing may come to it, and nothing may replace it */
  test_products_in(own_memory(0));
  test_products_in(own_file());
  npumm_sim_configure("NPUMATMUL_SIM_STRICT", "1"); /* it stays one copy */
  test_products_in(own_memory(0));
  for (int strict = 0; strict < 2; strict++) {
    own sealed = own_memory(MFD_ALLOW_SEALING);
    if (fcntl(sealed.fd, F_ADD_SEALS, F_SEAL_SHRINK)) abort();
    test_products_in(sealed);
    npumm_sim_configure("NPUMATMUL_SIM_STRICT", NULL);
  }
  test_memory_of_the_library_that_was_destroyed();
  test_descriptor_closed_after_wrapping();
  test_what_is_refused();
  test_one_domain();
  test_permissions();
  test_shrinking(own_memory(0));
  test_shrinking(own_file());
  test_shrinking_meanwhile();
  test_growing();
  test_wrapped_by_threads_at_once();
  test_descriptor_of_the_library_closed();
  struct sigaction now;
  sigaction(SIGBUS, NULL, &now);
  CHECK(now.sa_handler == count_signal, "the program's handler was replaced");
  npumm_sim_counters left;
  npumm_sim_read_counters(&left);
  CHECK(left.memories_now + left.descriptors_now + left.bytes_now == 0, "something is left");
  return report("test_foreign");
}
