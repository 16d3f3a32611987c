#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/plan.hpp"

namespace budwood {

// A convolution as a product: every output channel is a row of weights over K operands, and operand k of an output
// pixel lies `offsets[k]` floats from that pixel's place in the operand map. Kernel size, stride, padding, dilation and groups are
// all in the offsets.
struct ConvShape {
  Map operand, out, residual;  // residual.groups == 0: none
  std::vector<int64_t> offsets;
  int64_t widest;               // vectors of pixels that a tile has at most
  std::vector<int64_t> blocks;  // the k at which a block begins, then K: what stays in the first-level cache together
  bool by_channels;             // threads share the channels rather than the tiles: so does who reads the output
  Activation activation;
  std::vector<float> bias;
  int64_t lanes;  // of the instruction set

  // Refuses operands outside an arena of `floats` and sizes that do not fit each other.
  void check(int64_t floats) const;
};

// Vectors of a row of pixels that a kernel works on at a time.
struct Tile {
  int64_t x;
  int width;
};

// A row of `width` vectors in tiles of nearly the same size, of `widest` at most.
std::vector<Tile> tiles_of(int64_t width, int64_t widest);

// The parts that `channels` output channels are cut into for the threads to share, each of whole runs of `together`
// channels but for the last: the first channel of each, then their number.
std::vector<int64_t> parts_of_channels(int64_t channels, int64_t together);

// The entries of a CSR matrix over a convolution's operands as the sparse kernels read them: block by block, part by
// part of the channels, and in these row by row, in the order of the rows' numbers of entries there, each row's as in CSR.
struct SparsePacking {
  // Row m's entries stand at operands columns[start[m]] .. columns[start[m + 1] - 1], rising; m is in part p from
  // part[p] on. `shape` gives operands, blocks and lanes.
  SparsePacking(const ConvShape& shape, const std::vector<int64_t>& part, std::span<const int32_t> columns,
                std::span<const int64_t> start);

  struct Begin {
    int64_t row, entry;
  };
  std::vector<int64_t> lowest;   // of each block: floats from the pixel's place to the operand that place 0 names
  std::vector<Begin> begin;      // where each part of each block begins, block by block, then where all end
  std::vector<SparseRow> rows;
  std::vector<uint16_t> places;
  std::vector<int64_t> order;    // the CSR position of each packed entry
};

// Weights of the convolution's own, in packed order, or a place in the arena where a step before puts them.
struct Weights {
  std::vector<float> own;
  int64_t at = -1;

  const float* data(const float* arena) const { return at < 0 ? own.data() : arena + at; }
};

class ConvStep : public Step {
 public:
  // An item is a part of the output channels of a tile. A thread takes whole tiles as long as it can, so that the
  // inputs of a block are brought to its cache once for all channels.
  int64_t items() const override { return shape_.out.height * static_cast<int64_t>(tiles_.size()) * parts(); }
  int64_t grain() const override { return shape_.by_channels ? 1 : parts(); }
  void run(const Run& run, int64_t group, int64_t item) const override { run_range(run, group, item, item + 1); }
  void run_range(const Run& run, int64_t group, int64_t begin, int64_t end) const override;

 protected:
  // `together`: output channels that the kernel computes at a time.
  ConvStep(ConvShape shape, int64_t arena_floats, int64_t widest, int64_t together);

  struct Place {
    const float* arena;
    const float* panel;
    float* out;
    const float* residual;
    int tile;
    float low, high;
  };
  // The output channels of parts [begin, end).
  virtual void compute(const Kernels& kernels, const Place& place, int64_t begin, int64_t end) const = 0;
  int64_t parts() const { return static_cast<int64_t>(part_.size()) - 1; }

  ConvShape shape_;
  std::vector<int64_t> part_;   // first output channel of each part, then their number
  std::vector<Tile> tiles_;     // of a row
  float low_, high_;
  bool clamps_;  // the activation is done by the convolution itself
};

class SparseConvStep : public ConvStep {
 public:
  // Weights in CSR: row m's entries are values[start[m]] .. values[start[m + 1] - 1] at operands columns[...], rising.
  SparseConvStep(ConvShape shape, int64_t arena_floats, std::span<const float> values,
                 std::span<const int32_t> columns, std::span<const int64_t> start);
  // The weights stand in the arena from `weights_at` on, in the packed order of order().
  SparseConvStep(ConvShape shape, int64_t arena_floats, int64_t weights_at, std::span<const int32_t> columns,
                 std::span<const int64_t> start);

  const std::vector<int64_t>& order() const { return packing_.order; }  // the CSR position of each packed weight

 private:
  SparseConvStep(ConvShape shape, int64_t arena_floats, std::span<const int32_t> columns, std::span<const int64_t> start);
  void compute(const Kernels& kernels, const Place& place, int64_t begin, int64_t end) const override;

  bool apart_;
  SparsePacking packing_;
  Weights weights_;
};

class DenseConvStep : public ConvStep {
 public:
  // weights [M][K / groups]; channels of one group of the convolution follow each other, and so do its operands.
  DenseConvStep(ConvShape shape, int64_t arena_floats, std::span<const float> weights, int64_t groups);
  // The weights stand in the arena from `weights_at` on, in the packed order of order(), zeros where that is -1.
  DenseConvStep(ConvShape shape, int64_t arena_floats, int64_t weights_at, int64_t groups);

  const std::vector<int64_t>& order() const { return order_; }

 private:
  DenseConvStep(ConvShape shape, int64_t arena_floats, int64_t groups);

  struct Block {
    int64_t channel, channels, depth, offset, weight;
    bool first, last;
  };
  void compute(const Kernels& kernels, const Place& place, int64_t begin, int64_t end) const override;

  int64_t lowest_ = 0;
  std::vector<int64_t> block_of_;  // first block of each part, then their number
  bool few_ = false;               // tiles: the weights are fetched ahead
  std::vector<Block> blocks_;
  std::vector<uint32_t> offsets_;
  std::vector<int64_t> order_;  // the place in [M][K / groups] of each packed weight, -1 for rows that fill up
  Weights weights_;
};

}  // namespace budwood
