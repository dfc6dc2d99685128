/* The loops of attention for 64-bit ARM. */
#if defined(__aarch64__)
#include "lanes_neon.h"

#define ATTEND_NAME "neon"
#define ATTEND_LOOPS npumm_attend_neon
#define ATTEND_ROWS 6
#define ATTEND_COLUMNS 4
#define ATTEND_FEW 12
#include "attend_loops.h"
#else
typedef int npumm_attend_neon_is_empty_here;
#endif
