#include "runtime/steps/norm.hpp"

#include "runtime/steps/checks.hpp"

namespace budwood {
namespace {

constexpr int64_t kTile = 4;  // vectors that the kernel takes together

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

}  // namespace budwood
