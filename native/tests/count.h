/* Counting what held in a test program and what did not; several threads may. */
#ifndef COUNT_H
#define COUNT_H

#include <stdio.h>

static _Atomic unsigned passed, failed;

/* CHECK(condition, "format", ...): says where, and what the format makes of the rest. */
#define CHECK(condition, ...)                \
  do {                                       \
    if (condition) {                         \
      passed++;                              \
    } else {                                 \
      failed++;                              \
      printf("%s:%d: ", __FILE__, __LINE__); \
      printf(__VA_ARGS__);                   \
      printf("\n");                          \
    }                                        \
  } while (0)

/* HOLDS(condition): the condition is message enough. */
#define HOLDS(condition) CHECK(condition, "not true: %s", #condition)

/* The last line of every main. */
static inline int report(const char *program) {
  printf("%s: %u passed, %u failed\n", program, passed, failed);
  return failed != 0;
}

#endif
