#include "runtime/steps/channelwise.hpp"

#include <algorithm>
#include <new>

#include "runtime/steps/checks.hpp"

namespace budwood {
namespace {

constexpr int64_t kMostItems = 32;

int64_t items_of(const Map& out) { return std::clamp<int64_t>(out.channels / 4, 1, kMostItems); }

std::vector<int64_t> places(int64_t row, const Map& plane) {
  std::vector<int64_t> at;
  for (int64_t y = 0; y < plane.height; ++y)
    for (int64_t x = 0; x < plane.width; ++x) at.push_back(y * row + x * plane.lanes);
  return at;
}

}  // namespace

float* scratch_of_this_thread(int64_t floats) {
  struct Memory {
    float* data = nullptr;
    int64_t floats = 0;
    ~Memory() { ::operator delete[](data, std::align_val_t(64)); }
  };
  static thread_local Memory memory;
  if (memory.floats < floats) {
    ::operator delete[](memory.data, std::align_val_t(64));
    memory.data = nullptr, memory.floats = 0;
    memory.data = static_cast<float*>(::operator new[](static_cast<size_t>(floats) * sizeof(float), std::align_val_t(64)));
    memory.floats = floats;
  }
  return memory.data;
}

void check_taps(const std::vector<int64_t>& taps, int64_t origin, int64_t row, const Map& out, int64_t scratch) {
  require(!taps.empty() && row >= 0 && origin >= 0, "a window needs taps");
  const auto [low, high] = std::minmax_element(taps.begin(), taps.end());
  require(*low > -scratch && *high < scratch && origin < scratch && row <= scratch, "a tap lies outside the scratch memory");
  require(origin + *low >= 0 && __int128(origin) + *high + __int128(out.height - 1) * row + out.width * out.lanes <= scratch,
          "a tap lies outside the scratch memory");
}

LocalPlane::LocalPlane(Map from, const std::vector<Move>& moves, std::vector<int32_t> index, float fill,
                       int64_t groups_of_source, int64_t scratch, int64_t arena_floats, int64_t lanes)
    : from_(from), index_(std::move(index)), fill_(fill),
      groups_of_source_(groups_of_source), scratch_(scratch) {
  check_map(from_, arena_floats);
  require(scratch_ >= 1 && scratch_ < (int64_t(1) << 30), "the scratch memory's size is out of range");
  require(groups_of_source_ >= 1 && from_.groups % groups_of_source_ == 0, "a repack needs more groups in its source");
  check_moves(moves, index_, lanes, [&](int64_t at, int64_t width) {
    const int64_t first = from_.offset + at;
    return first >= 0 && first + width + (from_.groups - groups_of_source_) * from_.group +
                                 (from_.channels - 1) * from_.channel <= arena_floats;
  }, [&](int64_t at) { return at >= 0 && at + lanes <= scratch_; });
  std::vector<int64_t> whole{0, static_cast<int64_t>(moves.size())};
  runs_ = runs_of(moves, index_, lanes, whole);
}

const float* LocalPlane::bring(const Run& run, int64_t group, int64_t c) const {
  float* to = scratch_of_this_thread(scratch_);
  run.kernels->repack({from_.at(run.arena, group * groups_of_source_, 0, c, 0), to, 0, 0, 1, runs_.data(),
                       static_cast<int64_t>(runs_.size()), index_.data(), fill_});
  return to;
}

DepthwiseStep::DepthwiseStep(LocalPlane plane, int64_t origin, int64_t row, Map out, Map residual,
                             const std::vector<int64_t>& taps, std::span<const float> weights, int64_t weights_at,
                             std::vector<float> bias, Activation activation, int64_t arena_floats, int64_t lanes)
    : plane_(std::move(plane)), origin_(origin), row_(row), out_(out), residual_(residual),
      taps_(static_cast<int64_t>(taps.size())), weights_at_(weights_at),
      weights_(weights.begin(), weights.end()), bias_(std::move(bias)), activation_(activation) {
  check_map(out_, arena_floats);
  require(out_.lanes == lanes, "a map must have the lanes of the instruction set");
  check_size(out_, arena_floats);
  check_taps(taps, origin_, row_, out_, plane_.scratch());
  require(out_.channels % plane_.channels() == 0, "the input channels must divide the output channels");
  multiplier_ = out_.channels / plane_.channels();
  if (residual_.groups > 0) {
    check_map(residual_, arena_floats);
    check_holds(residual_, out_, out_.channels, "the residual is smaller than the output");
  }
  require(static_cast<int64_t>(bias_.size()) == out_.channels, "a bias is needed for every output channel");
  if (weights_at_ >= 0)
    require(__int128(out_.channels) * taps_ <= arena_floats - weights_at_, "the weights reach outside the arena");
  else
    require(static_cast<int64_t>(weights_.size()) == out_.channels * taps_, "the weights are not [channels][taps]");
  for (size_t t = 0; t < taps.size(); ++t) {
    if (!runs_.empty() && runs_.back().taps < kTapRun && taps[t] == taps[t - 1] + lanes) ++runs_.back().taps;
    else runs_.push_back({taps[t], 1});
  }
}

int64_t DepthwiseStep::items() const { return items_of(out_); }

void DepthwiseStep::run(const Run& run, int64_t group, int64_t item) const {
  const Bounds bounds = bounds_of(activation_);
  const float* weights = weights_at_ >= 0 ? run.arena + weights_at_ : weights_.data();
  const float* plane = nullptr;
  for (int64_t c = part(out_.channels, items(), item), end = part(out_.channels, items(), item + 1); c < end; ++c) {
    if (!plane || c % multiplier_ == 0) plane = plane_.bring(run, group, c / multiplier_);
    float* out = out_.at(run.arena, group, 0, c, 0);
    const float* residual = residual_.groups > 0 ? residual_.at(run.arena, group, 0, c, 0) : nullptr;
    run.kernels->stencil({plane + origin_, out, residual, row_, out_.row, residual_.row, out_.height, out_.width,
                          runs_.data(), static_cast<int64_t>(runs_.size()), weights + c * taps_, bias_[c],
                          bounds.low, bounds.high});
    if (!bounds.all)
      run.kernels->activate({out, out_.row, out_.height, out_.width * out_.lanes, activation_});
  }
}

PoolStep::PoolStep(bool largest, LocalPlane plane, int64_t origin, int64_t row, Map out, std::vector<int64_t> taps,
                   std::vector<float> factors, int64_t arena_floats, int64_t lanes)
    : largest_(largest), plane_(std::move(plane)), origin_(origin), out_(out), taps_(std::move(taps)),
      factors_(std::move(factors)) {
  check_map(out_, arena_floats);
  require(out_.lanes == lanes, "a map must have the lanes of the instruction set");
  check_size(out_, arena_floats);
  check_taps(taps_, origin_, row, out_, plane_.scratch());
  require(out_.channels == plane_.channels(), "a pooling keeps the channels");
  const auto count = static_cast<int64_t>(factors_.size());
  require(count == 1 || count == out_.height * out_.width * lanes, "an average needs one factor, or one for every pixel");
  plane_at_ = places(row, out_);
  out_at_ = places(out_.row, out_);
  for (int64_t v = 0; v < out_.height * out_.width; ++v) table_at_.push_back(v * lanes);
}

int64_t PoolStep::items() const { return items_of(out_); }

void PoolStep::run(const Run& run, int64_t group, int64_t item) const {
  const auto vectors = static_cast<int64_t>(plane_at_.size());
  for (int64_t c = part(out_.channels, items(), item), end = part(out_.channels, items(), item + 1); c < end; ++c) {
    const float* plane = plane_.bring(run, group, c) + origin_;
    for (int64_t v = 0; v < vectors; v += kPoolTile)
      run.kernels->pool({plane, out_.at(run.arena, group, 0, c, 0), plane_at_.data() + v, out_at_.data() + v,
                         table_at_.data() + v, 0, 0, 1, taps_.data(), static_cast<int64_t>(taps_.size()),
                         factors_.size() > 1 ? factors_.data() : nullptr, factors_[0],
                         static_cast<int>(std::min<int64_t>(kPoolTile, vectors - v)), largest_});
  }
}

}  // namespace budwood
