#include "runtime/steps/vectors.hpp"


#include "runtime/steps/checks.hpp"

namespace budwood {

FlattenStep::FlattenStep(Map from, Map out, int64_t images, std::vector<int64_t> at, int64_t arena_floats)
    : from_(from), out_(out), images_(images), at_(std::move(at)) {
  check_map(from_, arena_floats);
  check_map(out_, arena_floats);
  check_size(from_, arena_floats);
  const auto places = static_cast<int64_t>(at_.size());
  require(images_ >= 1 && places >= 1 && places % images_ == 0, "a vector needs a place for each pixel of each image");
  pixels_ = places / images_;
  require(is_plain(out_) && out_.height == 1 && out_.groups % images_ == 0 &&
              __int128(from_.channels) * pixels_ == out_.channels,
          "a plain vector needs a number for each pixel of each channel");
  Map one = from_;
  one.height = one.width = one.lanes = 1;
  check_reach(from_, one, from_.channels, at_, 1, arena_floats, "a vector is read from outside the arena");
  parts_ = parts_of(from_.channels, pixels_ * images_);
}

void FlattenStep::run(const Run& run, int64_t group, int64_t item) const {
  for (int64_t i = 0; i < images_; ++i) {
    const int64_t* at = at_.data() + i * pixels_;
    for (int64_t c = part(from_.channels, parts_, item); c < part(from_.channels, parts_, item + 1); ++c) {
      const float* from = from_.at(run.arena, group, 0, c, 0);
      float* out = out_.at(run.arena, group * images_ + i, 0, 0, 0) + c * pixels_;
      for (int64_t p = 0; p < pixels_; ++p) out[p] = from[at[p]];
    }
  }
}

}  // namespace budwood
