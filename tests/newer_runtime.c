/* A runtime that calls itself 2.5.0: everything is the simulator's of 2.3.2 but the version that it tells. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "rknn_abi.h"

int rknn_query(rknn_context context, rknn_query_cmd cmd, void *info, uint32_t size) {
  int (*real)(rknn_context, rknn_query_cmd, void *, uint32_t) = NULL;
  void *found = dlsym(RTLD_NEXT, "rknn_query");
  if (!found) abort();
  memcpy(&real, &found, sizeof real);
  const int code = real(context, cmd, info, size);
  if (code == 0 && cmd == RKNN_QUERY_SDK_VERSION) {
    rknn_sdk_version *version = info;
    strcpy(version->api_version, "2.5.0 (0123456789@2026-10-01T10:00:00)");
  }
  return code;
}
