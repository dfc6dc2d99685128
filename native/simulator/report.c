/*
 * What was counted, for callers: npumm_sim_read_counters and npumm_sim_counters_json.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "backing.h"
#include "chips.h"
#include "clock.h"
#include "counters.h"
#include "export.h"
#include "npumatmul_sim.h"
#include "registry.h"
#include "settings.h"

static uint64_t all_macs(void) {
  uint64_t sum = 0;
  for (int chip = 0; chip < SIM_CHIPS; chip++) {
    for (int type = 0; type < SIM_TYPES_MAX; type++) {
      for (int core = 0; core < SIM_CORES_MAX; core++) sum += sim_macs_counted(chip, type, core);
    }
  }
  return sum;
}

static uint64_t all_contexts(void) {
  uint64_t sum = 0;
  for (int chip = 0; chip < SIM_CHIPS; chip++) sum += sim_registry_contexts(chip);
  return sum;
}

static uint64_t all_nanoseconds(void) {
  uint64_t sum = 0;
  for (int chip = 0; chip < SIM_CHIPS; chip++) sum += sim_clock_all(chip);
  return sum;
}

SIM_EXPORT void npumm_sim_read_counters(npumm_sim_counters *counters) {
  if (!counters) return;
  *counters = (npumm_sim_counters){
      .run_calls = sim_calls_counted(CALL_RUN),
      .set_io_mem_calls = sim_calls_counted(CALL_SET_IO_MEM),
      .mem_sync_calls = sim_calls_counted(CALL_MEM_SYNC),
      .macs = all_macs(),
      .contexts_now = all_contexts(),
      .memories_now = sim_counted(NOW_MEMORIES),
      .descriptors_now = sim_counted(NOW_DESCRIPTORS),
      .bytes_now = sim_counted(NOW_BYTES),
      .device_nanoseconds = all_nanoseconds(),
  };
}

SIM_EXPORT void npumm_sim_reset_counters(void) {
  sim_counters_reset();
  sim_clock_reset();
}

/* ---- the same and more as JSON text ------------------------------------------------------------------------------ */

/* Appends like snprintf and keeps counting when the buffer is full. */
typedef struct {
  char *buffer;
  size_t size, length;
} text;

__attribute__((format(printf, 2, 3))) static void append(text *to, const char *format, ...) {
  size_t left = to->length < to->size ? to->size - to->length : 0;
  va_list arguments;
  va_start(arguments, format);
  int added = vsnprintf(left ? to->buffer + to->length : NULL, left, format, arguments);
  va_end(arguments);
  if (added > 0) to->length += (size_t)added;
}

/* A comma before every member but the first. */
static const char *comma(bool *first) {
  const char *result = *first ? "" : ",";
  *first = false;
  return result;
}

/* Functions that were called; the two forms of one function are one. */
static void append_calls(text *to, const char *name, uint64_t (*counted)(sim_call)) {
  bool first = true;
  append(to, "\"%s\":{", name);
  for (int call = 0; call < CALLS; call++) {
    if (call == CALL_PACK_B_7) continue;
    uint64_t count = counted((sim_call)call) + (call == CALL_PACK_B_5 ? counted(CALL_PACK_B_7) : 0);
    if (count) append(to, "%s\"%s\":%" PRIu64, comma(&first), sim_call_symbol((sim_call)call), count);
  }
  append(to, "},");
}

static void append_chip(text *to, int chip) {
  const char *soc = sim_chip_at(chip)->soc;
  bool first = true;
  append(to, "\"%s\":{\"contexts\":%" PRIu64 ",\"domain_bytes\":{", soc, sim_registry_contexts(chip));
  for (int domain = 0; domain < SIM_DOMAINS_MAX; domain++) {
    uint64_t bytes = sim_backing_used(chip, domain);
    if (bytes) append(to, "%s\"%d\":%" PRIu64, comma(&first), domain, bytes);
  }
  append(to, "},\"macs\":{");
  first = true;
  for (int type = 0; type < SIM_TYPES_MAX; type++) {
    const char *name = sim_type_name((rknn_matmul_type)type);
    uint64_t sum = 0;
    for (int core = 0; core < SIM_CORES_MAX; core++) sum += sim_macs_counted(chip, type, core);
    if (!name || !sum) continue;
    append(to, "%s\"%s\":[", comma(&first), name);
    for (int core = 0; core < sim_chip_at(chip)->cores; core++) {
      append(to, "%s%" PRIu64, core ? "," : "", sim_macs_counted(chip, type, core));
    }
    append(to, "]");
  }
  append(to, "},\"nanoseconds\":{\"all\":%" PRIu64 ",\"cores\":[", sim_clock_all(chip));
  for (int core = 0; core < sim_chip_at(chip)->cores; core++) {
    append(to, "%s%" PRIu64, core ? "," : "", sim_clock_core(chip, core));
  }
  append(to, "]}}");
}

SIM_EXPORT size_t npumm_sim_counters_json(char *buffer, size_t size) {
  text to = {.buffer = buffer, .size = buffer ? size : 0};
  append(&to, "{\"runtime\":\"%s\",\"instructions\":\"%s\",", sim_current_runtime()->name,
         sim_current_settings().products->name);
  append_calls(&to, "calls", sim_calls_counted);
  append_calls(&to, "failures", sim_failures_counted);
  append(&to,
         "\"bytes\":{\"a_read\":%" PRIu64 ",\"b_read\":%" PRIu64 ",\"c_written\":%" PRIu64 ",\"b_packed\":%" PRIu64
         ",\"to_device\":%" PRIu64 ",\"from_device\":%" PRIu64 "},",
         sim_counted(COUNT_A_READ), sim_counted(COUNT_B_READ), sim_counted(COUNT_C_WRITTEN),
         sim_counted(COUNT_B_PACKED), sim_counted(COUNT_TO_DEVICE), sim_counted(COUNT_FROM_DEVICE));
  append(&to,
         "\"saturations\":%" PRIu64 ",\"fatal_rows\":%" PRIu64 ",\"contexts\":%" PRIu64 ",\"memories\":%" PRIu64
         ",\"descriptors\":%" PRIu64 ",\"memory_bytes\":%" PRIu64 ",\"macs\":%" PRIu64 ",\"chips\":{",
         sim_counted(COUNT_SATURATIONS), sim_counted(COUNT_FATAL_ROWS), all_contexts(), sim_counted(NOW_MEMORIES),
         sim_counted(NOW_DESCRIPTORS), sim_counted(NOW_BYTES), all_macs());
  for (int chip = 0; chip < SIM_CHIPS; chip++) {
    if (chip) append(&to, ",");
    append_chip(&to, chip);
  }
  append(&to, "}}");
  return to.length;
}
