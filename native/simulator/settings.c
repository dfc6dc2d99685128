#define _GNU_SOURCE
#include "settings.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "export.h"
#include "faults.h"
#include "locks.h"
#include "log.h"
#include "npumatmul_sim.h"
#include "pace.h"
#include "timing.h"
#include "trace.h"

static sim_settings settings; /* guarded by lock */

/* Also in settings; here for every call to read without the lock. */
static _Atomic(const sim_runtime *) runtime;

static _Thread_local const sim_chip *selected_chip;

/* ---- one function per setting: false when the text is not one of its values -------------------------------------- */

static bool apply_soc(const char *text) {
  const sim_chip *chip = sim_find_chip(text);
  if (chip) settings.chip = chip;
  return chip != NULL;
}

/* A library that is one version by name stays that version. */
static bool apply_runtime(const char *text) {
  const sim_runtime *found = sim_find_runtime(text);
  if (!found) return false;
  if (sim_library_version) found = sim_find_runtime(sim_library_version);
  settings.runtime = found;
  atomic_store(&runtime, found);
  return true;
}

/* The index of text in choices, or -1. */
static int choice(const char *text, const char *const *choices, int count) {
  for (int i = 0; i < count; i++) {
    if (strcmp(text, choices[i]) == 0) return i;
  }
  return -1;
}

static bool apply_switch(const char *text, const char *off, const char *on, bool *to) {
  int chosen = choice(text, (const char *const[]){off, on}, 2);
  if (chosen >= 0) *to = chosen == 1;
  return chosen >= 0;
}

static bool apply_limits(const char *text) {
  return apply_switch(text, "observed", "documented", &settings.documented_limits);
}

static bool apply_broken(const char *text) { return apply_switch(text, "0", "1", &settings.broken); }

static bool apply_strict(const char *text) { return apply_switch(text, "0", "1", &settings.strict); }

static bool apply_rows(const char *text) { return apply_switch(text, "exact", "ceil4", &settings.ceil4); }

static bool apply_foreign(const char *text) { return apply_switch(text, "refuse", "accept", &settings.foreign); }

static bool apply_compute(const char *text) { return apply_switch(text, "on", "off", &settings.idle); }

static bool apply_overflow(const char *text) {
  int chosen = choice(text, (const char *const[]){"saturate", "wrap", "error"}, 3);
  if (chosen >= 0) settings.overflow = (sim_overflow)chosen;
  return chosen >= 0;
}

static bool apply_int4_rows(const char *text) {
  int chosen = choice(text, (const char *const[]){"refused", "deadly", "any"}, 3);
  if (chosen >= 0) settings.rows_limit = (sim_rows_limit)chosen;
  return chosen >= 0;
}

static bool parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *number) {
  if (*text < '0' || *text > '9') return false; /* strtoull takes signs and blanks */
  char *end;
  errno = 0;
  unsigned long long value = strtoull(text, &end, 10);
  if (errno != 0 || *end != '\0' || value < least || value > most) return false;
  *number = value;
  return true;
}

static bool apply_contexts(const char *text) {
  uint64_t number = 0;
  if (strcmp(text, "none") != 0 && !parse_number(text, 1, UINT32_MAX, &number)) return false;
  settings.contexts = (uint32_t)number;
  return true;
}

static bool apply_domain_bytes(const char *text) { return parse_number(text, 1, 1ull << 32, &settings.domain_bytes); }

static bool apply_driver(const char *text) {
  int chosen = choice(text, (const char *const[]){"ok", "old", "missing"}, 3);
  if (chosen >= 0) settings.driver = (sim_driver)chosen;
  return chosen >= 0;
}

/* Whatever waits for its time is let go, as runs that hang are when faults are set anew. */
static bool apply_timing(const char *text) {
  int chosen = choice(text, (const char *const[]){"off", "model", "realtime"}, 3);
  if (chosen < 0) return false;
  settings.timing = (sim_timing_mode)chosen;
  sim_pace_set(settings.timing == TIMING_REALTIME);
  return true;
}

/* Those of another CPU are refused. */
static bool apply_instructions(const char *text) {
  const sim_products *chosen = strcmp(text, "best") == 0 ? sim_best_products() : NULL;
  for (size_t i = 0; !chosen && sim_products_at(i); i++) {
    if (strcmp(sim_products_at(i)->name, text) == 0) chosen = sim_products_at(i);
  }
  if (chosen) settings.products = chosen;
  return chosen != NULL;
}

