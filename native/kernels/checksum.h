/*
 * CRC-32 (polynomial 0xedb88320, as in zlib) by instructions. Each function takes the inner state, which is the checksum
 * inverted, and returns it; the reference stands beside those per instruction set.
 */
#ifndef NPUMATMUL_CHECKSUM_H
#define NPUMATMUL_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

typedef uint32_t npumm_crc(uint32_t state, const uint8_t *data, size_t bytes);

npumm_crc npumm_crc_scalar;
#if defined(__x86_64__)
npumm_crc npumm_crc_clmul, npumm_crc_vpclmul;
#elif defined(__aarch64__)
npumm_crc npumm_crc_arm;
#endif

/* The function of a way of npumm_crc32_by; NULL beyond the last one. */
npumm_crc *npumm_crc_of(int32_t set);

/*
 * What a checksum adds, by exclusive or, to that of the same bytes with so many others behind them: of two stretches
 * together, moved(checksum of the first, bytes of the second) ^ checksum of the second.
 */
uint32_t npumm_crc_moved(uint32_t checksum, int64_t bytes);

#endif
