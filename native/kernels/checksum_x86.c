/*
 * CRC-32 by multiplication without carries. A block of what was read so far is moved on by D bits: its halves are
 * multiplied by x^(D + 32) and x^(D - 32) modulo the polynomial, in reflected order and shifted by one, and added to the
 * block there. What remains, 16 bytes that have the checksum of all, is for the reference.
 */
#if defined(__x86_64__)

#include <immintrin.h>

#include "checksum.h"

#define CLMUL __attribute__((target("pclmul,sse4.1")))
#define VPCLMUL __attribute__((target("pclmul,sse4.1,avx512f,vpclmulqdq")))

/* (x^(D - 32), x^(D + 32)) for D = 128, 512 and 2048 */
#define BY_128 0xccaa009e, 0x1751997d0
#define BY_512 0x1c6e41596, 0x154442bd4
#define BY_2048 0x1322d1430, 0x11542778a

CLMUL static inline __m128i fold(__m128i x, __m128i by, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(x, by, 0x00), high = _mm_clmulepi64_si128(x, by, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

CLMUL static inline __m128i load(const uint8_t *data) { return _mm_loadu_si128((const __m128i *)(const void *)data); }

/* All that is left behind the block x. */
CLMUL static inline uint32_t finish(__m128i x, const uint8_t *data, size_t bytes) {
  const __m128i by = _mm_set_epi64x(BY_128);
  for (; bytes >= 16; data += 16, bytes -= 16) x = fold(x, by, load(data));
  uint8_t last[16];
  _mm_storeu_si128((__m128i *)(void *)last, x);
  return npumm_crc_scalar(npumm_crc_scalar(0, last, sizeof last), data, bytes);
}

CLMUL uint32_t npumm_crc_clmul(uint32_t state, const uint8_t *data, size_t bytes) {
  if (bytes < 64) {
    if (bytes < 16) return npumm_crc_scalar(state, data, bytes);
    return finish(_mm_xor_si128(load(data), _mm_cvtsi32_si128((int)state)), data + 16, bytes - 16);
  }
  const __m128i by = _mm_set_epi64x(BY_512);
  __m128i x[4];
  for (int i = 0; i < 4; i++) x[i] = load(data + 16 * i);
  x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)state));
  for (data += 64, bytes -= 64; bytes >= 64; data += 64, bytes -= 64) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) x[i] = fold(x[i], by, load(data + 16 * i));
  }
  const __m128i next = _mm_set_epi64x(BY_128);
  for (int i = 1; i < 4; i++) x[i] = fold(x[i - 1], next, x[i]);
  return finish(x[3], data, bytes);
}

VPCLMUL static inline __m512i fold_512(__m512i x, __m512i by, __m512i next) {
  const __m512i low = _mm512_clmulepi64_epi128(x, by, 0x00), high = _mm512_clmulepi64_epi128(x, by, 0x11);
  return _mm512_ternarylogic_epi64(low, high, next, 0x96); /* all three by exclusive or */
}

VPCLMUL uint32_t npumm_crc_vpclmul(uint32_t state, const uint8_t *data, size_t bytes) {
  if (bytes < 256) return npumm_crc_clmul(state, data, bytes);
  const __m512i by = _mm512_broadcast_i32x4(_mm_set_epi64x(BY_2048));
  __m512i x[4];
  for (int i = 0; i < 4; i++) x[i] = _mm512_loadu_si512(data + 64 * i);
  x[0] = _mm512_xor_si512(x[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)state)));
  for (data += 256, bytes -= 256; bytes >= 256; data += 256, bytes -= 256) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) x[i] = fold_512(x[i], by, _mm512_loadu_si512(data + 64 * i));
  }
  const __m512i next = _mm512_broadcast_i32x4(_mm_set_epi64x(BY_512));
  for (int i = 1; i < 4; i++) x[i] = fold_512(x[i - 1], next, x[i]);
  const __m128i by_one = _mm_set_epi64x(BY_128);
  __m128i parts[4];
  _mm512_storeu_si512(parts, x[3]);
  for (int i = 1; i < 4; i++) parts[i] = fold(parts[i - 1], by_one, parts[i]);
  return finish(parts[3], data, bytes);
}

#else
typedef int npumm_checksum_x86_is_for_x86_64; /* C asks for something in every file */
#endif
