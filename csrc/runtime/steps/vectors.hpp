#pragma once

#include <cstdint>
#include <vector>

#include "runtime/plan.hpp"

namespace budwood {

// A map as plain vectors: channel c's pixel p of image i of a group, at floats at[i * pixels + p] from the place of
// (group, y 0, channel c, x 0), becomes number c * pixels + p of the image.
class FlattenStep : public Step {
 public:
  FlattenStep(Map from, Map out, int64_t images, std::vector<int64_t> at, int64_t arena_floats);
  int64_t items() const override { return parts_; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  Map from_, out_;
  int64_t images_, pixels_ = 0, parts_ = 1;
  std::vector<int64_t> at_;
};

}  // namespace budwood
