#include "runtime/steps/conv.hpp"

#include <algorithm>
#include <limits>
#include <utility>

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

// Vectors that the place of an operand can count.
constexpr int64_t kFarthest = std::numeric_limits<uint16_t>::max();

// A tile's output channels are cut into so many parts at most, of so many channels at least, for the threads to share.
constexpr int64_t kParts = 8, kPart = 8;

// Tiles of a plane up to which the dense kernel fetches its weights ahead: each is used so few times that they come from
// far away.
constexpr int64_t kFew = 2;

// Non-zeros of a row on the average above which its blocks are summed apart, and of a row in a block where it has any:
// there it costs little.
constexpr int64_t kLong = 256, kMany = 32;

// [0, count) in `parts` parts of nearly the same size.
std::vector<int64_t> split(int64_t count, int64_t parts) {
  std::vector<int64_t> first;
  for (int64_t p = 0; p <= parts; ++p) first.push_back(count * p / parts);
  return first;
}

Weights in_arena(int64_t at, size_t count, int64_t floats) {
  require(at >= 0 && at <= floats && static_cast<int64_t>(count) <= floats - at, "weights lie outside the arena");
  return {{}, at};
}

// Values in packed order, 0 where that is -1.
Weights own(std::span<const float> values, const std::vector<int64_t>& order) {
  Weights weights;
  weights.own.reserve(order.size());
  for (int64_t at : order) weights.own.push_back(at < 0 ? 0 : values[at]);
  return weights;
}

}  // namespace

void ConvShape::check(int64_t floats) const {
  check_map(operand, floats);
  check_map(out, floats);
  require(!offsets.empty(), "a convolution needs operands");
  const auto [low, high] = std::minmax_element(offsets.begin(), offsets.end());
  require(*low > -floats && *high < floats, "an operand lies outside the arena");
  require(operand.lanes == lanes && out.lanes == lanes, "a map must have the lanes of the instruction set");
  check_size(out, floats);
  const __int128 last = __int128(operand.offset) + __int128(operand.groups - 1) * operand.group +
                        __int128(out.height - 1) * operand.row + out.width * out.lanes + *high;
  require(operand.offset + *low >= 0 && last <= floats, "an operand lies outside the arena");
  require((*high - *low) * int64_t(sizeof(float)) <= std::numeric_limits<uint32_t>::max(), "operands lie too far apart");
  require(blocks.size() >= 2 && blocks.front() == 0 && blocks.back() == static_cast<int64_t>(offsets.size()) &&
              std::is_sorted(blocks.begin(), blocks.end()),
          "blocks must cover the operands");
  require(widest >= 1, "a tile needs a vector");
}

std::vector<Tile> tiles_of(int64_t width, int64_t widest) {
  const int64_t count = (width + widest - 1) / widest;
  const auto cut = split(width, count);
  std::vector<Tile> tiles;
  for (int64_t p = 0; p < count; ++p) tiles.push_back({cut[p], static_cast<int>(cut[p + 1] - cut[p])});
  return tiles;
}

std::vector<int64_t> parts_of_channels(int64_t channels, int64_t together) {
  auto part = split((channels + together - 1) / together, std::clamp<int64_t>(channels / kPart, 1, kParts));
  for (int64_t& first : part) first = std::min(first * together, channels);
  return part;
}

ConvStep::ConvStep(ConvShape shape, int64_t arena_floats, int64_t widest, int64_t together) : shape_(std::move(shape)) {
  const ConvShape& s = shape_;
  s.check(arena_floats);
  require(static_cast<int64_t>(s.bias.size()) == s.out.channels, "a bias is needed for every output channel");
  if (s.residual.groups > 0) {
    check_map(s.residual, arena_floats);
    require(s.residual.channels >= s.out.channels && s.residual.height >= s.out.height &&
                s.residual.width >= s.out.width && s.residual.lanes == s.out.lanes,
            "the residual is smaller than the output");
  }
  part_ = parts_of_channels(s.out.channels, together);
  tiles_ = tiles_of(s.out.width, std::min(widest, s.widest));
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
    const Place place{run.arena, shape_.operand.at(run.arena, group, y, 0, x), out.at(run.arena, group, y, 0, x),
                      shape_.residual.groups > 0 ? shape_.residual.at(run.arena, group, y, 0, x) : nullptr,
                      tiles_[tile % tiles].width, low_, high_};
    compute(*run.kernels, place, first, last);
    if (!clamps_)
      run.kernels->activate({place.out + part_[first] * out.channel, out.channel, part_[last] - part_[first],
                             place.tile * out.lanes, shape_.activation});
    begin += last - first;
  }
}

