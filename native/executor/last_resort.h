/*
 * Ctrl-C while the main thread is in the runtime itself, where no handler of its program's can do anything: the third one
 * in the same call ends the program, as one does that nobody handles. All others go to the program's own handler alone.
 */
#ifndef NPUMATMUL_LAST_RESORT_H
#define NPUMATMUL_LAST_RESORT_H

/* Come before the program's handler of SIGINT, if it has one and this is not done yet. */
void npumm_last_resort_arm(void);

/* Around a call of the main thread. */
void npumm_last_resort_enter(void);
void npumm_last_resort_leave(void);

#endif
