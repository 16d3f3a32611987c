#pragma once

#include <cstdint>
#include <vector>

#include "runtime/plan.hpp"

namespace budwood {

// What stands beside the first operand of an elementwise step.
struct Beside {
  enum Kind {
    none,
    map,           // of the output's shape, or one channel's map for all of them
    gate,          // a plain vector: a number per image and channel
    per_channel,   // constants: numbers[0, C) to multiply with, numbers[C, 2 C) to add
  };
  Kind kind = none;
  Map map_{};
  int64_t images = 1;  // gate: images that share the lanes of a group
  std::vector<float> numbers;
};

// An operation of kernels/elementwise on maps of one plane, then an activation. The output may be an operand itself.
class ElementwiseStep : public Step {
 public:
  ElementwiseStep(Elementwise::Op op, Map a, Beside b, Map out, Activation activation, int64_t arena_floats,
                  int64_t lanes);
  int64_t items() const override { return row_parts_ * channel_parts_; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  void check(int64_t arena_floats, int64_t lanes) const;
  bool lies_flat() const;
  void lay_flat();

  Elementwise::Op op_;
  Map a_;
  Beside b_;
  Map out_;
  Activation activation_;
  bool flat_ = false;  // plain vectors: their channels lie side by side in the lanes
  std::vector<int32_t> lane_;  // gate: where in the plain vector the number of each lane lies
  int64_t row_parts_, channel_parts_;
};

// out[c] = from[channels[c]] for every pixel: Concat and Select where they cannot be done by where maps lie.
class CopyStep : public Step {
 public:
  CopyStep(Map from, Map out, std::vector<int64_t> channels, int64_t arena_floats);
  int64_t items() const override { return parts_; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  Map from_, out_;
  std::vector<int64_t> channels_;
  int64_t parts_;
};

}  // namespace budwood
