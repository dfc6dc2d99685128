/*
 * What the simulator's tests share. Every test is a program of its own, compiled with the simulator's sources:
 *   gcc -std=c17 -O2 -Wall -Wextra -Werror -Iinclude -o test_x tests/test_x.c simulator/[a-z]*.c -lpthread -lm
 * from native/. It prints what went wrong and ends with 0 when nothing did.
 */
#ifndef CHECK_H
#define CHECK_H

#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "count.h"
#include "npumatmul_sim.h"
#include "rknn_abi.h"

/* Compares two integers and prints both when they differ. */
#define CHECK_IS(actual, expected)                                     \
  do {                                                                 \
    long long got = (long long)(actual), want = (long long)(expected); \
    CHECK(got == want, "%s is %lld, not %lld", #actual, got, want);    \
  } while (0)

static inline void *need(size_t bytes) {
  void *memory = calloc(1, bytes ? bytes : 1);
  if (!memory) abort();
  return memory;
}

/* ---- what the library logs: standard error goes to a file -------------------------------------------------------- */

static FILE *log_file;

static inline void start_log(void) {
  log_file = tmpfile();
  /* Appending: both descriptors share one position, and reading the log moves it. */
  if (!log_file || fcntl(fileno(log_file), F_SETFL, O_APPEND) || dup2(fileno(log_file), STDERR_FILENO) < 0) abort();
}

/* Whether text was logged since the last call, after "E RKNN: [HH:MM:SS.mmm] ". */
static inline bool logged(const char *text) {
  static long seen;
  fflush(stderr);
  char line[1024];
  bool found = false;
  fseek(log_file, seen, SEEK_SET);
  while (fgets(line, sizeof line, log_file)) {
    int h, m, s, ms, length = 0;
    if (sscanf(line, "%*1[EW] RKNN: [%2d:%2d:%2d.%3d] %n", &h, &m, &s, &ms, &length) != 4 || length != 23) continue;
    if (strstr(line + length, text) == line + length) found = true;
  }
  seen = ftell(log_file);
  return found;
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

static inline double half_value(uint16_t half) {
  int exponent = half >> 10 & 31, fraction = half & 1023;
  double magnitude = exponent == 31  ? (fraction ? NAN : HUGE_VAL)
                     : exponent == 0 ? ldexp(fraction, -24)
                                     : ldexp(1024 + fraction, exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

/* Multiples of 1/8 between -4 and 4: their products are multiples of 1/64, whose sums float32 holds exactly. */
static inline uint16_t exact_half(int value) {
  if (value == 0) return 0;
  int magnitude = value < 0 ? -value : value, exponent = 0;
  while (magnitude >> (exponent + 1)) exponent++;
  return (uint16_t)((value < 0 ? 0x8000 : 0) | (exponent + 15 - 3) << 10 | ((magnitude << (10 - exponent)) & 1023));
}

static uint32_t random_state = 7;

static inline int random_between(int low, int high) {
  random_state = random_state * 1664525u + 1013904223u;
  return low + (int)((random_state >> 8) % (uint32_t)(high - low + 1));
}

/* ---- a matmul with its three memories ---------------------------------------------------------------------------- */

typedef struct {
  rknn_matmul_info info;
  rknn_matmul_io_attr io;
  rknn_matmul_ctx ctx;
  rknn_tensor_mem *a, *b, *c;
} matmul;

static inline rknn_matmul_info make_info(rknn_matmul_type type, int M, int K, int N, int b_layout, int ac_layout) {
  rknn_matmul_info info = {
      .M = M, .K = K, .N = N, .type = type, .B_layout = (int16_t)b_layout, .AC_layout = (int16_t)ac_layout};
  return info;
}

static inline bool open_matmul(matmul *mm, rknn_matmul_info info) {
  memset(mm, 0, sizeof *mm);
  mm->info = info;
  if (rknn_matmul_create(&mm->ctx, &mm->info, &mm->io) != RKNN_SUCC) return false;
  mm->a = rknn_create_mem(mm->ctx, mm->io.A.size);
  mm->b = rknn_create_mem(mm->ctx, mm->io.B.size);
  mm->c = rknn_create_mem(mm->ctx, mm->io.C.size);
  return mm->a && mm->b && mm->c;
}

static inline void bind_all(matmul *mm) {
  CHECK_IS(rknn_matmul_set_io_mem(mm->ctx, mm->a, &mm->io.A), 0);
  CHECK_IS(rknn_matmul_set_io_mem(mm->ctx, mm->b, &mm->io.B), 0);
  CHECK_IS(rknn_matmul_set_io_mem(mm->ctx, mm->c, &mm->io.C), 0);
}

static inline void close_matmul(matmul *mm) {
  if (mm->a) CHECK_IS(rknn_destroy_mem(mm->ctx, mm->a), 0);
  if (mm->b) CHECK_IS(rknn_destroy_mem(mm->ctx, mm->b), 0);
  if (mm->c) CHECK_IS(rknn_destroy_mem(mm->ctx, mm->c), 0);
  CHECK_IS(rknn_matmul_destroy(mm->ctx), 0);
}

static inline uint8_t *data_of(const rknn_tensor_mem *mem) { return (uint8_t *)mem->virt_addr + mem->offset; }

#endif
