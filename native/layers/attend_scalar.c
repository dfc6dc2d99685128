/* The loops of attention for any machine, and the reference for those of instruction sets. */
#include "lanes_scalar.h"

#define ATTEND_NAME "scalar"
#define ATTEND_LOOPS npumm_attend_scalar
#define ATTEND_ROWS 3
#define ATTEND_TOGETHER 1
#define ATTEND_ALONE 1
#define ATTEND_PASSES 1
#define ATTEND_FETCH_FAR 0
#define ATTEND_EVENLY 0
#define ATTEND_COLUMNS 2
#define ATTEND_WEIGHTS_FIRST 0
#define ATTEND_FEW 3
#include "attend_loops.h"
