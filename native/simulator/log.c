#define _GNU_SOURCE
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* One fprintf per line, so that lines of different threads do not mix. Longer texts are cut. */
static void print_line(char severity, const char *format, va_list arguments) {
  char text[512];
  vsnprintf(text, sizeof text, format, arguments);
  struct timespec now;
  struct tm local;
  clock_gettime(CLOCK_REALTIME, &now);
  localtime_r(&now.tv_sec, &local);
  fprintf(stderr, "%c RKNN: [%02d:%02d:%02d.%03d] %s\n", severity, local.tm_hour, local.tm_min, local.tm_sec,
          (int)(now.tv_nsec / 1000000), text);
}

void sim_log_error(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  print_line('E', format, arguments);
  va_end(arguments);
}

int sim_log_level(void) {
  const char *level = getenv("RKNN_LOG_LEVEL");
  return level ? atoi(level) : 0;
}

void sim_log_warning(const char *format, ...) {
  if (sim_log_level() < 1) return;
  va_list arguments;
  va_start(arguments, format);
  print_line('W', format, arguments);
  va_end(arguments);
}

void sim_log_hint(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  print_line('W', format, arguments);
  va_end(arguments);
}
