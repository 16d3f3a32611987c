#pragma once

#include <cstdint>

namespace budwood {

// One factor or term of an elementwise operation: for row y, channel c and place i of a channel's row
//
//   map:     at[y * row + c * channel + i]
//   number:  at[y * row + c * channel]                       the same in the whole row
//   by_lane: at[y * row + c * channel + lane[i % kLanes]]    a number for each lane: for each image in a vector
struct Operand {
  enum Kind : int32_t { map, number, by_lane };
  Kind kind = map;
  const float* at = nullptr;
  int64_t row = 0, channel = 0;
  const int32_t* lane = nullptr;
};

// out[y, c, i] = low <= op(a, b, d) <= high  at  out + y * out_row + c * out_channel + i
//
// for y in [0, rows), c in [0, channels), i in [0, floats); copy: a, add: a + b, mul: a * b, affine: a * b + d. a is
// a map; d is of b's kind, and neither is by_lane in affine. out may be a or b itself. NaN passes the clamp.
struct Elementwise {
  enum Op : int32_t { copy, add, mul, affine, ops };
  Op op;
  Operand a, b, d;
  float* out;
  int64_t out_row, out_channel, rows, channels, floats;
  float low, high;
};

}  // namespace budwood
