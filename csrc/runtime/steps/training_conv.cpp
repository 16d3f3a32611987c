#include "runtime/steps/training_conv.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "runtime/steps/checks.hpp"

namespace budwood {
namespace {

ConvShape checked(ConvShape shape, int64_t arena_floats) {
  shape.check(arena_floats);
  require(shape.operand.groups >= shape.out.groups, "the operand holds fewer groups than the gradient");
  return shape;
}

}  // namespace

PackStep::PackStep(int64_t number, int64_t at, std::span<const int64_t> index, int64_t floats, int64_t arena_floats)
    : number_(number), at_(at) {
  const auto count = static_cast<int64_t>(index.size());
  require(at >= 0 && at <= arena_floats && count <= arena_floats - at, "packed numbers lie outside the arena");
  require(floats <= std::numeric_limits<int32_t>::max(), "an input to pack is too large");
  index_.reserve(index.size());
  for (int64_t i : index) {
    require(i < floats, "a number outside the input is packed");
    index_.push_back(static_cast<int32_t>(std::max<int64_t>(i, -1)));
  }
  parts_ = parts_of(count, 1);
}

void PackStep::run(const Run& run, int64_t, int64_t item) const {
  const auto count = static_cast<int64_t>(index_.size());
  const float* from = run.inputs[number_];
  for (int64_t i = part(count, parts_, item); i < part(count, parts_, item + 1); ++i)
    run.arena[at_ + i] = index_[i] < 0 ? 0 : from[index_[i]];
}

ConvGradientStep::ConvGradientStep(ConvShape shape, int64_t number, int64_t arena_floats,
                                   std::span<const int32_t> columns, std::span<const int64_t> start)
    : shape_(checked(std::move(shape), arena_floats)), number_(number), part_(parts_of_channels(shape_.out.channels, 1)),
      tiles_(tiles_of(shape_.out.width, std::min<int64_t>(kSparseTile, shape_.widest))),
      packing_(shape_, part_, columns, start) {
  int64_t entry = 0;
  for (const SparseRow& row : packing_.rows) {
    to_.push_back(row.entries > 0 ? packing_.order[entry] : 0);
    entry += row.entries;
  }
  packing_.order = {};
}

void ConvGradientStep::run_range(const Run& run, int64_t, int64_t begin, int64_t end) const {
  for (int64_t g = 0; g < shape_.out.groups; ++g)
    for (int64_t item = begin; item < end;) {
      const int64_t b = item / parts(), first = item % parts(), last = std::min(parts(), first + end - item);
      add_group(run, g, b, first, last);
      item += last - first;
    }
}

void ConvGradientStep::add_group(const Run& run, int64_t g, int64_t b, int64_t first, int64_t last) const {
  const auto from = packing_.begin[b * parts() + first], to = packing_.begin[b * parts() + last];
  thread_local std::vector<float> sums;
  sums.assign(to.entry - from.entry, 0.0f);
  for (int64_t y = 0; y < shape_.out.height; ++y)
    for (const Tile& tile : tiles_)
      run.kernels->conv_gradient({shape_.operand.at(run.arena, g, y, 0, tile.x) + packing_.lowest[b],
                                  shape_.out.at(run.arena, g, y, 0, tile.x), shape_.out.channel,
                                  packing_.rows.data() + from.row, to.row - from.row, packing_.places.data() + from.entry,
                                  sums.data(), tile.width});
  const float* sum = sums.data();
  for (int64_t r = from.row; r < to.row; ++r) {
    float* out = run.outputs[number_] + to_[r];
    for (int32_t e = 0; e < packing_.rows[r].entries; ++e, ++sum) out[e] = g == 0 ? *sum : out[e] + *sum;
  }
}

}  // namespace budwood
