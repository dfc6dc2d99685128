/* The reference, four bits at a time; and checksums that are moved on, whoever found them. */
#include "checksum.h"

uint32_t npumm_crc_scalar(uint32_t state, const uint8_t *data, size_t bytes) {
  static const uint32_t of_four[16] = {
      0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
      0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
  };
  for (size_t i = 0; i < bytes; i++) {
    state ^= data[i];
    state = state >> 4 ^ of_four[state & 15];
    state = state >> 4 ^ of_four[state & 15];
  }
  return state;
}

/* The product of two polynomials modulo that of CRC-32, in reflected order: the highest bit is 1, the one below it x. */
static uint32_t times(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (; a; a <<= 1) {
    if (a >> 31) product ^= b;
    b = b >> 1 ^ (0xedb88320u & -(b & 1u));
  }
  return product;
}

uint32_t npumm_crc_moved(uint32_t checksum, int64_t bytes) {
  uint32_t power = 1u << 23; /* x^8, which a byte moves on by; then of 2, 4, ... bytes */
  for (; bytes > 0; bytes >>= 1, power = times(power, power)) {
    if (bytes & 1) checksum = times(power, checksum);
  }
  return checksum;
}
