#include "runtime/steps/window_gradient.hpp"

#include <algorithm>
#include <cstring>

#include "runtime/steps/checks.hpp"

namespace budwood {
namespace {

constexpr int64_t kMostLanes = 16, kMostTaps = 1024;

// The place in `to` of what lies `at` floats from a channel's first pixel in `from`.
int64_t translate(int64_t at, const Map& from, const Map& to, int64_t groups, int64_t width) {
  const int64_t g = groups > 1 ? at / std::max<int64_t>(from.group, 1) : 0;
  at -= g * from.group;
  const int64_t y = from.height > 1 ? at / std::max<int64_t>(from.row, 1) : 0, place = at - y * from.row;
  require(at >= 0 && g < groups && y < from.height && place >= 0 && place + width <= from.width * from.lanes,
          "a gradient goes back to pixels only");
  return g * to.group + y * to.row + place;
}

}  // namespace

PlaneGradient::PlaneGradient(const Map& from, const Map& to, const std::vector<Move>& moves,
                             const std::vector<int32_t>& index, int64_t groups_of_source, int64_t arena_floats,
                             int64_t lanes)
    : to_(to), groups_of_source_(groups_of_source) {
  check_map(to_, arena_floats);
  check_size(to_, arena_floats);
  check_map(from, arena_floats);
  require(from.groups == to.groups && from.height == to.height && from.channels == to.channels &&
              from.width == to.width && from.lanes == to.lanes && to.lanes == lanes,
          "the gradient of a map is not like it");
  std::vector<PutBack::Pair> floats;
  for (size_t m = 0; m < moves.size(); ++m) {
    if (moves[m].kind == Move::copy) {
      pairs_.push_back({moves[m].to, translate(moves[m].from, from, to, groups_of_source, lanes)});
      continue;
    }
    for (int64_t l = 0; l < lanes; ++l) {
      const auto entry = [&](size_t n) { return index[moves[n].index * lanes + l]; };
      // A merge that follows takes the lane over.
      const bool kept = m + 1 == moves.size() || moves[m + 1].kind != Move::merge || entry(m + 1) < 0;
      const int64_t base = moves[m].kind == Move::gather ? 0 : moves[m].from;
      if (entry(m) >= 0 && kept) floats.push_back({moves[m].to + l, translate(base + entry(m), from, to, groups_of_source, 1)});
    }
  }
  vectors_ = static_cast<int64_t>(pairs_.size());
  pairs_.insert(pairs_.end(), floats.begin(), floats.end());
}

void PlaneGradient::put_back(const Run& run, int64_t group, int64_t c, const float* scratch) const {
  for (int64_t g = group * groups_of_source_; g < (group + 1) * groups_of_source_; ++g)
    for (int64_t y = 0; y < to_.height; ++y)
      std::memset(to_.at(run.arena, g, y, c, 0), 0, sizeof(float) * to_.width * to_.lanes);
  run.kernels->put_back({scratch, to_.at(run.arena, group * groups_of_source_, 0, c, 0), pairs_.data(), vectors_,
                         static_cast<int64_t>(pairs_.size()) - vectors_});
}

WindowGradientStep::WindowGradientStep(Window window, Map gradient, int64_t groups_of_source, int64_t arena_floats,
                                       int64_t lanes)
    : window_(std::move(window)), gradient_(gradient) {
  check_map(gradient_, arena_floats);
  check_size(gradient_, arena_floats);
  require(gradient_.lanes == lanes && lanes <= kMostLanes, "a map must have the lanes of the instruction set");
  require(__int128(gradient_.groups) * groups_of_source == window_.plane.groups(), "a gradient has other groups than its source");
  require(static_cast<int64_t>(window_.taps.size()) <= kMostTaps, "a window has too many taps");
  check_taps(window_.taps, window_.origin, window_.row, gradient_, window_.plane.scratch());
}

WindowGradientStep::Scratch WindowGradientStep::bring(const Run& run, int64_t group, int64_t c) const {
  const int64_t floats = window_.plane.scratch();
  float* gradient = scratch_of_this_thread(2 * floats) + floats;
  const float* plane = window_.plane.bring(run, group, c);
  std::memset(gradient, 0, sizeof(float) * floats);
  return {plane, gradient};
}

MaxPoolGradientStep::MaxPoolGradientStep(Window window, PlaneGradient to, Map out, Map gradient,
                                         int64_t groups_of_source, int64_t arena_floats, int64_t lanes)
    : WindowGradientStep(std::move(window), gradient, groups_of_source, arena_floats, lanes), to_(std::move(to)), out_(out) {
  check_map(out_, arena_floats);
  require(out_.channels == window_.plane.channels() && gradient_.channels == out_.channels, "a pooling keeps the channels");
  require(out_.groups == gradient_.groups && out_.height == gradient_.height && out_.width == gradient_.width &&
              out_.lanes == gradient_.lanes,
          "the gradient of a map is not like it");
}

void MaxPoolGradientStep::run(const Run& run, int64_t, int64_t c) const {
  for (int64_t g = 0; g < gradient_.groups; ++g) {
    const Scratch scratch = bring(run, g, c);
    run.kernels->max_pool_gradient({scratch.plane + window_.origin, out_.at(run.arena, g, 0, c, 0),
                                    gradient_.at(run.arena, g, 0, c, 0), scratch.gradient + window_.origin, window_.row,
                                    out_.row, gradient_.row, gradient_.height, gradient_.width, window_.taps.data(),
                                    static_cast<int64_t>(window_.taps.size())});
    to_.put_back(run, g, c, scratch.gradient);
  }
}

DepthwiseGradientStep::DepthwiseGradientStep(Window window, std::vector<PlaneGradient> to, Map gradient,
                                             int64_t weights_at, int64_t number, int64_t groups_of_source,
                                             int64_t arena_floats, int64_t lanes)
    : WindowGradientStep(std::move(window), gradient, groups_of_source, arena_floats, lanes), to_(std::move(to)),
      weights_at_(weights_at), number_(number) {
  require(gradient_.channels % window_.plane.channels() == 0, "the input channels must divide the output channels");
  const auto taps = static_cast<int64_t>(window_.taps.size());
  require(weights_at_ >= 0 && __int128(gradient_.channels) * taps <= arena_floats - weights_at_,
          "the weights reach outside the arena");
}

void DepthwiseGradientStep::run(const Run& run, int64_t, int64_t c) const {
  const auto taps = static_cast<int64_t>(window_.taps.size());
  const int64_t multiplier = gradient_.channels / window_.plane.channels();
  std::vector<double> total(multiplier * taps);
  std::vector<float> sums(taps * gradient_.lanes);
  for (int64_t g = 0; g < gradient_.groups; ++g) {
    const Scratch scratch = bring(run, g, c);
    for (int64_t i = 0; i < multiplier; ++i) {
      const int64_t m = c * multiplier + i;
      std::fill(sums.begin(), sums.end(), 0.0f);
      run.kernels->stencil_gradient({scratch.plane + window_.origin, gradient_.at(run.arena, g, 0, m, 0),
                                     to_.empty() ? nullptr : scratch.gradient + window_.origin, window_.row, gradient_.row,
                                     gradient_.height, gradient_.width, window_.taps.data(), taps,
                                     run.arena + weights_at_ + m * taps, sums.data()});
      for (int64_t s = 0; s < taps * gradient_.lanes; ++s) total[i * taps + s / gradient_.lanes] += sums[s];
    }
    if (!to_.empty()) to_[0].put_back(run, g, c, scratch.gradient);
  }
  for (int64_t t = 0; t < multiplier * taps; ++t) run.outputs[number_][c * multiplier * taps + t] = static_cast<float>(total[t]);
}

}  // namespace budwood
