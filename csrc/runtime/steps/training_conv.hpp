#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/plan.hpp"
#include "runtime/steps/conv.hpp"

namespace budwood {

// Numbers of a caller's array, in the order in which a step wants them: arena[at + i] = input[index[i]], 0 where
// index[i] is negative.
class PackStep : public Step {
 public:
  // The array holds `floats` numbers.
  PackStep(int64_t number, int64_t at, std::span<const int64_t> index, int64_t floats, int64_t arena_floats);
  int64_t items() const override { return parts_; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  int64_t number_, at_, parts_;
  std::vector<int32_t> index_;
};

// The gradient of the loss to the non-zero weights of a sparse convolution, over all groups of its maps at once:
//
//   output[e] = sum over groups, rows, vectors and lanes of gradient[m, pixel] * operand[pixel + offsets[columns[e]]]
//
// for entry e, of row m, in CSR order. `shape.out` is the gradient to the convolution's output. It must be zero in the
// lanes that hold no pixel, and the operand finite there: such lanes count like the others.
//
// Each sum is made in three levels: over the vectors of a tile, over the lanes and the tiles of a group, over the
// groups; the same for any number of threads, which share blocks of operands and, inside those, output channels.
class ConvGradientStep : public Step {
 public:
  ConvGradientStep(ConvShape shape, int64_t number, int64_t arena_floats, std::span<const int32_t> columns,
                   std::span<const int64_t> start);
  int64_t items() const override { return static_cast<int64_t>(packing_.lowest.size()) * parts(); }
  int64_t grain() const override { return parts(); }
  void run(const Run& run, int64_t group, int64_t item) const override { run_range(run, group, item, item + 1); }
  void run_range(const Run& run, int64_t group, int64_t begin, int64_t end) const override;

 private:
  int64_t parts() const { return static_cast<int64_t>(part_.size()) - 1; }
  // Adds group g's share of block b's entries in parts [first, last) to the output.
  void add_group(const Run& run, int64_t g, int64_t b, int64_t first, int64_t last) const;

  ConvShape shape_;
  int64_t number_;
  std::vector<int64_t> part_;
  std::vector<Tile> tiles_;
  SparsePacking packing_;
  std::vector<int64_t> to_;  // of each packed row: the CSR position of its first entry
};

}  // namespace budwood
