/* The loops of attention for 64-bit ARM. */
#if defined(__aarch64__)
#include "lanes_neon.h"

#define ATTEND_NAME "neon"
#define ATTEND_LOOPS npumm_attend_neon
#define ATTEND_ROWS 3
#define ATTEND_TOGETHER 2
#define ATTEND_ALONE 2
#define ATTEND_PASSES 1
#define ATTEND_FETCH_FAR 0
#define ATTEND_EVENLY 0
#define ATTEND_COLUMNS 8
#define ATTEND_WEIGHTS_FIRST 0
#define ATTEND_FEW 6
#include "attend_loops.h"
#else
typedef int npumm_attend_neon_is_empty_here;
#endif
