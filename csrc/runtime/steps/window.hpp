#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/plan.hpp"

namespace budwood {

// The vectors of pixels of a plane, row by row, cut into tiles that a kernel keeps in registers; and the channels cut
// into parts. An item of a step is one part of the channels for one tile.
class Tiles {
 public:
  Tiles(const Map& out, int64_t channel_parts, int most);
  int64_t items() const { return tiles_ * parts_; }
  int64_t first_vector(int64_t item) const;
  int vectors(int64_t item) const;
  int64_t first_channel(int64_t item) const;
  int64_t channels(int64_t item) const;

 private:
  int64_t count_, tiles_, channel_count_, parts_;
};

// Where the vectors of a plane lie in a map, in floats from (y 0, x 0), row by row.
std::vector<int64_t> places(const Map& map, const Map& plane);

// A depthwise convolution: see kernels/depthwise. The operand's halo is filled; channel c of it is at c * channel
// even where `taps`, floats from the pixel's place, point beyond its plane.
class DepthwiseStep : public Step {
 public:
  // weights [out.channels][taps]; weights that are 0 are left out.
  DepthwiseStep(Map operand, Map out, Map residual, const std::vector<int64_t>& taps, std::span<const float> weights,
                std::vector<float> bias, int64_t multiplier, Activation activation, int64_t arena_floats, int64_t lanes);
  int64_t items() const override { return tiles_.items(); }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  Map operand_, out_, residual_;  // residual_.groups == 0: none
  int64_t lowest_, multiplier_;
  std::vector<int64_t> operand_at_, out_at_, residual_at_, start_;
  std::vector<Entry> entries_;
  std::vector<float> bias_;
  Activation activation_;
  Tiles tiles_;
};

// Max or average pooling: see kernels/pool. The operand's halo is filled, with -infinity or 0.
class PoolStep : public Step {
 public:
  // factors: of an average, one number or [out.height][out.width][out.lanes].
  PoolStep(bool largest, Map operand, Map out, std::vector<int64_t> taps, std::vector<float> factors,
           int64_t arena_floats, int64_t lanes);
  int64_t items() const override { return tiles_.items(); }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  bool largest_;
  Map operand_, out_;
  std::vector<int64_t> taps_, operand_at_, out_at_, table_at_;
  std::vector<float> factors_;
  Tiles tiles_;
};

}  // namespace budwood
