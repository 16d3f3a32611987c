#pragma once

#include <cstdint>

namespace budwood {

// out[i, m] = low <= bias[m] + sum over the row's entries of value * x[i, index] <= high
//
// for images i in [0, images), m in [0, rows). Row m's entries are kLanes each in the vectors start[m] ..
// start[m + 1] - 1 of `values` and `index`; the last vector is filled up with entries of index -1 and value 0. x and
// out are rows of floats, x_image and out_image floats apart, and do not overlap. scratch: depth * kLanes floats, for
// the images' numbers side by side; kLanes * x_image is below 2^31. depth: one more than the largest index, or more.
struct SparseLinear {
  const float* x;
  float* out;
  float* scratch;  // may be nullptr if images < kSparseLinearTogether
  int64_t x_image, out_image, images, rows, depth;
  const float* values;
  const int32_t* index;
  const int64_t* start;
  const float* bias;
  float low, high;
};

// From so many images on it pays to lay them into the lanes first: a gather costs about as much as the products of a
// few entries.
constexpr int64_t kSparseLinearTogether = 4;

}  // namespace budwood
