#include "request.h"

#include <signal.h>
#include <string.h>

#include "counters.h"
#include "functions.h"
#include "log.h"

/* The struct of 1.5.2 and 1.6.0 (facts 1.2). */
typedef struct {
  int32_t M, K, N, type, b_layout, ac_layout;
} info_of_1;

sim_request sim_read_request(const sim_runtime *runtime, const void *info) {
  if (runtime->info_bytes == sizeof(info_of_1)) {
    info_of_1 read;
    memcpy(&read, info, sizeof read);
    /* Recorded: every layout but 0 is native. */
    return (sim_request){
        .shape = {read.M, read.K, read.N},
        .type = (rknn_matmul_type)read.type,
        .b_layout = read.b_layout != 0,
        .ac_layout = read.ac_layout != 0,
    };
  }
  rknn_matmul_info read;
  memcpy(&read, info, sizeof read);
  return (sim_request){
      .shape = {read.M, read.K, read.N},
      .type = read.type,
      .b_layout = read.B_layout,
      .ac_layout = read.AC_layout,
      .b_quant = read.B_quant_type,
      .ac_quant = read.AC_quant_type,
      .domain = read.iommu_domain_id,
      .group_size = runtime->quant_numbers == QUANT_NUMBERS_ENUM ? read.group_size : 0,
  };
}

#define OLD_HEADER "or is it that of a header before 2.0.0b0, which has 24 of the 64 bytes that are read?"

static bool is_zero(const int8_t *bytes, size_t count) {
  for (size_t i = 0; i < count; i++) {
    if (bytes[i] != 0) return false;
  }
  return true;
}

/* Whether a layout and a quantization type of 16 bits each were written where a layout of 32 bits is read. */
static bool holds_quant_type(int32_t field) {
  uint32_t layout = (uint32_t)field & 0xffff, quant = (uint32_t)field >> 16;
  return layout <= RKNN_MM_LAYOUT_TP_NORM && quant >= 1 && quant <= RKNN_QUANT_TYPE_PER_GROUP_ASYM;
}

/*
 * A runtime looks at none of this (facts 1.7). What lies behind a struct of 24 bytes becomes the IOMMU domain, the size
 * of groups and what is reserved; in the other direction the halves of a layout field become one number.
 */
int sim_check_struct(const sim_settings *settings, const char *function, const void *info) {
  if (settings->runtime->info_bytes == sizeof(info_of_1)) {
    info_of_1 read;
    memcpy(&read, info, sizeof read);
    if (holds_quant_type(read.b_layout) || holds_quant_type(read.ac_layout)) {
      sim_log_hint(
          "%s, simulator: the layouts are 0x%x and 0x%x, which runtime %s takes for native: is the struct that of "
          "a header from 2.0.0b0 on, with quantization types?",
          function, (unsigned)read.b_layout, (unsigned)read.ac_layout, settings->runtime->name);
    }
    return RKNN_SUCC;
  }
  rknn_matmul_info read;
  memcpy(&read, info, sizeof read);
  if (is_zero(read.reserved, sizeof read.reserved)) return RKNN_SUCC;
  if (settings->strict) {
    sim_log_error("%s, simulator: reserved bytes of rknn_matmul_info are set: was it zeroed, " OLD_HEADER, function);
    return RKNN_ERR_PARAM_INVALID;
  }
  sim_log_hint("%s, simulator: reserved bytes of rknn_matmul_info are set: was it zeroed, " OLD_HEADER, function);
  return RKNN_SUCC;
}

/* ---- type and shape ---------------------------------------------------------------------------------------------- */

/* The lines of 1.5.2 are recorded without the name of the function. */
static const char *prefix_of(const sim_settings *settings, const char *function) {
  return settings->runtime->number < 160 ? "" : function;
}

static const char *separator_of(const sim_settings *settings) { return settings->runtime->number < 160 ? "" : ", "; }

static bool has_bit(uint32_t bits, rknn_matmul_type type) { return (unsigned)type < 32 && bits >> (unsigned)type & 1; }

static void log_unsupported(const sim_settings *settings, const char *function, rknn_matmul_type type) {
  const sim_runtime *runtime = settings->runtime;
  const char *name = has_bit(runtime->named_types, type) ? sim_type_name(type) : "UNKNOW";
  if (runtime->number < 160) {
    sim_log_error("meet unsupported matmul dtype: %d", (int)type);
  } else if (runtime->number < 200) {
    sim_log_error("%s, meet unsupported matmul dtype : %s", function, name);
  } else {
    /* A board's line; it names the dynamic function for plain create too (facts 15). */
    if (strcmp(function, sim_call_symbol(CALL_CREATE)) == 0) {
      function = sim_call_symbol(runtime->number < 210 ? CALL_CREATE_DYN_SHAPE : CALL_CREATE_DYNAMIC_SHAPE);
    }
    sim_log_error("%s, unsupported matmul dtype : %s in this platform", function, name);
  }
}

