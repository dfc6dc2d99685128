/*
 * What happens around every call of a vendor function, in one place: is it in this version, count it, inject faults,
 * trace it. exports.c is made of these pairs.
 */
#ifndef SIM_CALLS_H
#define SIM_CALLS_H

#include <stdbool.h>
#include <stdint.h>

#include "functions.h"

typedef struct {
  sim_call call;
  bool refused; /* by version or by a fault: the function must not be carried out */
  int result;
  int64_t start_us; /* when traced */
  int cancelling;   /* whether the thread could be cancelled before */
} sim_entry;

sim_entry sim_enter_call(sim_call call);
int sim_leave_call(const sim_entry *entry);

/* The code of a function for models, with its log line. */
int sim_refuse_model_call(const char *function);

#endif
