#pragma once

#include <cstdint>

#include "kernels/sparse_conv/sparse_conv.hpp"

namespace budwood {

// The gradient of a sparse convolution's loss to its non-zero weights, from one block of inputs, the rows of a chunk of
// output channels and `tile` vectors of pixels:
//
//   sums[i] += sum over t in [0, tile) and the lanes of gradient[channel, t] * panel[place + t]
//
// for entry i of the rows, all of them counted on, and its row's channel. gradient's vector t of a channel lies at
// gradient + channel * gradient_channel + t * kLanes. Alignment: whole vectors (a speed matter only). A lane that holds
// no pixel counts like any other. sums overlap nothing else.
struct ConvGradient {
  const float* panel;
  const float* gradient;
  int64_t gradient_channel;
  const SparseRow* rows;
  int64_t count;
  const uint16_t* places;  // of each entry, in vectors from the panel
  float* sums;
  int tile;  // 1 to kSparseTile
};

}  // namespace budwood