int sim_check_type(const sim_settings *settings, const char *function, const sim_request *request,
                   const sim_type **type) {
  if (settings->chip->since > settings->runtime->number) {
    sim_log_error("%s, simulator: runtime %s does not know %s", function, settings->runtime->name, settings->chip->soc);
    return RKNN_ERR_FAIL;
  }
  *type = has_bit(settings->runtime->types, request->type) ? sim_find_type(settings->chip, request->type) : NULL;
  /* Recorded: every int4 that was tried ended the process at level 3 or more, in all layouts (facts 15). */
  if (*type && (*type)->b == RKNN_TENSOR_INT4 && settings->rows_limit == ROWS_DEADLY && sim_log_level() >= 3) {
    raise(SIGFPE);
  }
  if (*type) return RKNN_SUCC;
  log_unsupported(settings, function, request->type);
  return RKNN_ERR_PARAM_INVALID;
}

typedef struct {
  uint32_t k_max, k_align, n_align, n_max; /* n_max 0: none (facts 14, D7, Q8) */
} limits;

/* The recordings rule for 1.x. For 2.x the setting chooses between the header's numbers and the guide's. */
static limits limits_of(const sim_settings *settings, const sim_type *type) {
  const sim_chip *chip = settings->chip;
  limits result = {.k_max = chip->k_max, .k_align = type->k_align, .n_align = type->n_align};
  if (settings->runtime->number < 160) {
    result.k_max = type->k_max_1_5_2;
  } else if (settings->runtime->number < 200) {
    result.k_max = chip->k_max_1_6_0;
  } else if (settings->documented_limits) {
    result = (limits){
        .k_max = chip->documented_k_max,
        .k_align = 32, /* on every chip (facts 3.3, D5) */
        .n_align = type->documented_n_align,
        .n_max = type->documented_n_max,
    };
  }
  return result;
}

int sim_check_shape(const sim_settings *settings, const char *function, const sim_type *type, rknn_matmul_shape shape) {
  limits limit = limits_of(settings, type);
  const char *prefix = prefix_of(settings, function), *separator = separator_of(settings);
  if (shape.M <= 0 || shape.K <= 0 || shape.N <= 0) {
    sim_log_error("%s, simulator: M, K and N must be positive, not %d, %d, %d", function, shape.M, shape.K, shape.N);
  } else if ((uint32_t)shape.K > limit.k_max && settings->runtime->number < 160) {
    sim_log_error("matmul K must be less than or equal %u!", limit.k_max);
  } else if ((uint32_t)shape.K > limit.k_max) {
    sim_log_error("%s, k > limit: %d", function, shape.K);
  } else if ((uint32_t)shape.K % limit.k_align != 0) {
    sim_log_error("%s%smatmul K must be align with %u!", prefix, separator, limit.k_align);
  } else if ((uint32_t)shape.N % limit.n_align != 0) {
    sim_log_error("%s%smatmul N must be align with %u!", prefix, separator, limit.n_align);
  } else if (limit.n_max != 0 && (uint32_t)shape.N > limit.n_max) {
    sim_log_error("%s, simulator: N %d is above %u, the documented maximum", function, shape.N, limit.n_max);
  } else {
    return RKNN_SUCC;
  }
  return RKNN_ERR_PARAM_INVALID;
}

/* ---- layouts, quantization, domain ------------------------------------------------------------------------------- */

static bool check_layouts(const sim_settings *settings, const char *function, const sim_request *request) {
  bool ac_known = request->ac_layout == RKNN_MM_LAYOUT_NORM || request->ac_layout == RKNN_MM_LAYOUT_NATIVE;
  if (request->b_layout < RKNN_MM_LAYOUT_NORM || request->b_layout > RKNN_MM_LAYOUT_TP_NORM || !ac_known) {
    sim_log_error("%s, simulator: no such layout: B_layout %d, AC_layout %d", function, request->b_layout,
                  request->ac_layout);
    return false;
  }
  if (request->b_layout != RKNN_MM_LAYOUT_TP_NORM) return true;
  if (settings->runtime->transposed_b && settings->chip->transposed_b) return true;
  sim_log_error("%s, simulator: B_layout TP_NORM is not known to runtime %s on %s", function, settings->runtime->name,
                settings->chip->soc);
  return false;
}

/* By rknn_matmul_quant_type. */
static const struct {
  sim_granularity granularity;
  bool asymmetric;
  const char *name;
} quant_types[] = {
    {PER_LAYER, false, "RKNN_QUANT_TYPE_PER_LAYER_SYM"},     {PER_LAYER, true, "RKNN_QUANT_TYPE_PER_LAYER_ASYM"},
    {PER_CHANNEL, false, "RKNN_QUANT_TYPE_PER_CHANNEL_SYM"}, {PER_CHANNEL, true, "RKNN_QUANT_TYPE_PER_CHANNEL_ASYM"},
    {PER_GROUP, false, "RKNN_QUANT_TYPE_PER_GROUP_SYM"},     {PER_GROUP, true, "RKNN_QUANT_TYPE_PER_GROUP_ASYM"},
};

/*
 * The quant type that a number means. 2.0.0b0 has 0 per layer and 1 per channel and says nothing of symmetry, so both
 * may have zero points there. -1: none.
 */
