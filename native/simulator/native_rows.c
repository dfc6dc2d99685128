#include "native_rows.h"

#include <stddef.h>

/* Recorded N; 2048, 4096 and 8192 were recorded too, each with the rows of 1024. */
static const uint32_t widths[] = {64, 128, 192, 256, 512, 1024, 8192};

enum { WIDTHS = sizeof widths / sizeof widths[0] };

/* clang-format off */
#define EVERY(rows) {(rows), (rows), (rows), (rows), (rows), (rows)}
/* clang-format on */

/*
 * The largest M that create survived, by K and by N from widths (the last column stands for its last two), on rk3588
 * under runtime 1.6.0. A test compares every number with the recording.
 */
/* clang-format off */
static const struct {
  uint16_t k;
  uint16_t rows[WIDTHS - 1];
} recorded[] = {
    {512, EVERY(512)}, {544, EVERY(480)}, {576, EVERY(452)}, {608, EVERY(408)}, {640, EVERY(408)}, {672, EVERY(388)},
    {704, EVERY(372)}, {736, EVERY(340)}, {768, EVERY(340)}, {800, EVERY(324)}, {864, EVERY(292)}, {896, EVERY(292)},
    {928, EVERY(280)}, {960, EVERY(272)}, {1184, EVERY(220)}, {1216, EVERY(212)}, {1344, EVERY(192)},
    {1376, EVERY(184)}, {1408, EVERY(184)}, {1568, EVERY(164)}, {1600, EVERY(160)}, {1664, EVERY(156)},
    {1760, EVERY(144)}, {1792, EVERY(144)}, {1824, EVERY(140)}, {1888, EVERY(136)}, {1952, EVERY(132)},
    {2016, EVERY(128)}, {2112, EVERY(124)}, {2144, EVERY(120)}, {2208, EVERY(116)}, {2240, EVERY(116)},
    {2272, EVERY(112)}, {2304, EVERY(112)}, {2336, EVERY(112)}, {2368, EVERY(108)}, {2400, EVERY(104)},
    {2464, EVERY(104)}, {2560, EVERY(100)}, {2592, EVERY(100)}, {2624, EVERY(96)}, {2656, EVERY(96)}, {2752, EVERY(92)},
    {2784, EVERY(92)}, {2816, EVERY(92)}, {2880, EVERY(88)}, {2912, EVERY(88)}, {3008, EVERY(84)}, {3040, EVERY(84)},
    {3104, EVERY(84)}, {3136, EVERY(80)}, {3168, EVERY(80)}, {3200, EVERY(80)}, {3232, EVERY(80)}, {3264, EVERY(80)},
    {3328, EVERY(76)}, {3392, EVERY(76)}, {3424, EVERY(72)}, {3488, EVERY(72)}, {3520, EVERY(72)}, {3552, EVERY(72)},
    {3616, EVERY(72)}, {3648, EVERY(68)}, {3680, EVERY(68)}, {3712, EVERY(68)}, {3744, EVERY(68)}, {3776, EVERY(68)},
    {3808, EVERY(68)}, {3840, EVERY(68)}, {3904, EVERY(64)}, {3968, EVERY(64)}, {4032, EVERY(64)}, {4064, EVERY(64)},
    {4096, EVERY(64)}, {4192, EVERY(60)}, {4256, EVERY(60)}, {4288, EVERY(60)}, {4320, EVERY(60)}, {4352, EVERY(60)},
    {4416, EVERY(56)}, {4480, EVERY(56)}, {4608, EVERY(56)}, {4640, EVERY(56)}, {4672, EVERY(56)}, {4736, EVERY(52)},
    {4768, EVERY(52)}, {4832, EVERY(52)}, {4864, EVERY(52)}, {4896, EVERY(52)}, {4928, EVERY(52)}, {4960, EVERY(52)},
    {4992, EVERY(52)}, {5024, EVERY(52)}, {5088, EVERY(48)}, {5120, EVERY(48)}, {5152, EVERY(48)}, {5280, EVERY(48)},
    {5312, EVERY(48)}, {5344, EVERY(48)}, {5440, EVERY(48)}, {5504, EVERY(44)}, {5568, EVERY(44)}, {5600, EVERY(44)},
    {5664, EVERY(44)}, {5696, EVERY(44)}, {5728, EVERY(44)}, {5760, EVERY(44)}, {5824, EVERY(44)}, {5856, EVERY(44)},
    {5888, EVERY(44)}, {5920, EVERY(44)}, {6016, EVERY(40)}, {6048, EVERY(40)}, {6080, EVERY(40)}, {6112, EVERY(40)},
    {6144, EVERY(40)}, {6240, EVERY(40)}, {6272, EVERY(40)}, {6304, EVERY(40)}, {6336, EVERY(40)}, {6368, EVERY(40)},
    {6400, EVERY(40)}, {6528, EVERY(40)}, {6560, EVERY(36)}, {6624, EVERY(36)}, {6656, EVERY(36)}, {6720, EVERY(36)},
    {6784, EVERY(36)}, {6816, EVERY(36)}, {6848, EVERY(36)}, {6912, EVERY(36)}, {6944, EVERY(36)}, {7072, EVERY(36)},
    {7104, EVERY(36)}, {7136, EVERY(36)}, {7168, EVERY(36)}, {7232, EVERY(36)}, {7264, {32, 32, 32, 32, 32, 24}},
    {7296, EVERY(32)}, {7328, {32, 32, 32, 32, 24, 24}}, {7392, {32, 32, 32, 32, 24, 24}}, {7424, EVERY(32)},
    {7520, {32, 32, 24, 24, 24, 24}}, {7552, {32, 32, 24, 24, 24, 24}}, {7584, {32, 32, 24, 24, 24, 24}},
    {7648, {32, 32, 24, 24, 24, 24}}, {7712, {32, 24, 24, 24, 24, 24}}, {7744, {32, 24, 24, 24, 24, 24}},
    {7776, {32, 24, 24, 24, 24, 24}}, {7808, {32, 24, 24, 24, 24, 24}}, {7840, {32, 24, 24, 24, 24, 24}},
    {7872, {32, 24, 24, 24, 24, 24}}, {7904, {32, 24, 24, 24, 24, 24}}, {7968, {32, 24, 24, 24, 24, 24}},
    {8032, {32, 24, 24, 24, 24, 24}}, {8064, {32, 24, 24, 24, 24, 24}}, {8160, {32, 24, 24, 24, 24, 24}},
    {8192, EVERY(32)}, {8224, EVERY(20)}, {8256, EVERY(20)}, {8288, {20, 20, 20, 20, 20, 12}}, {8320, EVERY(20)},
    {8384, {20, 20, 20, 20, 12, 12}}, {8416, {20, 20, 20, 20, 12, 12}}, {8448, EVERY(20)},
    {8480, {20, 20, 20, 12, 12, 12}}, {8512, {20, 20, 20, 12, 12, 12}}, {8544, {20, 20, 12, 12, 12, 12}},
    {8576, {20, 20, 12, 12, 12, 12}}, {8608, {20, 20, 12, 12, 12, 12}}, {8672, {20, 20, 12, 12, 12, 12}},
    {8736, {20, 12, 12, 12, 12, 12}}, {8768, {20, 12, 12, 12, 12, 12}}, {8832, {20, 12, 12, 12, 12, 12}},
    {8864, {20, 12, 12, 12, 12, 12}}, {8896, {20, 12, 12, 12, 12, 12}}, {8960, {20, 12, 12, 12, 12, 12}},
    {9024, {20, 12, 12, 12, 12, 12}}, {9056, {20, 12, 12, 12, 12, 12}}, {9088, {20, 12, 12, 12, 12, 12}},
    {9120, {20, 12, 12, 12, 12, 12}}, {9152, {20, 12, 12, 12, 12, 12}}, {9216, EVERY(20)}, {9248, EVERY(12)},
    {9312, {12, 12, 12, 12, 12, 4}}, {9376, {12, 12, 12, 12, 4, 4}}, {9440, {12, 12, 12, 12, 4, 4}}, {9472, EVERY(12)},
    {9504, {12, 12, 12, 4, 4, 4}}, {9600, {12, 12, 4, 4, 4, 4}}, {9664, {12, 12, 4, 4, 4, 4}},
    {9696, {12, 12, 4, 4, 4, 4}}, {9728, EVERY(12)}, {9760, {12, 4, 4, 4, 4, 4}}, {9792, {12, 4, 4, 4, 4, 4}},
    {9856, {12, 4, 4, 4, 4, 4}}, {9888, {12, 4, 4, 4, 4, 4}}, {9952, {12, 4, 4, 4, 4, 4}}, {9984, {12, 4, 4, 4, 4, 4}},
    {10016, {12, 4, 4, 4, 4, 4}}, {10112, {12, 4, 4, 4, 4, 4}}, {10176, {12, 4, 4, 4, 4, 4}},
    {10208, {12, 4, 4, 4, 4, 4}}, {10272, EVERY(4)}, {10304, EVERY(4)},
};
/* clang-format on */

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Below the first recorded K the product M * K decides (facts 14). */
static const uint32_t most_mk = 262144;

static uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

static uint32_t rows_of(size_t i, size_t column) { return recorded[i].rows[column < WIDTHS - 1 ? column : WIDTHS - 2]; }

uint32_t sim_int4_native_rows(uint32_t k, uint32_t n) {
  const size_t last = COUNT(recorded) - 1;
  if (k < recorded[0].k) return k == 0 ? 0 : most_mk / k;
  /* Deeper ones would have no row left: 20 at 8224, 12 at 9248, 4 at 10304. */
  if (k > recorded[last].k) return 0;
  /* Accepted single rows are all that is recorded beyond the widths. */
  if (n < widths[0] || n > widths[WIDTHS - 1]) return 1;

  size_t above = 0, right = 0; /* the first that is not smaller */
  while (recorded[above].k < k) above++;
  while (widths[right] < n) right++;
  size_t below = recorded[above].k == k ? above : above - 1;
  size_t left = widths[right] == n ? right : right - 1;
  return least(least(rows_of(below, left), rows_of(below, right)), least(rows_of(above, left), rows_of(above, right)));
}
