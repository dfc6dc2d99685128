#define _GNU_SOURCE
#include "faults.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "locks.h"
#include "log.h"
#include "rknn_abi.h"

#define RULES_MAX 32
#define TEXT_MAX 4096

typedef struct {
  bool applies[CALLS];
  int code;
  uint64_t delay_ms;
  bool hang, lost;
  uint64_t after, times;
  double probability;
  uint64_t random_state;
} rule;

static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static rule rules[RULES_MAX];
static size_t rule_count;
static uint64_t generation;   /* how often the rules were set */
static int lost_code;         /* of every call since the device was lost; 0: it is there */
static atomic_bool any_rules; /* spares the lock where there are none */

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static bool read_number(const char *text, uint64_t most, uint64_t *number) {
  if (*text < '0' || *text > '9') return false;
  char *end;
  errno = 0;
  *number = strtoull(text, &end, 10);
  return errno == 0 && *end == '\0' && *number <= most;
}

static bool read_code(const char *text, int *code) {
  uint64_t magnitude;
  if (*text != '-' || !read_number(text + 1, 13, &magnitude) || magnitude == 0) return false;
  *code = -(int)magnitude;
  return true;
}

static bool read_probability(const char *text, double *probability) {
  if (strspn(text, "0123456789.") != strlen(text) || *text == '\0') return false;
  char *end;
  *probability = strtod(text, &end);
  return *end == '\0' && *probability <= 1;
}

static bool read_option(rule *to, char *option) {
  if (strcmp(option, "hang") == 0) {
    to->hang = true;
    return true;
  }
  if (strcmp(option, "lost") == 0) {
    to->lost = true;
    return true;
  }
  char *value = strchr(option, '=');
  if (!value) return false;
  *value++ = '\0';
  if (strcmp(option, "code") == 0) return read_code(value, &to->code);
  if (strcmp(option, "delay_ms") == 0) return read_number(value, 3600000, &to->delay_ms);
  if (strcmp(option, "after") == 0) return read_number(value, UINT64_MAX, &to->after);
  if (strcmp(option, "times") == 0) return read_number(value, UINT64_MAX, &to->times);
  if (strcmp(option, "prob") == 0) return read_probability(value, &to->probability);
  if (strcmp(option, "seed") == 0) return read_number(value, UINT64_MAX, &to->random_state);
  return false;
}

static bool read_rule(rule *to, char *text) {
  *to = (rule){.times = UINT64_MAX, .probability = 1, .random_state = 1};
  char *rest = text;
  char *name = strsep(&rest, ":");
  bool known = false;
  for (int call = 0; call < CALLS; call++) {
    to->applies[call] = sim_call_is_named((sim_call)call, name);
    known = known || to->applies[call];
  }
  for (char *option; known && (option = strsep(&rest, ":"));) {
    if (!read_option(to, option)) return false;
  }
  return known && (to->code != 0 || to->delay_ms != 0 || to->hang || to->lost);
}

bool sim_faults_set(const char *text) {
  char copy[TEXT_MAX];
  rule read[RULES_MAX];
  size_t count = 0;
  if (strlen(text) >= sizeof copy) return false;
  strcpy(copy, text);
  char *rest = *copy ? copy : NULL;
  for (char *part; (part = strsep(&rest, ";"));) {
    if (count == RULES_MAX || !read_rule(&read[count++], part)) return false;
  }
  sim_take(LOCK_FAULTS);
  memcpy(rules, read, count * sizeof *read);
  rule_count = count;
  generation++;
  lost_code = 0;
  atomic_store(&any_rules, count > 0);
  pthread_cond_broadcast(&changed);
  sim_give(LOCK_FAULTS);
  return true;
}

/* Whoever hangs hangs in the parent: nobody waits for the child's condition. */
static void in_child(void) {
  static const pthread_cond_t fresh = PTHREAD_COND_INITIALIZER;
  memcpy(&changed, &fresh, sizeof fresh);
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, in_child); }

/* ---- injecting --------------------------------------------------------------------------------------------------- */

/* The next of the splitmix64 sequence, as a fraction in [0, 1). */
static double next_fraction(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static bool strikes(rule *of) {
  if (of->after > 0) {
    of->after--;
    return false;
  }
  if (of->times == 0 || next_fraction(&of->random_state) >= of->probability) return false;
  if (of->times != UINT64_MAX) of->times--;
  return true;
}

static void wait_ms(uint64_t ms) {
  struct timespec left = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
  while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
}

int sim_faults_inject(sim_call call) {
  if (!atomic_load(&any_rules)) return RKNN_SUCC;
  int code = 0;
  uint64_t delay_ms = 0;
  bool hang = false;
  sim_take(LOCK_FAULTS);
  for (size_t i = 0; i < rule_count; i++) {
    rule *now = &rules[i];
    if (!now->applies[call] || !strikes(now)) continue;
    delay_ms += now->delay_ms;
    hang = hang || now->hang;
    if (now->lost && lost_code == 0) lost_code = now->code ? now->code : RKNN_ERR_DEVICE_UNAVAILABLE;
    if (code == 0) code = now->code;
  }
  if (lost_code != 0) code = lost_code;
  if (hang) {
    if (code == 0) code = RKNN_ERR_TIMEOUT;
    for (uint64_t began = generation; began == generation;) sim_wait(&changed, LOCK_FAULTS);
  }
  sim_give(LOCK_FAULTS);
  if (delay_ms) wait_ms(delay_ms);
  if (code != 0) sim_log_error("%s, simulator: injected fault, code %d", sim_call_symbol(call), code);
  return code;
}