static int quant_type_of(const sim_runtime *runtime, int number) {
  if (runtime->quant_numbers == QUANT_NUMBERS_LAYER_CHANNEL) {
    static const int meant[] = {RKNN_QUANT_TYPE_PER_LAYER_ASYM, RKNN_QUANT_TYPE_PER_CHANNEL_ASYM};
    return number == 0 || number == 1 ? meant[number] : -1;
  }
  return number >= RKNN_QUANT_TYPE_PER_LAYER_SYM && number <= RKNN_QUANT_TYPE_PER_GROUP_ASYM ? number : -1;
}

static bool check_quantization(const sim_settings *settings, const char *function, const sim_type *type,
                               sim_request *request) {
  int b = quant_type_of(settings->runtime, request->b_quant);
  int ac = quant_type_of(settings->runtime, request->ac_quant);
  if (b < 0 || ac < 0 || quant_types[ac].granularity != PER_LAYER) {
    /* A and C: guide and API reference allow both per-layer types, the header only 0 (D14). */
    sim_log_error("%s, simulator: no such quantization: B_quant_type %d, AC_quant_type %d", function, request->b_quant,
                  request->ac_quant);
    return false;
  }
  request->b_granularity = quant_types[b].granularity;
  request->b_asymmetric = quant_types[b].asymmetric;
  request->ac_asymmetric = quant_types[ac].asymmetric;

  unsigned allowed = settings->documented_limits ? type->documented_granularity : type->observed_granularity;
  if (!(request->b_granularity & allowed) && request->b_granularity == PER_CHANNEL) {
    sim_log_error(
        "%s, B_quant_type = %s, only supported matmul dtype : RKNN_INT8_MM_INT8_TO_INT8 and "
        "RKNN_INT8_MM_INT8_TO_INT32",
        function, quant_types[b].name);
    return false;
  }
  if (!(request->b_granularity & allowed)) {
    sim_log_error("%s, simulator: B_quant_type = %s is not for %s on %s", function, quant_types[b].name,
                  sim_type_name(type->type), settings->chip->soc);
    return false;
  }
  if (request->b_granularity == PER_GROUP && request->b_asymmetric) {
    /* The release note speaks of symmetric groups only (D15, Q2). */
    sim_log_error("%s, simulator: B_quant_type = %s is not supported", function, quant_types[b].name);
    return false;
  }
  return true;
}

int sim_check_options(const sim_settings *settings, const char *function, const sim_type *type, sim_request *request) {
  if (!check_layouts(settings, function, request)) return RKNN_ERR_PARAM_INVALID;
  request->b_granularity = PER_LAYER; /* where the version has no quantization */
  if (settings->runtime->quant_numbers != QUANT_NUMBERS_NONE &&
      !check_quantization(settings, function, type, request)) {
    return RKNN_ERR_PARAM_INVALID;
  }
  if (request->domain < 0 || request->domain >= settings->chip->domains) {
    sim_log_error("%s, simulator: iommu_domain_id %d is not in 0..%d: was rknn_matmul_info zeroed, " OLD_HEADER,
                  function, request->domain, settings->chip->domains - 1);
    return RKNN_ERR_PARAM_INVALID;
  }
  return RKNN_SUCC;
}

/* A recorded trap: runtime 1.6.0 died here. Refusing is what a program can be tested with; of others nothing is known. */
static int check_native_rows(const sim_settings *settings, const char *function, const sim_type *type,
                             rknn_matmul_shape shape) {
  uint32_t most = type->native_rows((uint32_t)shape.K, (uint32_t)shape.N);
  if ((uint32_t)shape.M <= most) return RKNN_SUCC;
  sim_log_error(
      "%s, simulator: %s with native A and C, M %d, K %d and N %d can kill the runtime: at most %u rows are "
      "known to be safe",
      function, sim_type_name(type->type), shape.M, shape.K, shape.N, most);
  sim_count(COUNT_FATAL_ROWS, 1);
  if (settings->rows_limit == ROWS_DEADLY) raise(SIGFPE);
  return RKNN_ERR_FAIL;
}

int sim_check_shape_options(const sim_settings *settings, const char *function, const sim_type *type,
                            const sim_request *request, rknn_matmul_shape shape) {
  /* Which sizes of groups are allowed is not documented (Q2): whole tiles are, when they divide K. */
  if (request->b_granularity == PER_GROUP &&
      (request->group_size <= 0 || (uint32_t)request->group_size % type->b_tile_k != 0 ||
       shape.K % request->group_size != 0)) {
    sim_log_error("%s, simulator: group_size %d is not a multiple of %u that divides K %d", function,
                  request->group_size, type->b_tile_k, shape.K);
    return RKNN_ERR_PARAM_INVALID;
  }
  if (request->ac_layout == RKNN_MM_LAYOUT_NATIVE && type->native_rows && settings->rows_limit != ROWS_ANY) {
    return check_native_rows(settings, function, type, shape);
  }
  return RKNN_SUCC;
}
