#pragma once

#include <cstdint>

namespace budwood {

// out[i, m] = low <= bias[m] + sum over the row's entries of value * x[i, index] <= high
//
// for images i in [0, images), m in [0, rows). Row m's entries are kLanes each in the vectors start[m] ..
// start[m + 1] - 1 of `values` and `index`; the last vector is filled up with entries of index -1 and value 0. x and
// out are rows of floats, x_image and out_image floats apart, and do not overlap.
struct SparseLinear {
  const float* x;
  float* out;
  int64_t x_image, out_image, images, rows;
  const float* values;
  const int32_t* index;
  const int64_t* start;
  const float* bias;
  float low, high;
};

}  // namespace budwood
