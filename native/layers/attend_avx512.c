/* The loops of attention for x86-64 with AVX-512. */
#if defined(__x86_64__)
#include "lanes_avx512.h"

#define ATTEND_NAME "avx512"
#define ATTEND_LOOPS npumm_attend_avx512
#define ATTEND_ROWS 6
#define ATTEND_TOGETHER 1
#define ATTEND_ALONE 1
#define ATTEND_PASSES 1
#define ATTEND_FETCH_FAR 1
#define ATTEND_EVENLY 1
#define ATTEND_COLUMNS 4
#define ATTEND_WEIGHTS_FIRST 0
#define ATTEND_FEW 12
#include "attend_loops.h"
#else
typedef int npumm_attend_avx512_is_empty_here;
#endif
