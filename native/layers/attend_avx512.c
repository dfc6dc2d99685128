/* The loops of attention for x86-64 with AVX-512. */
#if defined(__x86_64__)
#include "lanes_avx512.h"

#define ATTEND_NAME "avx512"
#define ATTEND_LOOPS npumm_attend_avx512
#define ATTEND_ROWS 6
#define ATTEND_TOGETHER(rows) 1
#define ATTEND_AT_ONCE GROUP
#define ATTEND_COLUMNS(rows) 4
#define ATTEND_FEW 12
#include "attend_loops.h"
#else
typedef int npumm_attend_avx512_is_empty_here;
#endif
