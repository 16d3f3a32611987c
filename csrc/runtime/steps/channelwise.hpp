#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/moves.hpp"

namespace budwood {

// Grows to what the largest plane needs and is then kept: no allocation in the steady state.
float* scratch_of_this_thread(int64_t floats);

// Refuses taps that leave the scratch memory around any output pixel's place.
void check_taps(const std::vector<int64_t>& taps, int64_t origin, int64_t row, const Map& out, int64_t scratch);

// The plane of one channel as a windowed operator wants it, laid out anew in a thread's own scratch memory, where it
// stays in the first-level cache: borders filled, a plane for each phase of a stride. See kernels/repack.
class LocalPlane {
 public:
  LocalPlane(Map from, const std::vector<Move>& moves, std::vector<int32_t> index, float fill, int64_t groups_of_source,
             int64_t scratch, int64_t arena_floats, int64_t lanes);

  // The plane of channel c for a group, in the scratch memory of the calling thread.
  const float* bring(const Run& run, int64_t group, int64_t c) const;
  int64_t scratch() const { return scratch_; }
  int64_t channels() const { return from_.channels; }
  int64_t groups() const { return from_.groups; }

 private:
  Map from_;
  std::vector<MoveRun> runs_;
  std::vector<int32_t> index_;
  float fill_;
  int64_t groups_of_source_, scratch_;
};

// Depthwise convolution: output channel m reads input channel m / multiplier.
class DepthwiseStep : public Step {
 public:
  // taps: floats from the place of an output pixel (y 0, x 0: `origin` in the scratch) to each tap; `row` floats from
  // one output row's place to the next. weights [C_out][taps], or in the arena at weights_at if
  // that is not negative.
  DepthwiseStep(LocalPlane plane, int64_t origin, int64_t row, Map out, Map residual, const std::vector<int64_t>& taps,
                std::span<const float> weights, int64_t weights_at, std::vector<float> bias, Activation activation,
                int64_t arena_floats, int64_t lanes);
  int64_t items() const override;
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  LocalPlane plane_;
  int64_t origin_, row_;
  Map out_, residual_;
  int64_t taps_, multiplier_, weights_at_;
  std::vector<TapRun> runs_;
  std::vector<float> weights_, bias_;
  Activation activation_;
};

// Pooling: the largest, or the sum times a factor (one for all pixels, or one for each vector's lanes).
class PoolStep : public Step {
 public:
  PoolStep(bool largest, LocalPlane plane, int64_t origin, int64_t row, Map out, std::vector<int64_t> taps,
           std::vector<float> factors, int64_t arena_floats, int64_t lanes);
  int64_t items() const override;
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  bool largest_;
  LocalPlane plane_;
  int64_t origin_;
  Map out_;
  std::vector<int64_t> taps_, plane_at_, out_at_, table_at_;
  std::vector<float> factors_;
};

}  // namespace budwood
