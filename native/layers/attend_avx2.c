/* The loops of attention for x86-64 with AVX2, FMA and F16C. */
#if defined(__x86_64__)
#include "lanes_avx2.h"

#define ATTEND_NAME "avx2"
#define ATTEND_LOOPS npumm_attend_avx2
#define ATTEND_ROWS 4
#define ATTEND_TOGETHER(rows) ((rows) == 1 ? 4 : (rows) == 4 ? 1 : 2)
#define ATTEND_AT_ONCE 1
#define ATTEND_COLUMNS(rows) ((rows) == 4 ? 3 : (rows) == 1 ? 8 : 4)
#define ATTEND_FEW 6
#include "attend_loops.h"
#else
typedef int npumm_attend_avx2_is_empty_here;
#endif
