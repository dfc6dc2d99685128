/*
 * In the place of the compiler's <cpuid.h> where AVX-512 is emulated: all that choose among loops that are written with
 * intrinsics include it, and are told that the processor has what is emulated. finish_dispatch.c and layers_dispatch.c do
 * not: their loops are plain C, which the compiler makes AVX-512 of, and there is nothing to emulate.
 */
#ifndef NPUMATMUL_EMULATED_CPUID_H
#define NPUMATMUL_EMULATED_CPUID_H

#include_next <cpuid.h>
#include <string.h>

#define __builtin_cpu_supports(name) (strncmp(name, "avx512", 6) == 0 || __builtin_cpu_supports(name))

#endif
