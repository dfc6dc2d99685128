/*
 * Checksums by instructions against the reference, and the reference against known values; files that are read and summed
 * up by several threads. From native/:
 *   gcc -std=c17 -O2 -Wall -Wextra -Werror -Iinclude -Ikernels -o test_checksum tests/test_checksum.c
 *       kernels/checksum*.c -lpthread && ./test_checksum
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "checksum.h"
#include "npumatmul_kernels.h"

static unsigned passed, failed;

static void check(int right, const char *what, int32_t set, size_t bytes) {
  passed += right != 0, failed += right == 0;
  if (!right) fprintf(stderr, "%s: %s, %zu bytes\n", npumm_crc32_set(set), what, bytes);
}

static uint32_t checksum(int32_t set, const void *data, size_t bytes, uint32_t from) {
  if (npumm_crc32_by(set, data, (int64_t)bytes, &from)) abort();
  return from;
}

static void compare(int32_t set, const uint8_t *data, size_t bytes) {
  uint8_t *own = malloc(bytes + 1); /* so that a sanitizer sees what is read beyond */
  if (!own) abort();
  memcpy(own, data, bytes);
  const uint32_t expected = checksum(0, own, bytes, 0);
  check(checksum(set, own, bytes, 0) == expected, "another checksum", set, bytes);
  for (size_t cut = 0; cut <= bytes; cut += bytes / 3 + 1) {
    const uint32_t first = checksum(set, own, cut, 0);
    check(checksum(set, own + cut, bytes - cut, first) == expected, "another one in two parts", set, bytes);
    const uint32_t moved = npumm_crc_moved(first, (int64_t)(bytes - cut));
    check((moved ^ checksum(set, own + cut, bytes - cut, 0)) == expected, "another one of both parts", set, bytes);
  }
  free(own);
}

/* ---- files -------------------------------------------------------------------------------------------------------- */

enum { PIECE = 1 << 18, FILE_BYTES = 5 * PIECE + 4097, PAGE = 1 << 12 };

static int threads_there(void) {
  DIR *tasks = opendir("/proc/self/task");
  if (!tasks) return 1;
  int count = -2; /* less "." and ".." */
  while (readdir(tasks)) count++;
  closedir(tasks);
  return count;
}

static void read_all(int32_t set, int fd, const uint8_t *content, int64_t offset, int64_t bytes, int32_t threads) {
  uint8_t *memory = malloc((size_t)bytes + 1);
  if (!memory) abort();
  memory[bytes] = 0x5a;
  uint32_t sum = 77;
  int error = 1;
  const int64_t got = npumm_read_summed(set, fd, offset, memory, bytes, threads, &sum, &error);
  check(got == bytes && error == 0, "not all was read", set, (size_t)bytes);
  check(!memcmp(memory, content + offset, (size_t)bytes) && memory[bytes] == 0x5a, "other bytes", set, (size_t)bytes);
  check(sum == checksum(0, content + offset, (size_t)bytes, 77), "another checksum of a file", set, (size_t)bytes);
  free(memory);
}

/* What is read of a file that ends, or into memory that cannot be written, is the same with any number of threads. */
static void fail_to_read(int fd, uint8_t *content, int64_t offset, int32_t threads) {
  uint8_t *memory = mmap(NULL, 2 * FILE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) abort();
  uint32_t sum = 77;
  int error = 1;
  const int64_t there = FILE_BYTES - offset;
  check(npumm_read_summed(0, fd, offset, memory, there + 1, threads, &sum, &error) == there && !error, "an end", 0, 1);
  check(npumm_read_summed(0, fd, offset, memory, FILE_BYTES * 2, threads, &sum, &error) == there && !error, "an end", 0,
        2);
  check(!memcmp(memory, content + offset, (size_t)there) && sum == 77, "bytes up to the end", 0, (size_t)there);

  for (int64_t wall = PAGE; wall < there - PAGE; wall += 7 * PAGE * 16) { /* and all that is behind it */
    mprotect(memory + wall, (size_t)(FILE_BYTES - PAGE - wall) / PAGE * PAGE, PROT_READ);
    const int64_t got = npumm_read_summed(0, fd, offset, memory, there, threads, &sum, &error);
    const int right =
        got == wall || got == wall / PIECE * PIECE; /* an emulator reads nothing of a piece with a wall in it */
    check(right && error == EFAULT && sum == 77, "memory that cannot be written", 0, (size_t)wall);
    mprotect(memory, 2 * FILE_BYTES, PROT_READ | PROT_WRITE);
  }
  munmap(memory, 2 * FILE_BYTES);
  check(npumm_read_summed(0, -1, 0, content, 1, threads, &sum, &error) == 0 && error == EBADF, "no file", 0, 1);
}

