/*
 * A trace of the calls in the JSON format of chrome://tracing and Perfetto: one complete event per call.
 */
#ifndef SIM_TRACE_H
#define SIM_TRACE_H

#include <stdbool.h>
#include <stdint.h>

/* Ends the present trace and begins one in a new file; "" begins none. False when the file cannot be written. */
bool sim_trace_to(const char *path);

bool sim_tracing(void);

/* The time now in microseconds, never 0; forgets the thread's note. */
int64_t sim_trace_begin(void);

/* Adds members to the "args" of the thread's present call: "\"M\":4,\"K\":64". No effect when nothing is traced. */
__attribute__((format(printf, 1, 2))) void sim_trace_note(const char *format, ...);

void sim_trace_end(const char *name, int64_t start_us, int result);

#endif
