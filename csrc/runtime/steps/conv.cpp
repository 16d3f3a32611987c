#include "runtime/steps/conv.hpp"

#include <algorithm>
#include <limits>

#include "runtime/steps/checks.hpp"

namespace budwood {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The bounds that the convolution kernels clamp to; false where the activation is something else.
bool clamp_of(const Activation& f, float& low, float& high) {
  low = -kInfinity, high = kInfinity;
  switch (f.kind) {
    case Activation::identity: return true;
    case Activation::relu: low = 0; return true;
    case Activation::relu6: low = 0, high = 6; return true;
    case Activation::clamp: low = f.low, high = f.high; return true;
    default: return false;
  }
}

// A tile's output channels are cut into so many parts at most, of so many channels at least, for the threads to share.
// Vectors that the place of an operand can count.
constexpr int64_t kFarthest = std::numeric_limits<uint16_t>::max();

constexpr int64_t kParts = 8, kPart = 8;

// Non-zeros of a row above which its blocks are summed apart.
constexpr int64_t kLong = 256;

// [0, count) in `parts` parts of nearly the same size.
std::vector<int64_t> split(int64_t count, int64_t parts) {
  std::vector<int64_t> first;
  for (int64_t p = 0; p <= parts; ++p) first.push_back(count * p / parts);
  return first;
}

}  // namespace

ConvStep::ConvStep(ConvShape shape, int64_t arena_floats, int64_t widest, int64_t together) : shape_(std::move(shape)) {
  ConvShape& s = shape_;
  check_map(s.operand, arena_floats);
  check_map(s.out, arena_floats);
  require(!s.offsets.empty(), "a convolution needs operands");
  const auto [low, high] = std::minmax_element(s.offsets.begin(), s.offsets.end());
  require(*low > -arena_floats && *high < arena_floats, "an operand lies outside the arena");
  require(s.operand.lanes == s.lanes && s.out.lanes == s.lanes, "a map must have the lanes of the instruction set");
  check_size(s.out, arena_floats);
  const __int128 last = __int128(s.operand.offset) + __int128(s.operand.groups - 1) * s.operand.group +
                        __int128(s.out.height - 1) * s.operand.row + s.out.width * s.out.lanes + *high;
  require(s.operand.offset + *low >= 0 && last <= arena_floats, "an operand lies outside the arena");
  require((*high - *low) * int64_t(sizeof(float)) <= std::numeric_limits<uint32_t>::max(), "operands lie too far apart");
  require(static_cast<int64_t>(s.bias.size()) == s.out.channels, "a bias is needed for every output channel");
  require(s.blocks.size() >= 2 && s.blocks.front() == 0 && s.blocks.back() == static_cast<int64_t>(s.offsets.size()) &&
              std::is_sorted(s.blocks.begin(), s.blocks.end()),
          "blocks must cover the operands");
  if (s.residual.groups > 0) {
    check_map(s.residual, arena_floats);
    require(s.residual.channels >= s.out.channels && s.residual.height >= s.out.height &&
                s.residual.width >= s.out.width && s.residual.lanes == s.out.lanes,
            "the residual is smaller than the output");
  }
  part_ = split((s.out.channels + together - 1) / together, std::clamp<int64_t>(s.out.channels / kPart, 1, kParts));
  for (int64_t& first : part_) first = std::min(first * together, s.out.channels);
  require(s.widest >= 1, "a tile needs a vector");
  widest = std::min(widest, s.widest);
  const int64_t count = (s.out.width + widest - 1) / widest;
  const auto cut = split(s.out.width, count);
  for (int64_t p = 0; p < count; ++p) tiles_.push_back({cut[p], static_cast<int>(cut[p + 1] - cut[p])});
  clamps_ = clamp_of(s.activation, low_, high_);
}

void ConvStep::run_range(const Run& run, int64_t group, int64_t begin, int64_t end) const {
  const auto tiles = static_cast<int64_t>(tiles_.size());
  const Map& out = shape_.out;
  while (begin < end) {
    int64_t tile = begin / parts(), first = begin % parts(), last = std::min(parts(), first + end - begin);
    if (shape_.by_channels) {
      tile = begin % (out.height * tiles), first = begin / (out.height * tiles), last = first + 1;
    }
    const int64_t y = tile / tiles, x = tiles_[tile % tiles].x;
    const Place place{shape_.operand.at(run.arena, group, y, 0, x), out.at(run.arena, group, y, 0, x),
                      shape_.residual.groups > 0 ? shape_.residual.at(run.arena, group, y, 0, x) : nullptr,
                      tiles_[tile % tiles].width, low_, high_};
    compute(*run.kernels, place, first, last);
    if (!clamps_)
      run.kernels->activate({place.out + part_[first] * out.channel, out.channel, part_[last] - part_[first],
                             place.tile * out.lanes, shape_.activation});
    begin += last - first;
  }
}

