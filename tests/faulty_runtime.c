/* A runtime that fails on demand: everything is the simulator's but the calls that are told to fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "rknn_abi.h"

static char failing[64];
static _Atomic int calls_until, code_to_return, times_left;

/* `times` calls of `function`, after `after` more good ones, return `code`. "name*" stands for all that begin so. */
void faulty_arm(const char *function, int after, int code, int times) {
  strncpy(failing, function, sizeof failing - 1);
  calls_until = after;
  code_to_return = code;
  times_left = times;
}

static int strikes(const char *function) {
  const size_t length = strlen(failing);
  const int prefix = length > 0 && failing[length - 1] == '*';
  if (times_left == 0 || (prefix ? strncmp(failing, function, length - 1) : strcmp(failing, function)) != 0) return 0;
  if (calls_until-- > 0) return 0;
  times_left--;
  return code_to_return;
}

static void *next(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

#define WRAP(name, parameters, ...)         \
  int name parameters {                     \
    const int code = strikes(#name);        \
    int(*real) parameters = NULL;           \
    void *found = next(#name);              \
    memcpy(&real, &found, sizeof real);     \
    return code ? code : real(__VA_ARGS__); \
  }

WRAP(rknn_matmul_create, (rknn_matmul_ctx * ctx, rknn_matmul_info *info, rknn_matmul_io_attr *io), ctx, info, io)
WRAP(rknn_matmul_create_dynamic_shape,
     (rknn_matmul_ctx * ctx, rknn_matmul_info *info, int count, rknn_matmul_shape *shapes, rknn_matmul_io_attr *io),
     ctx, info, count, shapes, io)
WRAP(rknn_matmul_set_dynamic_shape, (rknn_matmul_ctx ctx, rknn_matmul_shape *shape), ctx, shape)
WRAP(rknn_matmul_set_io_mem, (rknn_matmul_ctx ctx, rknn_tensor_mem *mem, rknn_matmul_tensor_attr *attr), ctx, mem, attr)
WRAP(rknn_matmul_set_core_mask, (rknn_matmul_ctx ctx, rknn_core_mask mask), ctx, mask)
WRAP(rknn_matmul_run, (rknn_matmul_ctx ctx), ctx)
WRAP(rknn_mem_sync, (rknn_context ctx, rknn_tensor_mem *mem, rknn_mem_sync_mode mode), ctx, mem, mode)
WRAP(rknn_query, (rknn_context ctx, rknn_query_cmd cmd, void *info, uint32_t size), ctx, cmd, info, size)

rknn_tensor_mem *rknn_create_mem(rknn_context ctx, uint32_t size) {
  rknn_tensor_mem *(*real)(rknn_context, uint32_t) = NULL;
  void *found = next("rknn_create_mem");
  memcpy(&real, &found, sizeof real);
  return strikes("rknn_create_mem") ? NULL : real(ctx, size);
}

rknn_tensor_mem *rknn_create_mem_from_fd(rknn_context ctx, int32_t fd, void *virt, uint32_t size, int32_t offset) {
  rknn_tensor_mem *(*real)(rknn_context, int32_t, void *, uint32_t, int32_t) = NULL;
  void *found = next("rknn_create_mem_from_fd");
  memcpy(&real, &found, sizeof real);
  return strikes("rknn_create_mem_from_fd") ? NULL : real(ctx, fd, virt, size, offset);
}