SparsePacking::SparsePacking(const ConvShape& shape, const std::vector<int64_t>& part, std::span<const int32_t> columns,
                             std::span<const int64_t> start) {
  const auto& offsets = shape.offsets;
  const auto depth = static_cast<int64_t>(offsets.size()), channels = shape.out.channels;
  require(static_cast<int64_t>(start.size()) == channels + 1 && start[0] == 0 &&
              start[channels] == static_cast<int64_t>(columns.size()) && std::is_sorted(start.begin(), start.end()),
          "the weights are no CSR matrix of one row per output channel");
  for (int32_t k : columns) require(k >= 0 && k < depth, "a weight names no operand");
  places.reserve(columns.size());
  order.reserve(columns.size());
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  for (size_t b = 0; b + 1 < shape.blocks.size(); ++b) {
    const bool edge = b == 0 || b + 2 == shape.blocks.size();
    const auto from = offsets.begin() + shape.blocks[b], to = offsets.begin() + shape.blocks[b + 1];
    lowest.push_back(from == to ? 0 : *std::min_element(from, to));
    for (size_t p = 0; p + 1 < part.size(); ++p) {
      begin.push_back({static_cast<int64_t>(rows.size()), static_cast<int64_t>(order.size())});
      for (int64_t m = part[p]; m < part[p + 1]; ++m) {
        int64_t past = next[m];
        while (past < start[m + 1] && columns[past] < shape.blocks[b + 1]) ++past;
        if (past > next[m] || edge) rows.push_back({static_cast<int32_t>(m), static_cast<int32_t>(past - next[m])});
      }
      // A row mostly ends where the last one did, which is what the processor guesses; so that this holds where parts
      // meet too, one rises and the next falls.
      const auto mine = std::span(rows).subspan(begin.back().row);
      const bool falling = (b * (part.size() - 1) + p) % 2 == 1;
      std::stable_sort(mine.begin(), mine.end(), [falling](const SparseRow& x, const SparseRow& y) {
        return falling ? x.entries > y.entries : x.entries < y.entries;
      });
      for (const SparseRow& row : mine) {
        for (int32_t i = 0; i < row.entries; ++i) {
          const int64_t e = next[row.channel]++;
          const int64_t floats = offsets[columns[e]] - lowest[b], place = floats / shape.lanes;
          require(columns[e] >= shape.blocks[b] && floats % shape.lanes == 0 && place <= kFarthest, "a block's operands lie too far apart");
          order.push_back(e);
          places.push_back(static_cast<uint16_t>(place));
        }
      }
    }
  }
  begin.push_back({static_cast<int64_t>(rows.size()), static_cast<int64_t>(order.size())});
  require(order.size() == columns.size(), "the columns of a row must rise");
}

SparseConvStep::SparseConvStep(ConvShape shape, int64_t arena_floats, std::span<const int32_t> columns,
                               std::span<const int64_t> start)
    : ConvStep(std::move(shape), arena_floats, kSparseTile, 1),
      packing_(shape_, part_, columns, start) {
  const auto count = static_cast<int64_t>(columns.size());
  const int64_t some = std::ranges::count_if(packing_.rows, [](const SparseRow& row) { return row.entries > 0; });
  apart_ = count > kLong * shape_.out.channels || count >= kMany * some;
}

SparseConvStep::SparseConvStep(ConvShape shape, int64_t arena_floats, int64_t weights_at,
                               std::span<const int32_t> columns, std::span<const int64_t> start)
    : SparseConvStep(std::move(shape), arena_floats, columns, start) {
  weights_ = in_arena(weights_at, packing_.order.size(), arena_floats);
}

