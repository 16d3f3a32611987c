#pragma once

#include <cstdint>

namespace budwood {

// The gradients of windowed operators, one channel of one group at a time. `plane` is the channel laid out for the
// window as in kernels/stencil, `plane_gradient` is memory of the same shape that is added to. Row y of a plane begins
// at plane + y * row, of out at out + y * out_row, of the gradient at gradient + y * gradient_row, for y in [0, height);
// x in [0, width) vectors; tap t of a pixel lies taps[t] floats from the pixel's place, for t in [0, count).

// plane_gradient[y, x, tap] += gradient[y, x] for the first tap whose value is the largest, which is out[y, x].
struct MaxPoolGradient {
  const float *plane, *out, *gradient;
  float* plane_gradient;
  int64_t row, out_row, gradient_row;
  int64_t height, width;
  const int64_t* taps;
  int64_t count;
};

// plane_gradient[y, x, tap] += weights[tap] * gradient[y, x], and lane by lane
// sums[tap] += sum over y and x of gradient[y, x] * plane[y, x, tap]. sums: [count][kLanes].
struct StencilGradient {
  const float *plane, *gradient;
  float* plane_gradient;  // nullptr: not wanted
  int64_t row, gradient_row;
  int64_t height, width;
  const int64_t* taps;
  int64_t count;
  const float* weights;
  float* sums;
};

// What a plane's gradient adds to the channel that the plane was made of: vectors where it was copied, else floats.
//
//   to[pair.to + lane] += from[pair.from + lane] for the first `vectors` pairs, to[pair.to] += from[pair.from] for the
//   `floats` after them
struct PutBack {
  struct Pair {
    int64_t from, to;
  };
  const float* from;
  float* to;
  const Pair* pairs;
  int64_t vectors, floats;
};

}  // namespace budwood