static void read_files(void) {
  uint8_t *content = malloc(FILE_BYTES);
  FILE *file = tmpfile();
  if (!content || !file) abort();
  uint32_t random = 7;
  for (int64_t i = 0; i < FILE_BYTES; i++) content[i] = (uint8_t)((random = random * 1664525u + 1013904223u) >> 24);
  if (fwrite(content, 1, FILE_BYTES, file) != FILE_BYTES || fflush(file)) abort();
  const int fd = fileno(file);
  int32_t last = 0;
  while (npumm_crc32_set(last + 1)) last++;
  read_all(last, fd, content, 0, FILE_BYTES, 2); /* a sanitizer starts a thread of its own now */
  usleep(100000);
  const int before = threads_there();
  for (int32_t threads = 1; threads <= 20; threads = threads * 2 + 1) {
    for (int64_t pieces = 0; pieces <= 5; pieces++) {
      for (int64_t more = pieces ? -1 : 0; more <= 1; more++) {
        read_all(last, fd, content, 4096 * (threads % 2) - (more < 0 ? -1 : 0), pieces * PIECE + more, threads);
      }
    }
    fail_to_read(fd, content, 0, threads);
    fail_to_read(fd, content, 4095, threads);
  }
  for (int tries = 0; threads_there() > before && tries < 1000; tries++)
    usleep(1000); /* joined ones are listed for a moment */
  check(threads_there() <= before, "threads are left", last, 0);

  uint32_t sum = 0;
  int error = 0;
  uint8_t byte;
  check(npumm_read_summed(last + 1, fd, 0, &byte, 1, 1, &sum, &error) == NPUMM_BAD_ARGUMENT, "a set", last, 1);
  check(npumm_read_summed(0, fd, -1, &byte, 1, 1, &sum, &error) == NPUMM_BAD_ARGUMENT, "an offset", 0, 1);
  check(npumm_read_summed(0, fd, 0, NULL, 1, 1, &sum, &error) == NPUMM_BAD_ARGUMENT, "no memory", 0, 1);
  check(npumm_read_summed(0, fd, 0, &byte, -1, 1, &sum, &error) == NPUMM_BAD_ARGUMENT, "a count", 0, 1);
  check(npumm_read_summed(0, fd, 0, &byte, 1, 0, &sum, &error) == NPUMM_BAD_ARGUMENT, "no threads", 0, 1);
  check(npumm_read_summed(0, fd, 0, NULL, 0, 1, &sum, &error) == 0 && sum == 0, "nothing", 0, 0);
  fclose(file);
  free(content);
}

int main(void) {
  enum { MOST = 3000 };
  static uint8_t data[MOST];
  uint32_t random = 1;
  for (size_t i = 0; i < MOST; i++) data[i] = (uint8_t)((random = random * 1664525u + 1013904223u) >> 24);
  for (int32_t set = 0; npumm_crc32_set(set); set++) {
    check(checksum(set, "123456789", 9, 0) == 0xcbf43926u, "the check value of CRC-32", set, 9);
    for (size_t bytes = 0; bytes <= 700; bytes++) compare(set, data + bytes % 7, bytes);
    for (size_t bytes = 1021; bytes + 7 < MOST; bytes += 211) compare(set, data + bytes % 7, bytes);
    printf("%s: compared\n", npumm_crc32_set(set));
  }
  uint32_t zero = 0;
  int32_t sets = 0;
  while (npumm_crc32_set(sets)) sets++;
  check(npumm_crc32_by(sets, data, 1, &zero) == NPUMM_BAD_ARGUMENT, "a set that is none", 0, 1);
  check(npumm_crc32_by(0, NULL, 1, &zero) == NPUMM_BAD_ARGUMENT, "no data", 0, 1);
  check(npumm_crc32_by(0, data, -1, &zero) == NPUMM_BAD_ARGUMENT, "a negative count", 0, 1);
  check(npumm_crc32_by(0, NULL, 0, &zero) == NPUMM_OK && zero == 0, "nothing", 0, 0);
  read_files();
  printf("test_checksum: %u passed, %u failed\n", passed, failed);
  return failed != 0;
}
