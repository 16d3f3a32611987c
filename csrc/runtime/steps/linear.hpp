#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/plan.hpp"

namespace budwood {

// What a product of plain vectors with a matrix has in common, whatever the matrix. The images of a group are the
// rows of its maps: see with_images.
struct LinearShape {
  Map x, out;
  std::vector<float> bias;
  Activation activation;
};

// out = act(x weight^T + bias), all weights kept: see kernels/linear.
class LinearStep : public Step {
 public:
  LinearStep(LinearShape shape, std::span<const float> weights, int64_t arena_floats, int64_t lanes);
  int64_t items() const override { return output_parts_ * image_parts_; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  LinearShape shape_;
  int64_t lanes_;
  std::vector<float> weights_;
  int64_t output_parts_, image_parts_;
};

// The same with most weights gone: see kernels/sparse_linear.
class SparseLinearStep : public Step {
 public:
  // CSR: row m's entries are values[start[m]] .. values[start[m + 1] - 1] for the channels columns[...].
  SparseLinearStep(LinearShape shape, std::span<const float> values, std::span<const int32_t> columns,
                   std::span<const int64_t> start, int64_t arena_floats, int64_t lanes);
  int64_t items() const override { return parts_; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  LinearShape shape_;
  std::vector<float> values_;
  std::vector<int32_t> index_;
  std::vector<int64_t> start_;  // in vectors
  int64_t parts_, scratch_;     // floats that a part needs beside
};

}  // namespace budwood
