#pragma once

#include <cstdint>

namespace budwood {

// out[i, m] = low <= bias[m] + sum over k of weight[m, k] * x[i, k] <= high
//
// for images i in [0, images), k in [0, depth), and m in [0, outputs). weights hold, for each run of kLanes outputs,
// [k][output]; the last run is filled up with outputs that are neither stored nor have a bias. x and out are rows of
// floats, x_image and out_image floats apart, and do not overlap. Sums are made in runs of a fixed length over k.
struct Linear {
  const float* x;
  float* out;
  int64_t x_image, out_image;
  int64_t images, depth, outputs;
  const float* weights;
  const float* bias;
  float low, high;
};

}  // namespace budwood
