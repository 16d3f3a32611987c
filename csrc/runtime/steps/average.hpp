#pragma once

#include <cstdint>
#include <vector>

#include "runtime/plan.hpp"

namespace budwood {

// The average of every plane into a plain vector [images][channels]: see kernels/global_average.
class GlobalAverageStep : public Step {
 public:
  // `images` share the lanes of a group. mask: empty, or [height][width][lanes] with 0 where a lane holds no pixel.
  GlobalAverageStep(Map from, Map out, std::vector<float> mask, int64_t count, int64_t images, int64_t arena_floats,
                    int64_t lanes);
  int64_t items() const override { return parts_; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  Map from_, out_;
  std::vector<float> mask_;
  int64_t count_, images_, parts_;
};

// Averages over any sets of pixels: output p, at `at[p]` floats from (y 0, channel c, x 0) of `out`, is the average of
// what lies at source[start[p]] .. source[start[p + 1] - 1] floats from there in `from`. Slow and general.
class AdaptiveAverageStep : public Step {
 public:
  AdaptiveAverageStep(Map from, Map out, std::vector<int64_t> start, std::vector<int64_t> source,
                      std::vector<int64_t> at, int64_t arena_floats);
  int64_t items() const override { return parts_; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  Map from_, out_;
  std::vector<int64_t> start_, source_, at_;
  int64_t parts_;
};

}  // namespace budwood
