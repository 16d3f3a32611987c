#include "runtime/steps/batch_norm.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/steps/checks.hpp"

namespace budwood {
namespace {

constexpr int kMostLanes = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Two sums for each of some channels: float in each lane while a group is summed, then double.
template <int64_t Most>
struct Sums {
  alignas(64) float lanes[Most * 2 * kMostLanes];
  double total[Most][2] = {};

  void begin_group() { std::memset(lanes, 0, sizeof lanes); }
  void end_group(int64_t channels, int64_t in_vector) {
    for (int64_t l = 0; l < in_vector; ++l)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t k = 0; k < 2; ++k) total[c][k] += lanes[(c * 2 + k) * in_vector + l];
  }
};

}  // namespace

WholeStep::WholeStep(Map plane, std::vector<float> mask, int64_t arena_floats, int64_t lanes)
    : plane_(plane), mask_(std::move(mask)), arena_floats_(arena_floats) {
  check_map(plane_, arena_floats);
  check_size(plane_, arena_floats);
  require(plane_.lanes == lanes && lanes <= kMostLanes, "a map must have the lanes of the instruction set");
  require(mask_.empty() || __int128(mask_.size()) == __int128(plane_.height) * plane_.width * lanes,
          "the mask has not one number per pixel");
  // Neighbouring channels' rows follow each other: a page of them is long enough to be streamed, and all rows of so few
  // channels often still lie in a cache when the second pass of a gradient reads them.
  constexpr int64_t kPage = 1024;
  together_ = std::clamp<int64_t>(kPage / (plane_.width * lanes), 1, kMost);
}

void WholeStep::run_range(const Run& run, int64_t, int64_t begin, int64_t end) const {
  for (int64_t c = begin; c < end; c += together_) channels(run, c, std::min(end, c + together_));
}

void WholeStep::check_like(const Map& map, const char* what) const {
  check_map(map, arena_floats_);
  require(map.groups == plane_.groups && map.height == plane_.height && map.width == plane_.width &&
              map.lanes == plane_.lanes && map.channels == plane_.channels,
          what);
}

void WholeStep::check_vector(int64_t at) const {
  require(at >= 0 && at <= arena_floats_ - plane_.channels, "a vector of the channels' numbers reaches outside the arena");
}

PlaneSizes WholeStep::sizes(int64_t channels) const {
  return {plane_.height, channels, plane_.width, mask_.empty() ? nullptr : mask_.data()};
}

Planes WholeStep::planes(const Map& map, const Run& run, int64_t group, int64_t channel) {
  return {map.at(run.arena, group, 0, channel, 0), map.row, map.channel};
}

BatchStatisticsStep::BatchStatisticsStep(Map source, std::vector<float> mask, int64_t count, int64_t mean_at,
                                         int64_t var_at, int64_t arena_floats, int64_t lanes)
    : WholeStep(source, std::move(mask), arena_floats, lanes), count_(count), mean_at_(mean_at), var_at_(var_at) {
  require(count_ >= 1, "statistics are over one value or more");
  check_vector(mean_at_);
  check_vector(var_at_);
  const int64_t row = plane_.width * lanes;
  first_row_ = mask_.empty() ? row : std::count_if(mask_.begin(), mask_.begin() + row, [](float m) { return m > 0; });
  require(first_row_ >= 1, "the mask leaves no pixel in the first row");
}

// Less the mean of the first row: were the channel's mean so far from that that digits were lost, the row itself would
// make the variance large.
void BatchStatisticsStep::channels(const Run& run, int64_t begin, int64_t end) const {
  const int64_t count = end - begin;
  float shift[kMost] = {};
  Sums<kMost> row, sums;
  PlaneSizes first = sizes(count);
  first.rows = 1;
  row.begin_group();
  run.kernels->batch_sums({planes(plane_, run, 0, begin), first, shift, row.lanes});
  row.end_group(count, plane_.lanes);
  for (int64_t c = 0; c < count; ++c) shift[c] = static_cast<float>(row.total[c][0] / first_row_);
  for (int64_t g = 0; g < plane_.groups; ++g) {
    sums.begin_group();
    run.kernels->batch_sums({planes(plane_, run, g, begin), sizes(count), shift, sums.lanes});
    sums.end_group(count, plane_.lanes);
  }
  for (int64_t c = 0; c < count; ++c) {
    const double mean = sums.total[c][0] / count_, square = sums.total[c][1] / count_, var = square - mean * mean;
    run.arena[mean_at_ + begin + c] = static_cast<float>(shift[c] + mean);
    run.arena[var_at_ + begin + c] = static_cast<float>(var < 0 ? 0 : var);  // NaN stays
  }
}

BatchNormStep::BatchNormStep(Map source, Map out, Map residual, std::vector<float> mask, Normalisation n,
                             int64_t arena_floats, int64_t lanes)
    : WholeStep(source, std::move(mask), arena_floats, lanes), out_(out), residual_(residual), n_(n) {
  check_like(out_, "the output of a batch norm is not like its source");
  if (residual_.groups > 0) check_like(residual_, "the residual of a batch norm is not like its source");
  check_vector(n_.mean_at);
  check_vector(n_.var_at);
}

void BatchNormStep::channels(const Run& run, int64_t begin, int64_t end) const {
  const int64_t count = end - begin;
  const float *var = run.arena + n_.var_at + begin, *weight = run.inputs[n_.weight] + begin;
  float scale[kMost];
  for (int64_t c = 0; c < count; ++c) scale[c] = static_cast<float>(weight[c] / std::sqrt(double(var[c]) + n_.eps));
  for (int64_t g = 0; g < plane_.groups; ++g)
    run.kernels->batch_norm({planes(plane_, run, g, begin), residual_.groups > 0 ? planes(residual_, run, g, begin) : Planes{},
                             planes(out_, run, g, begin), sizes(count), run.arena + n_.mean_at + begin, scale,
                             run.inputs[n_.bias] + begin, n_.low, n_.high});
}