static bool apply_constants(const char *text) { return sim_timing_read(text, &settings.constants); }

static const char *chip_name(int index) { return sim_chip_at(index) ? sim_chip_at(index)->soc : NULL; }

static const char *instructions_name(int index) {
  if (index == 0) return "best";
  const sim_products *products = sim_products_at((size_t)index - 1);
  return products ? products->name : NULL;
}

static const char *runtime_name(int index) { return sim_runtime_at(index) ? sim_runtime_at(index)->name : NULL; }

static struct {
  const char *const name;
  const char *const value; /* where nothing is said */
  bool (*const apply)(const char *text);
  const char *const wanted; /* or NULL: one of names */
  const char *(*const wanted_names)(int index);
  char *text;         /* in force; NULL: value */
  char malformed[64]; /* the text that was refused, or its beginning; empty: none */
} table[] = {
    {"NPUMATMUL_SIM_SOC", "rk3588", apply_soc, NULL, chip_name, NULL, ""},
    {"NPUMATMUL_SIM_RUNTIME", "2.3.2", apply_runtime, NULL, runtime_name, NULL, ""},
    {"NPUMATMUL_SIM_LIMITS", "observed", apply_limits, "observed or documented", NULL, NULL, ""},
    {"NPUMATMUL_SIM_BROKEN", "0", apply_broken, "0 or 1", NULL, NULL, ""},
    {"NPUMATMUL_SIM_OVERFLOW", "saturate", apply_overflow, "saturate, wrap or error", NULL, NULL, ""},
    {"NPUMATMUL_SIM_STRICT", "0", apply_strict, "0 or 1", NULL, NULL, ""},
    {"NPUMATMUL_SIM_ROWS", "exact", apply_rows, "exact or ceil4", NULL, NULL, ""},
    {"NPUMATMUL_SIM_INT4_ROWS", "refused", apply_int4_rows, "refused, deadly or any", NULL, NULL, ""},
    {"NPUMATMUL_SIM_FOREIGN", "accept", apply_foreign, "accept or refuse", NULL, NULL, ""},
    /* Real clients hold up to 1,876; descriptors and memory are what runs out (facts 15). */
    {"NPUMATMUL_SIM_CONTEXTS", "none", apply_contexts, "none or a number from 1 on", NULL, NULL, ""},
    /* A process runs out of NPU memory at about 2 GiB per domain (facts 7.4, 11.4): 2 GiB - 64 KiB. */
    {"NPUMATMUL_SIM_DOMAIN_BYTES", "2147418112", apply_domain_bytes, "a number from 1 to 4294967296", NULL, NULL, ""},
    {"NPUMATMUL_SIM_DRIVER", "ok", apply_driver, "ok, old or missing", NULL, NULL, ""},
    {"NPUMATMUL_SIM_COMPUTE", "on", apply_compute, "on or off", NULL, NULL, ""},
    {"NPUMATMUL_SIM_TIMING", "off", apply_timing, "off, model or realtime", NULL, NULL, ""},
    {"NPUMATMUL_SIM_TIMING_CONSTANTS", "", apply_constants,
     "constants as in docs/simulator.md, e.g. start_seconds=3e-5,peak_int8=1e12", NULL, NULL, ""},
    {"NPUMATMUL_SIM_INSTRUCTIONS", "best", apply_instructions, NULL, instructions_name, NULL, ""},
    {"NPUMATMUL_SIM_FAULTS", "", sim_faults_set, "rules as in docs/simulator.md, e.g. run:after=3:code=-2", NULL, NULL,
     ""},
    {"NPUMATMUL_SIM_TRACE", "", sim_trace_to, "the path of a file that can be written", NULL, NULL, ""},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Names as "a, b or c". */
static void join(char *text, size_t size, const char *(*name)(int index)) {
  size_t length = 0;
  for (int i = 0; name(i) && length < size; i++) {
    const char *before = i == 0 ? "" : name(i + 1) ? ", " : " or ";
    length += (size_t)snprintf(text + length, size - length, "%s%s", before, name(i));
  }
}

static void complain(size_t i, const char *text) {
  char names[256];
  if (!table[i].wanted) join(names, sizeof names, table[i].wanted_names);
  sim_log_error("simulator: %s is \"%s\", not %s", table[i].name, text, table[i].wanted ? table[i].wanted : names);
}

/* False when the text is not one of the setting's values, or there is no memory for it; then nothing changed. */
static bool apply(size_t i, const char *text) {
  char *copy = strdup(text);
  if (!copy || !table[i].apply(text)) {
    free(copy);
    return false;
  }
  free(table[i].text);
  table[i].text = copy;
  return true;
}

/* A name that is misspelt would be passed over in silence otherwise. */
static void look_for_other_names(void) {
  static const char prefix[] = "NPUMATMUL_SIM_";
  for (char **variable = environ; variable && *variable; variable++) {
    if (strncmp(*variable, prefix, sizeof prefix - 1) != 0) continue;
    size_t length = strcspn(*variable, "="), i = 0;
    while (i < COUNT(table) && (strlen(table[i].name) != length || strncmp(*variable, table[i].name, length) != 0)) i++;
    if (i == COUNT(table)) sim_log_hint("simulator: there is no setting %.*s", (int)length, *variable);
  }
}

/* A malformed value leaves the default in force, and every create fails until it is corrected. */
__attribute__((constructor)) static void read_environment(void) {
  for (size_t i = 0; i < COUNT(table); i++) {
    const char *text = getenv(table[i].name);
    table[i].apply(table[i].value);
    if (!text || !*text || apply(i, text)) continue;
    snprintf(table[i].malformed, sizeof table[i].malformed, "%s", text);
  }
  look_for_other_names();
}

sim_settings sim_current_settings(void) {
  sim_take(LOCK_SETTINGS);
  sim_settings now = settings;
  sim_give(LOCK_SETTINGS);
  if (selected_chip) now.chip = selected_chip;
  return now;
}

const sim_runtime *sim_current_runtime(void) { return atomic_load(&runtime); }

bool sim_settings_usable(void) {
  bool usable = true;
  sim_take(LOCK_SETTINGS);
  for (size_t i = 0; usable && i < COUNT(table); i++) {
    if (table[i].malformed[0] == '\0') continue;
    complain(i, table[i].malformed);
    usable = false;
  }
  sim_give(LOCK_SETTINGS);
  return usable;
}

/* The index of a setting, or COUNT(table) with a log line. */
static size_t find(const char *name) {
  size_t i = 0;
  while (i < COUNT(table) && strcmp(name, table[i].name) != 0) i++;
  if (i == COUNT(table)) sim_log_error("simulator: there is no setting \"%s\"", name);
  return i;
}

SIM_EXPORT int npumm_sim_configure(const char *name, const char *value) {
  size_t i = name ? find(name) : COUNT(table);
  if (i == COUNT(table)) return RKNN_ERR_PARAM_INVALID;
  const char *text = value && *value ? value : table[i].value;
  sim_take(LOCK_SETTINGS);
  bool applied = apply(i, text);
  if (applied) table[i].malformed[0] = '\0';
  sim_give(LOCK_SETTINGS);
  if (!applied) complain(i, text);
  return applied ? RKNN_SUCC : RKNN_ERR_FAIL;
}

SIM_EXPORT size_t npumm_sim_setting(const char *name, char *buffer, size_t size) {
  size_t i = name ? find(name) : COUNT(table);
  if (i == COUNT(table)) return SIZE_MAX;
  sim_take(LOCK_SETTINGS);
  int length = snprintf(buffer, buffer ? size : 0, "%s", table[i].text ? table[i].text : table[i].value);
  sim_give(LOCK_SETTINGS);
  return (size_t)length;
}

SIM_EXPORT int npumm_sim_select(const char *soc) {
  const sim_chip *chip = soc ? sim_find_chip(soc) : NULL;
  if (soc && !chip) {
    char names[256];
    join(names, sizeof names, chip_name);
    sim_log_error("simulator: there is no chip \"%s\", only %s", soc, names);
    return RKNN_ERR_PARAM_INVALID;
  }
  selected_chip = chip;
  return RKNN_SUCC;
}

SIM_EXPORT const char *npumm_sim_describe(int *cores) {
  const sim_chip *chip = sim_current_settings().chip;
  if (cores) *cores = chip->cores;
  return chip->soc;
}