SparseConvStep::SparseConvStep(ConvShape shape, int64_t arena_floats, std::span<const float> values,
                               std::span<const int32_t> columns, std::span<const int64_t> start)
    : SparseConvStep(std::move(shape), arena_floats, columns, start) {
  require(values.size() == columns.size(), "the weights are no CSR matrix of one row per output channel");
  weights_ = own(values, std::exchange(packing_.order, {}));
}

void SparseConvStep::compute(const Kernels& kernels, const Place& p, int64_t begin, int64_t end) const {
  const auto count = static_cast<int64_t>(shape_.blocks.size()) - 1;
  for (int64_t b = 0; b < count; ++b) {
    const auto first = packing_.begin[b * parts() + begin], last = packing_.begin[b * parts() + end];
    kernels.sparse_conv({p.panel + packing_.lowest[b], p.out, p.residual, shape_.out.channel, shape_.residual.channel,
                         packing_.rows.data() + first.row, last.row - first.row, weights_.data(p.arena) + first.entry, packing_.places.data() + first.entry,
                         shape_.bias.data(), p.low, p.high, p.tile, b == 0, b + 1 == count, apart_});
  }
}

DenseConvStep::DenseConvStep(ConvShape shape, int64_t arena_floats, int64_t groups)
    : ConvStep(std::move(shape), arena_floats, kDenseTile, kDenseRows) {
  const auto& offsets = shape_.offsets;
  const auto depth = static_cast<int64_t>(offsets.size()), rows = shape_.out.channels;
  require(groups >= 1 && depth % groups == 0 && rows % groups == 0, "groups must divide operands and channels");
  const int64_t per_group = depth / groups, rows_per_group = rows / groups;
  lowest_ = *std::min_element(offsets.begin(), offsets.end());
  for (int64_t o : offsets) offsets_.push_back(static_cast<uint32_t>((o - lowest_) * sizeof(float)));
  const auto add = [&](int64_t channel, int64_t channels, int64_t begin, int64_t end) {
    const int64_t zero = channel / rows_per_group * per_group;  // the group's first operand
    blocks_.push_back({channel, channels, end - begin, begin, static_cast<int64_t>(order_.size()), begin == zero,
                       end == zero + per_group});
    for (int64_t c = 0; c < channels; c += kDenseRows)
      for (int64_t k = begin; k < end; ++k)
        for (int64_t r = 0; r < kDenseRows; ++r)
          order_.push_back(c + r < channels ? (channel + c + r) * per_group + k - zero : -1);
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
  few_ = shape_.out.height * static_cast<int64_t>(tiles_.size()) <= kFew;
}

DenseConvStep::DenseConvStep(ConvShape shape, int64_t arena_floats, std::span<const float> weights, int64_t groups)
    : DenseConvStep(std::move(shape), arena_floats, groups) {
  require(static_cast<int64_t>(weights.size()) == shape_.out.channels * static_cast<int64_t>(shape_.offsets.size()) / groups,
          "the weights are not [channels][operands]");
  weights_ = own(weights, std::exchange(order_, {}));
}

DenseConvStep::DenseConvStep(ConvShape shape, int64_t arena_floats, int64_t weights_at, int64_t groups)
    : DenseConvStep(std::move(shape), arena_floats, groups) {
  weights_ = in_arena(weights_at, order_.size(), arena_floats);
}

void DenseConvStep::compute(const Kernels& kernels, const Place& p, int64_t begin, int64_t end) const {
  for (int64_t b = block_of_[begin]; b < block_of_[end]; ++b) {
    const Block& block = blocks_[b];
    kernels.dense_conv({p.panel + lowest_, p.out + block.channel * shape_.out.channel,
                        p.residual ? p.residual + block.channel * shape_.residual.channel : nullptr, shape_.out.channel,
                        shape_.residual.channel, block.channels, block.depth, offsets_.data() + block.offset,
                        weights_.data(p.arena) + block.weight, shape_.bias.data() + block.channel, p.low, p.high, p.tile,
                        block.first, block.last, few_});
  }
}

}  // namespace budwood
