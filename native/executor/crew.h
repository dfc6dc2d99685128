/* Threads that serve NPU cores: the caller's own, and at most one more per core beyond the first. */
#ifndef NPUMATMUL_CREW_H
#define NPUMATMUL_CREW_H

#include <stdint.h>

typedef struct npumm_crew npumm_crew;

/* NULL where there is no memory. No thread is started before there is work for it. */
npumm_crew *npumm_crew_create(void);

/* Ends the threads, unless a run that was given up keeps one. In a forked child, which has none of them, it does nothing. */
void npumm_crew_destroy(npumm_crew *crew);

/*
 * Before work for a caller who must not be held up by the runtime, and with NULL for others. Such a caller takes no core
 * itself. It asks `attend` whether to go on about every 100 ms that it works or waits: 0 is yes, 1 that the work is to end
 * with the runs that are going on, 2 that these are given up too. `crew` may be NULL, which asks nobody.
 */
void npumm_crew_attend(npumm_crew *crew, int (*attend)(void));

/* Whether the work is to end: that of a crew, or with NULL that which the calling thread does for one. */
int npumm_crew_is_ended(const npumm_crew *crew);

/*
 * Do work(argument, core) for every core below `count`, as many at once as there are threads, and return 0 when all are
 * done. Each is done by one thread, whichever is free first. One call at a time.
 *
 * NPUMM_GIVEN_UP: threads still wait for the runtime, to which nothing of theirs may be lent anew. `argument` is theirs:
 * the caller must not touch it any more, and says with npumm_crew_leave what the last of them does with it.
 */
int npumm_crew_run(npumm_crew *crew, int32_t count, void (*work)(void *argument, int32_t core), void *argument);

/* Have release(argument) called when the last of the runs that were given up has ended, which may be at once. */
void npumm_crew_leave(npumm_crew *crew, void (*release)(void *argument), void *argument);

/* Whether work was given up: then the crew has no use any more. */
int npumm_crew_is_abandoned(const npumm_crew *crew);

/* How many threads still wait in runs that were given up. */
int32_t npumm_crew_lost(npumm_crew *crew);

/*
 * Around a call of the runtime that may take long. Where npumm_crew_return says other than 0 the work was given up
 * meanwhile: nothing that belongs to the caller of the crew may be touched any more.
 */
void npumm_crew_depart(void);
int npumm_crew_return(void);

#endif
