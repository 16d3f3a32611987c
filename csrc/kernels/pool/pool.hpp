#pragma once

#include <cstdint>

namespace budwood {

// The largest or the sum of what lies at `count` places around each pixel, for `tile` vectors of pixels:
//
//   out[c, t] = max over taps of operand[c, t, tap]                 (NaN where one of them is NaN)
//             = factor[t] * sum over taps of operand[c, t, tap]
//
// for c in [0, channels). Vector t of channel c lies at out + out_at[t] + c * out_channel, its operands at operand +
// operand_at[t] + c * operand_channel + tap, all in floats. factor[t]: one number, or the vector at table + table_at[t].
struct Pool {
  const float* operand;
  float* out;
  const int64_t *operand_at, *out_at, *table_at;
  int64_t operand_channel, out_channel, channels;
  const int64_t* taps;
  int64_t count;  // 1 or more
  const float* table;  // nullptr: `factor` everywhere
  float factor;
  int tile;  // 1 to kPoolTile
  bool largest;
};

constexpr int kPoolTile = 8;

}  // namespace budwood
