/*
 * rknn_query, as far as it answers for a matmul context (Q24).
 */
#include <stdio.h>
#include <string.h>

#include "api.h"
#include "context.h"
#include "counters.h"
#include "log.h"
#include "registry.h"

static int answer(const sim_context *context, rknn_query_cmd cmd, void *info, uint32_t size) {
  switch (cmd) {
    case RKNN_QUERY_SDK_VERSION: {
      if (size != sizeof(rknn_sdk_version)) return RKNN_ERR_PARAM_INVALID;
      rknn_sdk_version version = {0};
      snprintf(version.api_version, sizeof version.api_version, "%s", context->settings.runtime->api_version);
      snprintf(version.drv_version, sizeof version.drv_version, "%s", context->settings.runtime->driver_version);
      memcpy(info, &version, sizeof version);
      return RKNN_SUCC;
    }
    case RKNN_QUERY_MEM_SIZE: {
      if (size != sizeof(rknn_mem_size)) return RKNN_ERR_PARAM_INVALID;
      rknn_mem_size memory = {
          .total_weight_size = context->now ? context->now->attr.B.size : 0,
          .total_internal_size = context->now && context->packed_b ? context->now->attr.B.size : 0,
          .total_dma_allocated_size = sim_counted(NOW_BYTES),
      };
      memcpy(info, &memory, sizeof memory);
      return RKNN_SUCC;
    }
    case RKNN_QUERY_IN_OUT_NUM: {
      if (size != sizeof(rknn_input_output_num)) return RKNN_ERR_PARAM_INVALID;
      rknn_input_output_num number = {.n_input = 1, .n_output = 1}; /* recorded: B does not count as an input */
      memcpy(info, &number, sizeof number);
      return RKNN_SUCC;
    }
    case RKNN_QUERY_PERF_RUN: {
      if (size != sizeof(rknn_perf_run)) return RKNN_ERR_PARAM_INVALID;
      rknn_perf_run perf = {.run_duration = context->last_run_us};
      memcpy(info, &perf, sizeof perf);
      return RKNN_SUCC;
    }
    default:
      sim_log_error(
          "rknn_query, simulator: no answer to command %d for a matmul context; only the matmul API is "
          "simulated",
          (int)cmd);
      return RKNN_ERR_PARAM_INVALID;
  }
}

int sim_query(rknn_context ctx, rknn_query_cmd cmd, void *info, uint32_t size) {
  sim_context *context;
  int result = sim_registry_enter(ctx, "rknn_query", &context);
  if (result == RKNN_ERR_CTX_INVALID) {
    sim_log_error("rknn_query, simulator: 0x%llx is no matmul context; only the matmul API is simulated",
                  (unsigned long long)ctx);
  }
  if (result != RKNN_SUCC) return result;
  result = info ? answer(context, cmd, info, size) : RKNN_ERR_PARAM_INVALID;
  sim_registry_leave(ctx);
  return result;
}
