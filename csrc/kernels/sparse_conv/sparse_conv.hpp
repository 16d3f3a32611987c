#pragma once

#include <cstdint>

namespace budwood {

// `entries` non-zeros of one output channel that lie in one block.
struct SparseRow {
  int32_t channel;
  int32_t entries;
};

// One block of inputs times the rows of a chunk of output channels, for `tile` vectors of pixels:
//
//   out[channel, t] = start[channel, t] + sum over the row's entries of weight * panel[place + t],   t in [0, tile)
//
// start is bias (+ residual) in the first block of a chunk, and what `out` holds in the later ones; in the last
// block the sum is clamped to [low, high]. out's vector t of a channel lies at out + channel * out_channel + t *
// kLanes; residual's alike. Alignment: whole vectors (a speed matter only). out overlaps neither panel nor weights.
struct SparseConv {
  const float* panel;
  float* out;
  const float* residual;  // nullptr: none
  int64_t out_channel, residual_channel;
  const SparseRow* rows;
  int64_t count;
  // The rows' entries one after the other, 6 bytes each: a weight, and its operand's place in vectors from the panel.
  const float* weights;
  const uint16_t* places;
  const float* bias;  // by channel
  float low, high;
  int tile;  // 1 to kSparseTile
  bool first, last;
  bool apart;  // the block is summed by itself, which costs an addition and saves digits where rows are long
};

constexpr int kSparseTile = 14;

}  // namespace budwood
