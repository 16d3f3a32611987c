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
  std::vector<int64_t> blocks;  // the k at which a block begins, then K: what stays in the first-level cache together
  int64_t chunks;               // parts that the output channels are cut into, for the threads to share
  Activation activation;
  std::vector<float> bias;
};

class ConvStep : public Step {
 public:
  int64_t items() const override { return shape_.out.height * static_cast<int64_t>(tiles_.size()) * chunks(); }
  void run(const Run& run, int64_t group, int64_t item) const override;

 protected:
  ConvStep(ConvShape shape, int64_t arena_floats, int widest);

  struct Tile {
    int64_t x;
    int width;
  };
  struct Place {
    const float* panel;
    float* out;
    const float* residual;
    int tile;
    float low, high;
  };
  virtual void chunk(const Kernels& kernels, const Place& place, int64_t number) const = 0;
  int64_t chunks() const { return static_cast<int64_t>(chunk_.size()) - 1; }

  ConvShape shape_;
  std::vector<int64_t> chunk_;  // first output channel of each chunk, then their number
  std::vector<Tile> tiles_;     // of a row
  float low_, high_;
  bool clamps_;  // the activation is done by the convolution itself
};

class SparseConvStep : public ConvStep {
 public:
  // Weights in CSR: row m's entries are values[start[m]] .. values[start[m + 1] - 1] at operands columns[...], rising.
  SparseConvStep(ConvShape shape, int64_t arena_floats, std::span<const float> values,
                 std::span<const int32_t> columns, std::span<const int64_t> start);

 private:
  struct Block {
    int64_t row, rows, entry;
  };
  void chunk(const Kernels& kernels, const Place& place, int64_t number) const override;

  int64_t lowest_ = 0;  // floats from the pixel's place to the operand that offset 0 names
  std::vector<Block> blocks_;  // chunk by chunk
  std::vector<SparseRow> rows_;
  std::vector<Entry> entries_;
};

class DenseConvStep : public ConvStep {
 public:
  // weights [M][K / groups]; channels of one group of the convolution follow each other, and so do its operands.
  DenseConvStep(ConvShape shape, int64_t arena_floats, std::span<const float> weights, int64_t groups);

 private:
  struct Block {
    int64_t channel, channels, depth, offset, weight;
    bool first, last;
  };
  void chunk(const Kernels& kernels, const Place& place, int64_t number) const override;

  int64_t lowest_ = 0;
  std::vector<int64_t> block_of_;  // first block of each chunk, then their number
  std::vector<Block> blocks_;
  std::vector<uint32_t> offsets_;
  std::vector<float> weights_;
};

}  // namespace budwood
