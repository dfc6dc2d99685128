/* CRC-32 by what the machine has. */
#include "checksum.h"

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

enum { SETS_MOST = 3 };

typedef struct {
  const char *name;
  npumm_crc *crc;
} set;

static int32_t list(set found[SETS_MOST]) {
  int32_t count = 0;
  found[count++] = (set){"scalar", npumm_crc_scalar};
#if defined(__x86_64__)
  if (has_clmul()) {
    found[count++] = (set){"pclmul", npumm_crc_clmul};
    if (has_vpclmul()) found[count++] = (set){"vpclmul", npumm_crc_vpclmul};
  }
#elif defined(__aarch64__)
  if (getauxval(AT_HWCAP) & HWCAP_CRC32) found[count++] = (set){"crc32", npumm_crc_arm};
#endif
  return count;
}

const char *npumm_crc32_set(int32_t index) {
  set found[SETS_MOST];
  return index >= 0 && index < list(found) ? found[index].name : NULL;
}

int npumm_crc32_by(int32_t index, const void *data, int64_t bytes, uint32_t *checksum) {
  set found[SETS_MOST];
  if (index < 0 || index >= list(found) || bytes < 0 || (!data && bytes) || !checksum) return NPUMM_BAD_ARGUMENT;
  *checksum = ~found[index].crc(~*checksum, data, (size_t)bytes);
  return NPUMM_OK;
}
