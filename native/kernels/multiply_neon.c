/* The inner loops of products for every 64-bit ARM: Cortex-A53 and A72 (RK3562, RK3576) have no dot products. */
#if defined(__aarch64__)

#include <arm_neon.h>

#include "multiply.h"

#define TARGET
#define INLINE __attribute__((always_inline)) static inline

/* int16 holds one product of two int8, but not the sum of two. */
INLINE int32x4_t dot16(int32x4_t sum, int8x16_t x, int8x16_t y) {
  sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(x), vget_low_s8(y)));
  return vpadalq_s16(sum, vmull_high_s8(x, y));
}

#include "multiply_neon_loops.h"

const npumm_multipliers npumm_multipliers_neon = {
    .name = "neon",
    .i8 = i8,
    .i4 = i4,
    .f16 = f16,
    .f16_i8 = f16_i8,
    .f16_i4 = f16_i4,
    .halves_to_floats = halves_to_floats,
};

#else
typedef int npumm_multipliers_neon_are_for_aarch64; /* C asks for something in every file */
#endif
