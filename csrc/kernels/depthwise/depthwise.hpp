#pragma once

#include <cstdint>

#include "kernels/sparse_conv/sparse_conv.hpp"

namespace budwood {

// Each output channel from one input channel, for `tile` vectors of pixels that may lie anywhere in a map:
//
//   out[c, t] = low <= bias[c] + residual[c, t] + sum over c's entries of weight * operand[c / multiplier, t, offset] <= high
//
// for c in [first, first + channels), t in [0, tile). Vector t of channel c lies at out + out_at[t] + c * out_channel;
// of the residual alike; an entry's operand at operand + operand_at[t] + (c / multiplier) * operand_channel floats +
// offset bytes. out overlaps the residual only where the two are the same element.
struct Depthwise {
  const float* operand;
  float* out;
  const float* residual;  // nullptr: none
  const int64_t *operand_at, *out_at, *residual_at;
  int64_t operand_channel, out_channel, residual_channel;
  int64_t first, channels, multiplier;
  const Entry* entries;  // those of channel c are entries[start[c]] .. entries[start[c + 1] - 1]
  const int64_t* start;
  const float* bias;
  float low, high;
  int tile;  // 1 to kDepthwiseTile
};

constexpr int kDepthwiseTile = 8;

}  // namespace budwood
