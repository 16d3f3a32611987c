#include "runtime/steps/elementwise.hpp"

#include <cstring>

#include "runtime/steps/checks.hpp"

namespace budwood {

ElementwiseStep::ElementwiseStep(Elementwise::Op op, Map a, Beside b, Map out, Activation activation,
                                 int64_t arena_floats, int64_t lanes)
    : op_(op), a_(a), b_(std::move(b)), out_(out), activation_(activation) {
  check(arena_floats, lanes);
  if (b_.kind == Beside::map && b_.map_.channels == 1) b_.map_.channel = 0;  // one channel's map for all
  if (b_.kind == Beside::gate)
    for (int64_t l = 0; l < lanes; ++l) lane_.push_back(static_cast<int32_t>(l / (lanes / b_.images) * b_.map_.group));
  if (lies_flat()) lay_flat();
  channel_parts_ = parts_of(out_.channels, out_.height * out_.width * out_.lanes);
  row_parts_ = channel_parts_ >= 16 ? 1 : parts_of(out_.height, out_.channels * out_.width * out_.lanes);
}

void ElementwiseStep::check(int64_t arena_floats, int64_t lanes) const {
  check_map(a_, arena_floats);
  check_map(out_, arena_floats);
  check_size(out_, arena_floats);
  check_holds(a_, out_, out_.channels, "the first operand is smaller than the output");
  const bool one = op_ == Elementwise::copy;
  require(one == (b_.kind == Beside::none) && (op_ == Elementwise::affine) == (b_.kind == Beside::per_channel),
          "the operands are not those of the operation");
  if (b_.kind == Beside::map) {
    check_map(b_.map_, arena_floats);
    check_holds(b_.map_, out_, b_.map_.channels == 1 ? 1 : out_.channels, "the second operand is smaller than the output");
  } else if (b_.kind == Beside::gate) {
    const Map& gate = b_.map_;
    check_map(gate, arena_floats);
    require(b_.images >= 1 && b_.images <= lanes && lanes % b_.images == 0 && (b_.images == 1 || out_.lanes == lanes),
            "the images of a gate must divide the lanes");
    require(gate.height == 1 && gate.width == 1 && gate.lanes == 1 && gate.channels >= out_.channels &&
                gate.groups % b_.images == 0,
            "a gate needs a number for each image and channel");
    require(b_.images == 1 || gate.group < (int64_t(1) << 31) / lanes, "a gate's images lie too far apart");
  } else if (b_.kind == Beside::per_channel) {
    require(static_cast<int64_t>(b_.numbers.size()) == 2 * out_.channels, "a scale and an offset are needed for every channel");
  }
}

// Plain vectors, channel beside channel.
bool ElementwiseStep::lies_flat() const {
  const auto flat = [](const Map& m) { return m.channel == 1 && m.width == 1 && m.lanes == 1; };
  return flat(a_) && flat(out_) && b_.kind != Beside::gate && (b_.kind != Beside::map || flat(b_.map_));
}

// The channels become the floats of one.
void ElementwiseStep::lay_flat() {
  flat_ = true;
  for (Map* m : {&a_, &b_.map_, &out_}) m->width = out_.channels, m->channels = 1, m->channel = 0;
}

void ElementwiseStep::run(const Run& run, int64_t group, int64_t item) const {
  const int64_t row_item = item / channel_parts_, channel_item = item % channel_parts_;
  const int64_t y = part(out_.height, row_parts_, row_item), y_end = part(out_.height, row_parts_, row_item + 1);
  const int64_t c = part(out_.channels, channel_parts_, channel_item), c_end = part(out_.channels, channel_parts_, channel_item + 1);
  const Bounds bounds = bounds_of(activation_);
  Elementwise e{op_, {Operand::map, a_.at(run.arena, group, y, c, 0), a_.row, a_.channel, nullptr}, {}, {},
                out_.at(run.arena, group, y, c, 0), out_.row, out_.channel, y_end - y, c_end - c,
                out_.width * out_.lanes, bounds.low, bounds.high};
  const Map& m = b_.map_;
  if (b_.kind == Beside::map) {
    e.b = {Operand::map, m.at(run.arena, group, y, c, 0), m.row, m.channel, nullptr};
  } else if (b_.kind == Beside::gate) {
    e.b = {b_.images == 1 ? Operand::number : Operand::by_lane, m.at(run.arena, group * b_.images, 0, c, 0), 0, m.channel,
           lane_.data()};
  } else if (b_.kind == Beside::per_channel) {
    const float* scale = b_.numbers.data();
    const Operand::Kind kind = flat_ ? Operand::map : Operand::number;
    e.b = {kind, scale + c, 0, 1, nullptr};
    e.d = {kind, scale + b_.numbers.size() / 2 + c, 0, 1, nullptr};
  }
  run.kernels->elementwise(e);
  if (bounds.all) return;
  for (int64_t row = y; row < y_end; ++row)
    run.kernels->activate({out_.at(run.arena, group, row, c, 0), out_.channel, c_end - c, e.floats, activation_});
}

CopyStep::CopyStep(Map from, Map out, std::vector<int64_t> channels, int64_t arena_floats)
    : from_(from), out_(out), channels_(std::move(channels)), parts_(1) {
  check_map(from_, arena_floats);
  check_map(out_, arena_floats);
  check_size(out_, arena_floats);
  check_holds(from_, out_, 1, "the source of a copy has another plane");
  require(static_cast<int64_t>(channels_.size()) == out_.channels, "a copy needs a source for every channel");
  for (int64_t c : channels_) require(c >= 0 && c < from_.channels, "a copy names no channel");
  parts_ = parts_of(out_.channels, out_.height * out_.width * out_.lanes);
}

void CopyStep::run(const Run& run, int64_t group, int64_t item) const {
  const size_t bytes = sizeof(float) * out_.width * out_.lanes;
  for (int64_t y = 0; y < out_.height; ++y)
    for (int64_t c = part(out_.channels, parts_, item); c < part(out_.channels, parts_, item + 1); ++c)
      std::memmove(out_.at(run.arena, group, y, c, 0), from_.at(run.arena, group, y, channels_[c], 0), bytes);
}

}  // namespace budwood
