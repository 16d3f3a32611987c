#include "runtime/steps/norm.hpp"

#include "runtime/steps/checks.hpp"

namespace budwood {
namespace {

constexpr int64_t kTile = 4;  // vectors that the kernel takes together

bool is_plain(const Map& m) { return m.width == 1 && m.lanes == 1 && (m.channel == 1 || m.channels == 1); }

void check(const Map& from, const Map& out, int64_t arena_floats) {
  check_map(from, arena_floats);
  check_map(out, arena_floats);
  check_size(out, arena_floats);
  check_holds(from, out, out.channels, "the source is smaller than the output");
  require(from.channels == out.channels, "source and output have different channels");
}

}  // namespace

LayerNormStep::LayerNormStep(Map from, Map out, std::vector<float> scale, std::vector<float> offset, float eps,
                             int64_t arena_floats, int64_t lanes)
    : from_(from), out_(out), scale_(std::move(scale)), offset_(std::move(offset)), eps_(eps),
      plain_(is_plain(from) && is_plain(out)), tiles_(out.width / kTile + (out.width % kTile != 0)) {
  check(from_, out_, arena_floats);
  require(plain_ || out_.lanes == lanes, "a layer norm needs plain vectors or maps of whole vectors");
  require(static_cast<int64_t>(scale_.size()) == out_.channels && offset_.size() == scale_.size(),
          "a scale and an offset are needed for every channel");
}

void LayerNormStep::run(const Run& run, int64_t group, int64_t item) const {
  if (plain_) {
    run.kernels->layer_norm_vector({from_.at(run.arena, group, item, 0, 0), out_.at(run.arena, group, item, 0, 0),
                                    out_.channels, scale_.data(), offset_.data(), eps_});
    return;
  }
  const int64_t y = item / tiles_, x = item % tiles_ * kTile;
  run.kernels->layer_norm({from_.at(run.arena, group, y, 0, x), out_.at(run.arena, group, y, 0, x), from_.channel,
                           out_.channel, out_.channels, std::min(kTile, out_.width - x), scale_.data(), offset_.data(), eps_});
}

SoftmaxStep::SoftmaxStep(Map from, Map out, int64_t arena_floats) : from_(from), out_(out) {
  check(from_, out_, arena_floats);
  require(is_plain(from_) && is_plain(out_), "a softmax needs plain vectors");
}

void SoftmaxStep::run(const Run& run, int64_t group, int64_t item) const {
  run.kernels->softmax({from_.at(run.arena, group, item, 0, 0), out_.at(run.arena, group, item, 0, 0), out_.channels});
}

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
