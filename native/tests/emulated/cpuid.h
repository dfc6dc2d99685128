/*
 * In the place of the compiler's <cpuid.h> where AVX-512 is emulated: all that choose among loops that are written with
 * intrinsics include it, and are told that the processor has what is emulated. finish_dispatch.c and layers_dispatch.c do
 * not: their loops are plain C, which the compiler makes AVX-512 of, and there is nothing to emulate.
 */
#ifndef NPUMATMUL_EMULATED_CPUID_H
#define NPUMATMUL_EMULATED_CPUID_H

#include_next <cpuid.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define __builtin_cpu_supports(name) (strncmp(name, "avx512", 6) == 0 || __builtin_cpu_supports(name))

/* VPCLMULQDQ, AMX-TILE and AMX-INT8 are in leaf 7. */
static inline __attribute__((unused)) int emulated_cpuid_count(unsigned leaf, unsigned subleaf, unsigned *a,
                                                               unsigned *b, unsigned *c, unsigned *d) {
  const int known = __get_cpuid_count(leaf, subleaf, a, b, c, d);
  if (leaf == 7 && subleaf == 0) *c |= 1u << 10, *d |= 1u << 24 | 1u << 25;
  return known;
}
#define __get_cpuid_count(leaf, subleaf, a, b, c, d) emulated_cpuid_count(leaf, subleaf, a, b, c, d)

/* A system that gives the registers of AMX to whom asks as Linux wants it. */
static inline __attribute__((unused)) long emulated_syscall(long number, long code, long argument) {
  return number == SYS_arch_prctl && code == 0x1023 && argument == 18 ? 0 : -1;
}
#define syscall(number, code, argument) emulated_syscall(number, code, argument)

#endif
