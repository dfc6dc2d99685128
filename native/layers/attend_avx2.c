/* The loops of attention for x86-64 with AVX2, FMA and F16C. */
#if defined(__x86_64__)
#include "lanes_avx2.h"

#define ATTEND_NAME "avx2"
#define ATTEND_LOOPS npumm_attend_avx2
#define ATTEND_ROWS 3
#define ATTEND_TOGETHER 2
#define ATTEND_ALONE 4
#define ATTEND_PASSES 2
#define ATTEND_FETCH_FAR 1
#define ATTEND_EVENLY 1
#define ATTEND_COLUMNS 4
#define ATTEND_WEIGHTS_FIRST 1
#define ATTEND_FEW 6
#include "attend_loops.h"
#else
typedef int npumm_attend_avx2_is_empty_here;
#endif
