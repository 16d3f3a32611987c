#pragma once

#include <cstdint>
#include <vector>

#include "runtime/plan.hpp"

namespace budwood {

// Over the channels of each pixel of a map, or of each image of a plain vector: see kernels/layer_norm.
class LayerNormStep : public Step {
 public:
  LayerNormStep(Map from, Map out, std::vector<float> scale, std::vector<float> offset, float eps, int64_t arena_floats,
                int64_t lanes);
  int64_t items() const override { return out_.height * (plain_ ? 1 : tiles_); }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  Map from_, out_;
  std::vector<float> scale_, offset_;
  float eps_;
  bool plain_;
  int64_t tiles_;
};

// Over the channels of each image of a plain vector: see kernels/softmax.
class SoftmaxStep : public Step {
 public:
  SoftmaxStep(Map from, Map out, int64_t arena_floats);
  int64_t items() const override { return out_.height; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  Map from_, out_;
};

}  // namespace budwood
