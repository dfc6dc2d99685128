/* A runtime that tells on standard error what is destroyed, and with which return code; otherwise the simulator. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rknn_abi.h"

static void *next(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

int rknn_matmul_destroy(rknn_matmul_ctx ctx) {
  int (*real)(rknn_matmul_ctx) = NULL;
  void *found = next("rknn_matmul_destroy");
  memcpy(&real, &found, sizeof real);
  const int code = real(ctx);
  fprintf(stderr, "C%d ", code);
  return code;
}

int rknn_destroy_mem(rknn_context ctx, rknn_tensor_mem *mem) {
  int (*real)(rknn_context, rknn_tensor_mem *) = NULL;
  void *found = next("rknn_destroy_mem");
  memcpy(&real, &found, sizeof real);
  const int code = real(ctx, mem);
  fprintf(stderr, "M%d ", code);
  return code;
}
