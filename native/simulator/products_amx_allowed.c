/*
 * Whether AMX may be used: the processor has it, the system saves its registers, and gives them to this process when it is
 * asked (Linux, since 5.16). Nobody of the project has such a processor: so its products are compared with the reference's
 * before they are used.
 */
#define _GNU_SOURCE
#include "products.h"

#if defined(SIM_KNOWS_AMX)
#include <cpuid.h>
#include <immintrin.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ASK_FOR_STATE = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM of arch_prctl, and the state's number */

/* Intel's manual, volume 1, chapter 18: the two features, and both states in XCR0. */
__attribute__((target("xsave"))) static bool is_there(void) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  const unsigned features = 1u << 24 | 1u << 25, states = 1u << 17 | 1u << TILE_DATA;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & features) != features) return false;
  return (_xgetbv(0) & states) == states;
}

/* Threads of the process share what it is given. Refused where a thread's stack for signals is too small for the state. */
static bool is_given(void) { return syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) == 0; }

/* Rows and k's that leave a rest, and three times 16 columns. */
static bool agrees(void) {
  enum { ROWS = 19, K_TILES = 3, DEPTH = 32 * K_TILES, COLUMNS = 48 };
  _Alignas(64) uint8_t spare[SIM_SPARE_BYTES(DEPTH * COLUMNS)];
  int8_t a[ROWS * DEPTH];
  uint8_t b[DEPTH * COLUMNS];
  int32_t c[ROWS * COLUMNS], expected[ROWS * COLUMNS], sums[ROWS] = {0};
  uint32_t state = 1;
  for (size_t i = 0; i < sizeof a; i++) a[i] = (int8_t)((state = state * 1664525u + 1013904223u) >> 24);
  for (size_t i = 0; i < sizeof b; i++) b[i] = (uint8_t)((state = state * 1664525u + 1013904223u) >> 24);
  for (int i = 0; i < ROWS * COLUMNS; i++) c[i] = expected[i] = INT32_MAX - i;
  for (int r = 0; r < ROWS; r++) sums[r] = sim_products_scalar.sum_ints(a + r * DEPTH, DEPTH);
  const sim_rows rows = {a, DEPTH, ROWS, sums};
  const sim_tiles tiles = {b, K_TILES, COLUMNS, 32, spare};
  sim_products_scalar.i8(rows, tiles, expected, COLUMNS);
  sim_products_amx.i8(rows, tiles, c, COLUMNS);
  return memcmp(c, expected, sizeof c) == 0;
}

bool sim_has_amx(void) {
  static _Atomic int known; /* 1 yes, 2 no */
  int answer = atomic_load_explicit(&known, memory_order_relaxed);
  if (!answer) { /* by several threads at once perhaps: they find the same */
    answer = is_there() && is_given() && agrees() ? 1 : 2;
    atomic_store_explicit(&known, answer, memory_order_relaxed);
  }
  return answer == 1;
}

#else
typedef int sim_products_amx_allowed_is_for_linux_on_x86_64; /* C asks for something in every file */
#endif
