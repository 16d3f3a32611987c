#include "runtime/steps/average.hpp"

#include <functional>

#include "runtime/steps/checks.hpp"

namespace budwood {

GlobalAverageStep::GlobalAverageStep(Map from, Map out, std::vector<float> mask, int64_t count, int64_t images,
                                     int64_t arena_floats, int64_t lanes)
    : from_(from), out_(out), mask_(std::move(mask)), count_(count), images_(images), parts_(1) {
  check_map(from_, arena_floats);
  check_size(from_, arena_floats);
  check_map(out_, arena_floats);
  require(from_.lanes == lanes, "a map must have the lanes of the instruction set");
  require(images_ >= 1 && images_ <= lanes && lanes % images_ == 0, "the images of a group must divide the lanes");
  require(out_.height == 1 && out_.width == 1 && out_.lanes == 1 && out_.channels >= from_.channels &&
              out_.groups % images_ == 0,
          "an average needs a place for each image and channel");
  require(count_ >= 1, "an average is over one pixel or more");
  require(mask_.empty() || __int128(mask_.size()) == __int128(from_.height) * from_.width * lanes, "the mask has not one number per pixel");
  parts_ = parts_of(from_.channels, from_.height * from_.width * lanes);
}

void GlobalAverageStep::run(const Run& run, int64_t group, int64_t item) const {
  const int64_t c = part(from_.channels, parts_, item), end = part(from_.channels, parts_, item + 1);
  run.kernels->global_average({from_.at(run.arena, group, 0, c, 0), out_.at(run.arena, group * images_, 0, c, 0),
                               mask_.empty() ? nullptr : mask_.data(), from_.row, from_.channel, out_.group, out_.channel,
                               from_.height, from_.width, end - c, images_, static_cast<double>(count_)});
}

AdaptiveAverageStep::AdaptiveAverageStep(Map from, Map out, std::vector<int64_t> start, std::vector<int64_t> source,
                                         std::vector<int64_t> at, int64_t arena_floats)
    : from_(from), out_(out), start_(std::move(start)), source_(std::move(source)), at_(std::move(at)),
      parts_(parts_of(out.channels, static_cast<int64_t>(source_.size()))) {
  check_map(from_, arena_floats);
  check_map(out_, arena_floats);
  require(from_.channels >= out_.channels, "the source of an average is smaller than its output");
  require(start_.size() == at_.size() + 1 && start_.front() == 0 && start_.back() == static_cast<int64_t>(source_.size()) &&
              std::adjacent_find(start_.begin(), start_.end(), std::greater_equal<>()) == start_.end(),
          "an average needs one source or more for every output");
  // The lists already say where every pixel lies.
  Map one = out_;
  one.height = one.width = one.lanes = 1;
  check_reach(from_, one, out_.channels, source_, 1, arena_floats, "an average reads outside the arena");
  check_reach(out_, one, out_.channels, at_, 1, arena_floats, "an average writes outside the arena");
}

void AdaptiveAverageStep::run(const Run& run, int64_t group, int64_t item) const {
  for (int64_t c = part(out_.channels, parts_, item); c < part(out_.channels, parts_, item + 1); ++c) {
    const float* from = from_.at(run.arena, group, 0, c, 0);
    float* out = out_.at(run.arena, group, 0, c, 0);
    for (size_t p = 0; p < at_.size(); ++p) {
      double sum = 0;
      for (int64_t s = start_[p]; s < start_[p + 1]; ++s) sum += from[source_[s]];
      out[at_[p]] = static_cast<float>(sum / static_cast<double>(start_[p + 1] - start_[p]));
    }
  }
}

}  // namespace budwood
