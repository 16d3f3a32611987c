#pragma once

#include <cstdint>

namespace budwood {

// The channels of each pixel brought to mean 0 and variance 1:
//
//   out[c, i] = (from[c, i] - mean[i]) / sqrt(variance[i] + eps) * scale[c] + offset[c]
//
// mean and variance (with 1 / channels) over c in [0, channels), for each float i of `vectors` vectors. Channel c lies
// at from + c * from_channel and out + c * out_channel. out may be from itself.
struct LayerNorm {
  const float* from;
  float* out;
  int64_t from_channel, out_channel, channels, vectors;
  const float *scale, *offset;
  float eps;
};

// The same for one pixel whose channels lie side by side.
struct LayerNormVector {
  const float* from;
  float* out;
  int64_t channels;
  const float *scale, *offset;
  float eps;
};

}  // namespace budwood
