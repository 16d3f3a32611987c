#pragma once

#include <cstdint>

namespace budwood {

// One block of inputs times a chunk of output channels, all weights kept, for `tile` vectors of pixels:
//
//   out[channel, t] = start[channel, t] + sum over k of weight[channel, k] * panel[offset[k], t],   t in [0, tile)
//
// for channel in [0, channels) and k in [0, depth); offsets in bytes. `weights` hold, for each run of kDenseRows
// channels, [k][row]; the last run is filled up with rows that are not stored. start, low and high as in SparseConv.
struct DenseConv {
  const float* panel;
  float* out;
  const float* residual;  // nullptr: none
  int64_t out_channel, residual_channel;
  int64_t channels, depth;
  const uint32_t* offsets;
  const float* weights;
  const float* bias;
  float low, high;
  int tile;  // 1 to kDenseTile
  bool first, last;
  bool ahead;  // fetch weights ahead: they come from beyond the caches, faster than the processor fetches by itself
};

constexpr int kDenseTile = 8;

// Output channels computed together: with 7 or 8 vectors of pixels the sums of three fill the registers of AVX-512.
constexpr int kDenseRows = 3;

}  // namespace budwood
