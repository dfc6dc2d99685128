/*
 * In the place of the compiler's <immintrin.h> where AVX-512 is emulated (tools/c_tests.py): vectors of 512 bits are two
 * of 256, by SIMDe, and by missing.h where SIMDe lacks a function; tile registers are
 * those of tiles.h. What neither has does not compile, since functions lose
 * the target that they ask for.
 */
#ifndef NPUMATMUL_EMULATED_IMMINTRIN_H
#define NPUMATMUL_EMULATED_IMMINTRIN_H

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/clmul.h>

#include "missing.h"
#include "tiles.h"

/* A system that saves the registers of AVX-512 and AMX. */
#undef _xgetbv
#define _xgetbv(states) 0x600e7ull

/* As in __attribute__((target("avx512f"))). */
#define target(...)

#endif
