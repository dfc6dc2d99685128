/* CRC-32 by what the machine has. */
#include "checksum.h"

#include <stdatomic.h>

#include "npumatmul_kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Older compilers do not know these names in __builtin_cpu_supports. What the system saves of AVX-512, avx512f has shown. */
static int has_clmul(void) {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_PCLMUL) && (ecx & bit_SSE4_1);
}

static int has_vpclmul(void) {
  unsigned eax, ebx, ecx, edx;
  return __builtin_cpu_supports("avx512f") && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ecx & 1u << 10);
}
#elif defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1u << 7)
#endif
#endif

/* Each needs what those before it need. */
static const struct {
  const char *name;
  npumm_crc *crc;
} sets[] = {
    {"scalar", npumm_crc_scalar},
#if defined(__x86_64__)
    {"pclmul", npumm_crc_clmul},
    {"vpclmul", npumm_crc_vpclmul},
#elif defined(__aarch64__)
    {"crc32", npumm_crc_arm},
#endif
};

static int32_t count(void) {
#if defined(__x86_64__)
  return !has_clmul() ? 1 : !has_vpclmul() ? 2 : 3;
#elif defined(__aarch64__)
  return getauxval(AT_HWCAP) & HWCAP_CRC32 ? 2 : 1;
#else
  return 1;
#endif
}

/* How many this machine has is asked once: the cpuid instruction costs microseconds, tens of them in a virtual machine. */
static int has(int32_t index) {
  static atomic_int known;
  int32_t found = atomic_load_explicit(&known, memory_order_relaxed);
  if (!found) atomic_store_explicit(&known, found = count(), memory_order_relaxed); /* by several threads perhaps */
  return index >= 0 && index < found;
}

npumm_crc *npumm_crc_of(int32_t set) { return has(set) ? sets[set].crc : NULL; }

const char *npumm_crc32_set(int32_t index) { return has(index) ? sets[index].name : NULL; }

int npumm_crc32_by(int32_t index, const void *data, int64_t bytes, uint32_t *checksum) {
  npumm_crc *crc = npumm_crc_of(index);
  if (!crc || bytes < 0 || (!data && bytes) || !checksum) return NPUMM_BAD_ARGUMENT;
  *checksum = ~crc(~*checksum, data, (size_t)bytes);
  return NPUMM_OK;
}
