#pragma once

#include <cstdint>

namespace budwood {

// One group of a map, or some of its channels: vector (y, c, x) lies at `at` + y * row + c * channel + x * kLanes.
struct Planes {
  float* at;
  int64_t row, channel;
};

// For rows y, channels c and vectors x of a group; a lane counts where mask[y, x, lane] is not 0, or everywhere.
struct PlaneSizes {
  int64_t rows, channels, vectors;
  const float* mask;  // nullptr: every lane counts; else [rows][vectors][kLanes]
};

// Sums of a channel's values, and of their squares, less a number near their mean so that no digits are lost:
//
//   sums[c][0] += sum of d,  sums[c][1] += sum of d * d,  d = from[y, c, x] - shift[c]
//
// lane by lane; a row is summed by itself first. sums: [channels][2][kLanes].
struct BatchSums {
  Planes from;
  PlaneSizes size;
  const float* shift;
  float* sums;
};

// out[y, c, x] = low <= (from[y, c, x] - mean[c]) * scale[c] + bias[c] + residual[y, c, x] <= high, 0 where the mask is.
// out may be from or the residual itself.
struct BatchNorm {
  Planes from, residual, out;  // residual.at: nullptr for none
  PlaneSizes size;
  const float *mean, *scale, *bias;
  float low, high;
};

// With g = gradient where low < out < high, else 0, as where the mask is 0 (out is not read if the bounds are infinite):
//
//   sums[c][0] += sum of g,  sums[c][1] += sum of g * (from - mean[c]),  g_to = g
//
// g_to.at may be nullptr, and g_to may be a map that is read.
struct BatchNormSums {
  Planes from, out, gradient, g_to;
  PlaneSizes size;
  float low, high;
  const float* mean;
  float* sums;
};

// to = g * scale[c] + (from - mean[c]) * slope[c] + offset[c], 0 where the mask is. `to` may be from or g.
struct BatchNormBack {
  Planes from, g, to;
  PlaneSizes size;
  const float *mean, *scale, *slope, *offset;
};

// to[y, c, x, lane] = factor * from[c * from_channel + index[lane]], 0 where the mask is. index: [kLanes].
struct Spread {
  const float* from;
  int64_t from_channel;
  const int32_t* index;
  Planes to;
  PlaneSizes size;
  float factor;
};

}  // namespace budwood
