/* Waiting without sleeping for a short while, where that does nobody harm. */
#ifndef NPUMATMUL_SPIN_H
#define NPUMATMUL_SPIN_H

#include <stdint.h>

/* The most that one wait spins: some 20 to 50 us, as long as it takes to put a thread to sleep and to wake it. */
enum { NPUMM_SPINS_MOST = 1024 };

/* What a thread learned of its waits; all zero to begin with. One thread's alone. */
typedef struct {
  int32_t failed;  /* spins in a row after which it had to sleep all the same */
  int32_t resting; /* of the next waits, how many sleep at once */
} npumm_spinner;

/*
 * Say that a worker thread begins (1) or ends (-1) to be awake, and that a thread begins or ends to have work done by
 * workers. There are to be no more threads that spin or work than processors.
 */
void npumm_workers_awake(int change);
void npumm_callers(int change);

/*
 * Whether came(argument), which is asked again and again, says other than 0 after at most NPUMM_SPINS_MOST spins; asked
 * once, without spinning, while there is no processor for it, or where spinning was of no use lately.
 */
int npumm_spin(npumm_spinner *spinner, int (*came)(void *argument), void *argument);

/* How often all threads have spun since the program began. */
int64_t npumm_spins(void);

/* Of tests: processors there are; 0: as many as the system says. */
void npumm_pretend_processors(int32_t count);

#endif