BatchNormGradientStep::BatchNormGradientStep(Maps maps, std::vector<float> mask, int64_t count, Normalisation n,
                                             int64_t weight_out, int64_t bias_out, bool frozen, int64_t arena_floats,
                                             int64_t lanes)
    : WholeStep(maps.source, std::move(mask), arena_floats, lanes), m_(maps), count_(count), n_(n),
      weight_out_(weight_out), bias_out_(bias_out), frozen_(frozen) {
  for (const Map* m : {&m_.out, &m_.gradient, &m_.to}) check_like(*m, "the maps of a batch norm's gradient are not alike");
  if (m_.residual_to.groups > 0) check_like(m_.residual_to, "the maps of a batch norm's gradient are not alike");
  require(m_.residual_to.groups == 0 || m_.residual_to.offset != m_.to.offset, "two gradients have the same place");
  require(m_.to.offset != m_.source.offset && (m_.residual_to.groups == 0 || m_.residual_to.offset != m_.source.offset),
          "a batch norm's source is read after its gradient is begun");
  require(count_ >= 1, "statistics are over one value or more");
  check_vector(n_.mean_at);
  check_vector(n_.var_at);
}

// The first pass leaves g where it is wanted anyway, or in the place of the result, so that the second reads less.
void BatchNormGradientStep::channels(const Run& run, int64_t begin, int64_t end) const {
  const int64_t count = end - begin;
  const float *mean = run.arena + n_.mean_at + begin, *var = run.arena + n_.var_at + begin;
  const bool changed = n_.low != -kInfinity || n_.high != kInfinity || !mask_.empty();
  const Map& g_map = m_.residual_to.groups > 0 ? m_.residual_to : changed ? m_.to : m_.gradient;
  const bool written = changed || m_.residual_to.groups > 0;
  Sums<kMost> sums;
  for (int64_t g = 0; g < plane_.groups; ++g) {
    sums.begin_group();
    run.kernels->batch_norm_sums({planes(plane_, run, g, begin), planes(m_.out, run, g, begin), planes(m_.gradient, run, g, begin),
                                  written ? planes(g_map, run, g, begin) : Planes{}, sizes(count), n_.low, n_.high, mean,
                                  sums.lanes});
    sums.end_group(count, plane_.lanes);
  }
  float scale[kMost], slope[kMost], offset[kMost];
  for (int64_t c = 0; c < count; ++c) {
    const double inverse = 1 / std::sqrt(double(var[c]) + n_.eps), by = run.inputs[n_.weight][begin + c] * inverse;
    run.outputs[bias_out_][begin + c] = static_cast<float>(sums.total[c][0]);
    run.outputs[weight_out_][begin + c] = static_cast<float>(sums.total[c][1] * inverse);
    scale[c] = static_cast<float>(by);
    slope[c] = frozen_ ? 0.0f : static_cast<float>(-by * inverse * inverse * sums.total[c][1] / count_);
    offset[c] = frozen_ ? 0.0f : static_cast<float>(-by * sums.total[c][0] / count_);
  }
  for (int64_t g = 0; g < plane_.groups; ++g)
    run.kernels->batch_norm_back({planes(plane_, run, g, begin), planes(g_map, run, g, begin), planes(m_.to, run, g, begin),
                                  sizes(count), mean, scale, slope, offset});
}

SpreadStep::SpreadStep(Map source, Map out, int64_t images, std::vector<float> mask, float factor,
                       int64_t arena_floats, int64_t lanes)
    : WholeStep(out, std::move(mask), arena_floats, lanes), source_(source), images_(images), factor_(factor) {
  check_map(source_, arena_floats);
  require(images_ >= 1 && images_ <= lanes && lanes % images_ == 0, "the images of a group must divide the lanes");
  require(source_.height == 1 && source_.width == 1 && source_.lanes == 1 && source_.channels == out.channels &&
              source_.groups == out.groups * images_,
          "a number is needed for each image and channel");
  require(source_.group < (int64_t(1) << 31) / lanes, "the images of a vector lie too far apart");
  for (int64_t l = 0; l < lanes; ++l) lane_.push_back(static_cast<int32_t>(l / (lanes / images_) * source_.group));
}

void SpreadStep::channels(const Run& run, int64_t begin, int64_t end) const {
  for (int64_t g = 0; g < plane_.groups; ++g)
    run.kernels->spread({source_.at(run.arena, g * images_, 0, begin, 0), source_.channel, lane_.data(),
                         planes(plane_, run, g, begin), sizes(end - begin), factor_});
}

StatisticsOutStep::StatisticsOutStep(int64_t mean_at, int64_t var_at, int64_t channels, int64_t number,
                                     int64_t arena_floats)
    : mean_at_(mean_at), var_at_(var_at), channels_(channels), number_(number) {
  require(channels_ >= 1, "statistics need a channel");
  for (int64_t at : {mean_at_, var_at_})
    require(at >= 0 && at <= arena_floats - channels_, "a vector of the channels' numbers reaches outside the arena");
}

void StatisticsOutStep::run(const Run& run, int64_t, int64_t) const {
  std::memcpy(run.outputs[number_], run.arena + mean_at_, sizeof(float) * channels_);
  std::memcpy(run.outputs[number_] + channels_, run.arena + var_at_, sizeof(float) * channels_);
}

}  // namespace budwood
