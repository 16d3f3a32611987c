#include "runtime/steps/window.hpp"

#include "runtime/steps/checks.hpp"

namespace budwood {

Tiles::Tiles(const Map& out, int64_t channel_parts, int most)
    : count_(out.height * out.width), tiles_((count_ + most - 1) / most), channel_count_(out.channels), parts_(channel_parts) {}

int64_t Tiles::first_vector(int64_t item) const { return part(count_, tiles_, item / parts_); }
int Tiles::vectors(int64_t item) const {
  return static_cast<int>(part(count_, tiles_, item / parts_ + 1) - first_vector(item));
}
int64_t Tiles::first_channel(int64_t item) const { return part(channel_count_, parts_, item % parts_); }
int64_t Tiles::channels(int64_t item) const {
  return part(channel_count_, parts_, item % parts_ + 1) - first_channel(item);
}

std::vector<int64_t> places(const Map& map, const Map& plane) {
  std::vector<int64_t> at;
  for (int64_t y = 0; y < plane.height; ++y)
    for (int64_t x = 0; x < plane.width; ++x) at.push_back(y * map.row + x * plane.lanes);
  return at;
}

namespace {

// Refuses a map of whole vectors that is not in the arena; answers it, so that members made from it come after.
const Map& checked(const Map& out, int64_t arena_floats, int64_t lanes) {
  check_map(out, arena_floats);
  require(out.lanes == lanes, "a map must have the lanes of the instruction set");
  check_size(out, arena_floats);
  return out;
}

constexpr int64_t kTileFloats = 8 * 16;

}  // namespace

DepthwiseStep::DepthwiseStep(Map operand, Map out, Map residual, const std::vector<int64_t>& taps,
                             std::span<const float> weights, std::vector<float> bias, int64_t multiplier,
                             Activation activation, int64_t arena_floats, int64_t lanes)
    : operand_(operand), out_(checked(out, arena_floats, lanes)), residual_(residual), multiplier_(multiplier),
      bias_(std::move(bias)), activation_(activation),
      tiles_(out_, parts_of(out_.channels, kTileFloats * static_cast<int64_t>(taps.size())), kDepthwiseTile) {
  check_map(operand_, arena_floats);
  require(multiplier_ >= 1 && multiplier_ <= out_.channels, "the multiplier must be 1 or more");
  check_reach(operand_, out_, (out_.channels - 1) / multiplier_ + 1, taps, lanes, arena_floats, "a tap lies outside the arena");
  require(operand_.lanes == lanes, "the operand is smaller than the output");
  if (residual_.groups > 0) {
    check_map(residual_, arena_floats);
    check_holds(residual_, out_, out_.channels, "the residual is smaller than the output");
    residual_at_ = places(residual_, out_);
  }
  require(static_cast<int64_t>(bias_.size()) == out_.channels, "a bias is needed for every output channel");
  require(weights.size() == bias_.size() * taps.size(), "the weights are not [channels][taps]");
  const auto [low, high] = std::minmax_element(taps.begin(), taps.end());
  lowest_ = *low;
  require((*high - *low) * int64_t(sizeof(float)) <= std::numeric_limits<uint32_t>::max(), "taps lie too far apart");
  for (size_t c = 0; c < bias_.size(); ++c) {
    start_.push_back(static_cast<int64_t>(entries_.size()));
    for (size_t t = 0; t < taps.size(); ++t)
      if (const float weight = weights[c * taps.size() + t]; weight != 0)
        entries_.push_back({static_cast<uint32_t>((taps[t] - lowest_) * sizeof(float)), weight});
  }
  start_.push_back(static_cast<int64_t>(entries_.size()));
  operand_at_ = places(operand_, out_);
  out_at_ = places(out_, out_);
}

void DepthwiseStep::run(const Run& run, int64_t group, int64_t item) const {
  const int64_t vector = tiles_.first_vector(item), c = tiles_.first_channel(item);
  const Bounds bounds = bounds_of(activation_);
  const Depthwise d{operand_.at(run.arena, group, 0, 0, 0) + lowest_,
                    out_.at(run.arena, group, 0, 0, 0),
                    residual_.groups > 0 ? residual_.at(run.arena, group, 0, 0, 0) : nullptr,
                    operand_at_.data() + vector, out_at_.data() + vector, residual_at_.data() + (residual_.groups > 0 ? vector : 0),
                    operand_.channel, out_.channel, residual_.channel,
                    c, tiles_.channels(item), multiplier_, entries_.data(), start_.data(), bias_.data(),
                    bounds.low, bounds.high, tiles_.vectors(item)};
  run.kernels->depthwise(d);
  for (int t = 0; !bounds.all && t < d.tile; ++t)
    run.kernels->activate({d.out + d.out_at[t] + c * out_.channel, out_.channel, d.channels, out_.lanes, activation_});
}

PoolStep::PoolStep(bool largest, Map operand, Map out, std::vector<int64_t> taps, std::vector<float> factors,
                   int64_t arena_floats, int64_t lanes)
    : largest_(largest), operand_(operand), out_(checked(out, arena_floats, lanes)), taps_(std::move(taps)),
      factors_(std::move(factors)),
      tiles_(out_, parts_of(out_.channels, kTileFloats * static_cast<int64_t>(taps_.size())), kPoolTile) {
  check_map(operand_, arena_floats);
  require(operand_.lanes == lanes, "the operand is smaller than the output");
  check_reach(operand_, out_, out_.channels, taps_, lanes, arena_floats, "a tap lies outside the arena");
  const auto count = static_cast<int64_t>(factors_.size());
  require(largest_ || count == 1 || count == out_.height * out_.width * lanes, "an average needs one factor, or one for every pixel");
  operand_at_ = places(operand_, out_);
  out_at_ = places(out_, out_);
  for (int64_t v = 0; v < out_.height * out_.width; ++v) table_at_.push_back(v * lanes);
}

void PoolStep::run(const Run& run, int64_t group, int64_t item) const {
  const int64_t vector = tiles_.first_vector(item), c = tiles_.first_channel(item);
  run.kernels->pool({operand_.at(run.arena, group, 0, c, 0), out_.at(run.arena, group, 0, c, 0),
                     operand_at_.data() + vector, out_at_.data() + vector, table_at_.data() + vector, operand_.channel,
                     out_.channel, tiles_.channels(item), taps_.data(), static_cast<int64_t>(taps_.size()),
                     factors_.size() > 1 ? factors_.data() : nullptr, factors_.size() == 1 ? factors_[0] : 1.0f,
                     tiles_.vectors(item), largest_});
}

}  // namespace budwood
