#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/plan.hpp"
#include "runtime/steps/channelwise.hpp"

namespace budwood {

// The way back from a LocalPlane: adds what stands in scratch memory to the pixels that were brought there.
class PlaneGradient {
 public:
  // from, moves and index are those of the plane; `to` is a map of the same pixels.
  PlaneGradient(const Map& from, const Map& to, const std::vector<Move>& moves, const std::vector<int32_t>& index,
                int64_t groups_of_source, int64_t arena_floats, int64_t lanes);

  // Channel c of the groups that `group` is made of becomes the sum of what each of its pixels has in the scratch.
  void put_back(const Run& run, int64_t group, int64_t c, const float* scratch) const;
  const Map& map() const { return to_; }

 private:
  Map to_;
  int64_t groups_of_source_, vectors_ = 0;
  std::vector<PutBack::Pair> pairs_;  // first vectors, then floats
};

// What the gradients of windowed operators have in common. Each handles every group of its maps in one turn.
class WindowGradientStep : public Step {
 public:
  // The arguments of the forward step: see DepthwiseStep. The gradient is 0 where no pixel is.
  struct Window {
    LocalPlane plane;
    int64_t origin, row;
    std::vector<int64_t> taps;
  };
  WindowGradientStep(Window window, Map gradient, int64_t groups_of_source, int64_t arena_floats, int64_t lanes);
  int64_t items() const override { return window_.plane.channels(); }

 protected:
  // The plane of channel c in the scratch memory of this thread, and as much memory again, zero.
  struct Scratch {
    const float* plane;
    float* gradient;
  };
  Scratch bring(const Run& run, int64_t group, int64_t c) const;

  Window window_;
  Map gradient_;
};

// The gradient of max pooling goes to the first of the largest pixels of a window.
class MaxPoolGradientStep : public WindowGradientStep {
 public:
  MaxPoolGradientStep(Window window, PlaneGradient to, Map out, Map gradient, int64_t groups_of_source,
                      int64_t arena_floats, int64_t lanes);
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  PlaneGradient to_;
  Map out_;
};

// The gradients of a depthwise convolution to its weights, which become an output [C_out][taps], and to its input.
class DepthwiseGradientStep : public WindowGradientStep {
 public:
  // to: empty, or the gradient to the input; the weights lie in the arena at weights_at, [C_out][taps].
  DepthwiseGradientStep(Window window, std::vector<PlaneGradient> to, Map gradient, int64_t weights_at, int64_t number,
                        int64_t groups_of_source, int64_t arena_floats, int64_t lanes);
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  std::vector<PlaneGradient> to_;  // none or one
  int64_t weights_at_, number_;
};

}  // namespace budwood
