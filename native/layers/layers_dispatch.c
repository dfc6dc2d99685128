/* Chooses the loops of layers for the machine that the library runs on. */
#include <stdatomic.h>

#include "loops.h"

static const npumm_layer_loops *choose(void) {
#if defined(__x86_64__)
  const int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  if (wide && __builtin_cpu_supports("avx512dq")) return &npumm_layer_loops_avx512;
  if (__builtin_cpu_supports("avx2")) return &npumm_layer_loops_avx2;
#endif
  return &npumm_layer_loops_base;
}

const npumm_layer_loops *npumm_layers(void) {
  static const npumm_layer_loops *_Atomic chosen;
  const npumm_layer_loops *loops = atomic_load_explicit(&chosen, memory_order_relaxed);
  if (!loops) {
    loops = choose(); /* by several threads at once perhaps: they choose the same */
    atomic_store_explicit(&chosen, loops, memory_order_relaxed);
  }
  return loops;
}