SparseConvStep::SparseConvStep(ConvShape shape, int64_t arena_floats, std::span<const float> values,
                               std::span<const int32_t> columns, std::span<const int64_t> start)
    : ConvStep(std::move(shape), arena_floats, kSparseTile, 1) {
  const auto& offsets = shape_.offsets;
  const auto depth = static_cast<int64_t>(offsets.size()), rows = shape_.out.channels;
  require(static_cast<int64_t>(start.size()) == rows + 1 && start[0] == 0 &&
              start[rows] == static_cast<int64_t>(values.size()) && values.size() == columns.size() &&
              std::is_sorted(start.begin(), start.end()),
          "the weights are no CSR matrix of one row per output channel");
  for (int32_t k : columns) require(k >= 0 && k < depth, "a weight names no operand");
  weights_.assign(values.begin(), values.end());
  places_.reserve(values.size());
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  int64_t stored = 0;
  for (size_t b = 0; b + 1 < shape_.blocks.size(); ++b) {
    const bool edge = b == 0 || b + 2 == shape_.blocks.size();
    const auto from = offsets.begin() + shape_.blocks[b], to = offsets.begin() + shape_.blocks[b + 1];
    lowest_.push_back(from == to ? 0 : *std::min_element(from, to));
    for (int64_t p = 0; p < parts(); ++p) {
      begin_.push_back({static_cast<int64_t>(rows_.size()), stored});
      for (int64_t m = part_[p]; m < part_[p + 1]; ++m) {
        int64_t& e = next[m];
        const int64_t first = e;
        for (; e < start[m + 1] && columns[e] < shape_.blocks[b + 1]; ++e) {
          const int64_t floats = offsets[columns[e]] - lowest_[b], place = floats / shape_.lanes;
          require(columns[e] >= shape_.blocks[b] && floats % shape_.lanes == 0 && place <= kFarthest, "a block's operands lie too far apart");
          weights_[stored++] = values[e];
          places_.push_back(static_cast<uint16_t>(place));
        }
        if (e > first || edge) rows_.push_back({static_cast<int32_t>(m), static_cast<int32_t>(e - first)});
      }
    }
  }
  begin_.push_back({static_cast<int64_t>(rows_.size()), stored});
  require(stored == static_cast<int64_t>(values.size()), "the columns of a row must rise");
  apart_ = static_cast<int64_t>(values.size()) > kLong * rows;
}

void SparseConvStep::compute(const Kernels& kernels, const Place& p, int64_t begin, int64_t end) const {
  const auto count = static_cast<int64_t>(shape_.blocks.size()) - 1;
  for (int64_t b = 0; b < count; ++b) {
    const Begin first = begin_[b * parts() + begin], last = begin_[b * parts() + end];
    kernels.sparse_conv({p.panel + lowest_[b], p.out, p.residual, shape_.out.channel, shape_.residual.channel,
                         rows_.data() + first.row, last.row - first.row, weights_.data() + first.entry, places_.data() + first.entry,
                         shape_.bias.data(), p.low, p.high, p.tile, b == 0, b + 1 == count, apart_});
  }
}

DenseConvStep::DenseConvStep(ConvShape shape, int64_t arena_floats, std::span<const float> weights, int64_t groups)
    : ConvStep(std::move(shape), arena_floats, kDenseTile, kDenseRows) {
  const auto& offsets = shape_.offsets;
  const auto depth = static_cast<int64_t>(offsets.size()), rows = shape_.out.channels;
  require(groups >= 1 && depth % groups == 0 && rows % groups == 0, "groups must divide operands and channels");
  const int64_t per_group = depth / groups, rows_per_group = rows / groups;
  require(static_cast<int64_t>(weights.size()) == rows * per_group, "the weights are not [channels][operands]");
  lowest_ = *std::min_element(offsets.begin(), offsets.end());
  for (int64_t o : offsets) offsets_.push_back(static_cast<uint32_t>((o - lowest_) * sizeof(float)));
  const auto add = [&](int64_t channel, int64_t channels, int64_t begin, int64_t end) {
    const int64_t zero = channel / rows_per_group * per_group;  // the group's first operand
    blocks_.push_back({channel, channels, end - begin, begin, static_cast<int64_t>(weights_.size()), begin == zero,
                       end == zero + per_group});
    for (int64_t c = 0; c < channels; c += kDenseRows)
      for (int64_t k = begin; k < end; ++k)
        for (int64_t r = 0; r < kDenseRows; ++r)
          weights_.push_back(c + r < channels ? weights[(channel + c + r) * per_group + k - zero] : 0);
  };
  for (int64_t p = 0; p < parts(); ++p) {
    block_of_.push_back(static_cast<int64_t>(blocks_.size()));
    for (int64_t m = part_[p]; m < part_[p + 1];) {
      const int64_t g = m / rows_per_group, end = std::min(part_[p + 1], (g + 1) * rows_per_group);
      for (size_t b = 0; b + 1 < shape_.blocks.size(); ++b) {
        const int64_t first = std::max(shape_.blocks[b], g * per_group);
        const int64_t last = std::min(shape_.blocks[b + 1], (g + 1) * per_group);
        if (first < last) add(m, end - m, first, last);
      }
      m = end;
    }
  }
  block_of_.push_back(static_cast<int64_t>(blocks_.size()));
}

void DenseConvStep::compute(const Kernels& kernels, const Place& p, int64_t begin, int64_t end) const {
  for (int64_t b = block_of_[begin]; b < block_of_[end]; ++b) {
    const Block& block = blocks_[b];
    kernels.dense_conv({p.panel + lowest_, p.out + block.channel * shape_.out.channel,
                        p.residual ? p.residual + block.channel * shape_.residual.channel : nullptr, shape_.out.channel,
                        shape_.residual.channel, block.channels, block.depth, offsets_.data() + block.offset,
                        weights_.data() + block.weight, shape_.bias.data() + block.channel, p.low, p.high, p.tile,
                        block.first, block.last});
  }
}

}  // namespace budwood
