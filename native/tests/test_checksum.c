/*
 * Checksums by instructions against the reference, and the reference against known values. From native/:
 *   gcc -std=c17 -O2 -Wall -Wextra -Werror -Iinclude -Ikernels -o test_checksum tests/test_checksum.c
 *       kernels/checksum*.c && ./test_checksum
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
  }
  free(own);
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
  printf("test_checksum: %u passed, %u failed\n", passed, failed);
  return failed != 0;
}
