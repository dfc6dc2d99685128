/* Telling the profile that is on, if any, of what was done. See npumatmul_profile.h. */
#ifndef NPUMM_PROFILE_H
#define NPUMM_PROFILE_H

#include <stdatomic.h>

#include "npumatmul_profile.h"

extern atomic_int npumm_profile_is_on;

/* Nanoseconds of CLOCK_MONOTONIC. */
int64_t npumm_profile_now(void);

/* When something begins; 0 where no profile is on, and npumm_profile_end does nothing then. */
static inline int64_t npumm_profile_begin(void) {
  return atomic_load_explicit(&npumm_profile_is_on, memory_order_relaxed) ? npumm_profile_now() : 0;
}

void npumm_profile_add(int64_t begun, int32_t kind, int64_t product, int32_t core, int64_t bytes, int64_t macs);

/* It ended now. */
static inline void npumm_profile_end(int64_t begun, int32_t kind, int64_t product, int32_t core, int64_t bytes,
                                     int64_t macs) {
  if (begun) npumm_profile_add(begun, kind, product, core, bytes, macs);
}

#endif
