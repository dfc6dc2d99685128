/* Threads that serve NPU cores: the caller's own, and at most one more per core beyond the first. */
#ifndef NPUMATMUL_CREW_H
#define NPUMATMUL_CREW_H

#include <stdint.h>

typedef struct npumm_crew npumm_crew;

/* NULL where there is no memory. No thread is started before there is work for it. */
npumm_crew *npumm_crew_create(void);

/* Ends the threads. In a forked child, which has none of them, it does nothing. */
void npumm_crew_destroy(npumm_crew *crew);

/*
 * Do work(argument, core) for every core below `count`, as many at once as there are threads, and return when all are
 * done. Each is done by one thread, whichever is free first. One call at a time.
 */
void npumm_crew_run(npumm_crew *crew, int32_t count, void (*work)(void *argument, int32_t core), void *argument);

#endif
