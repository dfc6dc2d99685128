/* What conversions are made of. See pack.h. */
#include "pack.h"
#include "tiling.h"

npumm_recipe npumm_recipe_of(npumm_conversion conversion) {
  const int64_t bits = npumm_element_bits(conversion);
  const int high_first = conversion == NPUMM_INT4_HIGH_FIRST || conversion == NPUMM_F32_TO_I4_HIGH_FIRST ||
                         conversion == NPUMM_F32_TO_I4_SPLIT_HIGH_FIRST;
  npumm_recipe result = {NPUMM_COPIED, 4, bits, high_first, 0.0f, 0};
  switch (conversion) {
    case NPUMM_COPY_8:
    case NPUMM_COPY_16:
    case NPUMM_COPY_32:
      result.source_bytes = bits / 8;
      break;
    case NPUMM_INT4:
    case NPUMM_INT4_HIGH_FIRST:
      result.kind = NPUMM_INT4_PAIRS;
      result.source_bytes = 1;
      break;
    case NPUMM_F32_TO_F16:
      result.kind = NPUMM_TO_HALF;
      break;
    case NPUMM_F32_TO_F16_HIGH:
      result.kind = NPUMM_TO_HALF_HIGH;
      break;
    case NPUMM_F32_TO_F16_LOW:
      result.kind = NPUMM_TO_HALF_LOW;
      break;
    case NPUMM_F32_TO_I8:
      result.kind = NPUMM_QUANTIZED;
      result.levels = 127.0f;
      break;
    case NPUMM_F32_TO_I4:
    case NPUMM_F32_TO_I4_HIGH_FIRST:
      result.kind = NPUMM_QUANTIZED_PAIRS;
      result.levels = 7.0f;
      break;
    case NPUMM_F32_TO_I4_SPLIT:
    case NPUMM_F32_TO_I4_SPLIT_HIGH_FIRST:
      result.kind = NPUMM_QUANTIZED_SPLIT;
      result.levels = 119.0f;
      break;
  }
  return result;
}

npumm_quantizer npumm_quantizer_of(const npumm_values *values, float levels, int64_t r) {
  const int32_t zero = values->row_zero ? values->row_zero[r] : 0;
  const float least = values->row_zero ? -levels - 1.0f : -levels;
  const npumm_quantizer result = {values->row_scale ? values->row_scale[r] : 1.0f, least - (float)zero,
                                  levels - (float)zero, zero};
  return result;
}
