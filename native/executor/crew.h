/* Worker threads: one per NPU core beyond the first, which the caller's own thread serves. */
#ifndef NPUMATMUL_CREW_H
#define NPUMATMUL_CREW_H

#include <stdint.h>

typedef struct npumm_crew npumm_crew;

/* NULL where there is no memory. No thread is started before there is work for it. */
npumm_crew *npumm_crew_create(void);

/* Ends the threads. In a forked child, which has none of them, it does nothing. */
void npumm_crew_destroy(npumm_crew *crew);

/*
 * Do work(argument, core) for every core below `count`, at once, and return when all are done. Core 0 is the caller's
 * thread; so are those for which no thread can be had, after it. One call at a time.
 */
void npumm_crew_run(npumm_crew *crew, int32_t count, void (*work)(void *argument, int32_t core), void *argument);

#endif
