#pragma once

#include <cstdint>

namespace budwood {

// Taps that lie side by side in the plane: the first one so many floats from an output pixel's place.
struct TapRun {
  int64_t offset;
  int32_t taps;  // 1 to kTapRun
};

constexpr int kTapRun = 7;

// One channel of a depthwise convolution, from a plane whose border is filled:
//
//   out[y, x] = clamp(bias + residual[y, x] + sum over the taps of weight * plane[y, x, tap]),
//
// y in [0, height), x in [0, width) vectors. Row y of the plane begins at plane + y * row, of out at out + y * out_row, of
// the residual at residual + y * residual_row; vector x lies x * kLanes floats further. `weights` are those of the
// runs, one after the other. out overlaps the residual only where the two are the same element.
struct Stencil {
  const float* plane;
  float* out;
  const float* residual;  // nullptr: none
  int64_t row, out_row, residual_row;
  int64_t height, width;
  const TapRun* runs;
  int64_t count;
  const float* weights;
  float bias, low, high;
};

}  // namespace budwood
