/* CRC-32 by the instruction of 64-bit ARM, which Cortex-A53, A55, A72 and A76 have. */
#if defined(__aarch64__)

#include <arm_acle.h>
#include <string.h>

#include "checksum.h"

__attribute__((target("+crc"))) uint32_t npumm_crc_arm(uint32_t state, const uint8_t *data, size_t bytes) {
  for (; bytes >= 32; data += 32, bytes -= 32) { /* loaded before a sum that each has to wait for */
    uint64_t each[4];
    memcpy(each, data, sizeof each);
    state = __crc32d(__crc32d(__crc32d(__crc32d(state, each[0]), each[1]), each[2]), each[3]);
  }
  for (; bytes >= 8; data += 8, bytes -= 8) {
    uint64_t eight;
    memcpy(&eight, data, sizeof eight);
    state = __crc32d(state, eight);
  }
  for (; bytes > 0; data++, bytes--) state = __crc32b(state, *data);
  return state;
}

#else
typedef int npumm_checksum_arm_is_for_aarch64; /* C asks for something in every file */
#endif
