/* The inner loops of products for 64-bit ARM with dot products: Cortex-A76 and A55 (RK3588, RK3566, RK3568). */
#if defined(__aarch64__)

#include <arm_neon.h>

#include "multiply.h"

#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#define INLINE __attribute__((always_inline, target("arch=armv8.2-a+dotprod"))) static inline

INLINE int32x4_t dot16(int32x4_t sum, int8x16_t x, int8x16_t y) { return vdotq_s32(sum, x, y); }

#include "multiply_neon_loops.h"

const npumm_multipliers npumm_multipliers_neon_dotprod = {
    .name = "neon dotprod",
    .i8 = i8,
    .i4 = i4,
    .f16 = f16,
    .f16_i8 = f16_i8,
    .f16_i4 = f16_i4,
    .halves_to_floats = halves_to_floats,
};

#else
typedef int npumm_multipliers_neon_dotprod_are_for_aarch64; /* C asks for something in every file */
#endif
