/*
 * The runtime's log lines on standard error: "E RKNN: [HH:MM:SS.mmm] text".
 */
#ifndef SIM_LOG_H
#define SIM_LOG_H

#define SIM_PRINTF __attribute__((format(printf, 1, 2)))

/* Errors are printed at every level, warnings from RKNN_LOG_LEVEL 1 on (facts 11.3). */
SIM_PRINTF void sim_log_error(const char *format, ...);
SIM_PRINTF void sim_log_warning(const char *format, ...);

/* RKNN_LOG_LEVEL; 0 where it is not set. */
int sim_log_level(void);

/* A warning at every level, of the simulator's own: about a mistake that a runtime would pass over. */
SIM_PRINTF void sim_log_hint(const char *format, ...);

#endif
