#include "runtime/steps/repack.hpp"

#include <algorithm>

namespace budwood {
namespace {

// Few enough items that each is worth a thread's while, enough for the threads to share evenly.
int64_t parts_of(int64_t channels, int64_t rows) {
  return std::clamp<int64_t>(std::min(channels / 4, std::max<int64_t>(16 / rows, 2)), 1, 16);
}

}  // namespace

RepackStep::RepackStep(Map from, Map to, const std::vector<Move>& moves, std::vector<int64_t> row, std::vector<int32_t> index,
                       float fill, int64_t groups_of_source, int64_t arena_floats, int64_t lanes)
    : from_(from), to_(to), row_(std::move(row)), index_(std::move(index)), fill_(fill),
      groups_of_source_(groups_of_source), parts_(1) {
  check_map(from_, arena_floats);
  require(from_.channels >= to_.channels, "a repack needs as many channels in its source");
  require(groups_of_source_ >= 1 && from_.groups % groups_of_source_ == 0, "a repack needs more groups in its source");
  prepare(moves, lanes, arena_floats);
}

RepackStep::RepackStep(Outside from, int64_t images, Map to, const std::vector<Move>& moves, std::vector<int64_t> row,
                       std::vector<int32_t> index, float fill, int64_t extent, int64_t arena_floats, int64_t lanes)
    : outside_(true), source_(from), to_(to), row_(std::move(row)), index_(std::move(index)),
      fill_(fill), images_(images), extent_(extent), parts_(1) {
  prepare(moves, lanes, arena_floats);
}

void RepackStep::prepare(const std::vector<Move>& moves, int64_t lanes, int64_t arena_floats) {
  check_map(to_, arena_floats);
  require(row_.size() >= 1 && row_.front() == 0 && row_.back() == static_cast<int64_t>(moves.size()) &&
              std::is_sorted(row_.begin(), row_.end()),
          "the rows of a repack must cover its moves");
  for (size_t r = 0; r + 1 < row_.size(); ++r)  // its vector would be another item's, which may be made at the same time
    require(row_[r] == row_[r + 1] || moves[row_[r]].kind != Move::merge, "a row of a repack begins with a merge");
  parts_ = parts_of(to_.channels, std::max<int64_t>(static_cast<int64_t>(row_.size()) - 1, 1));
  // What one channel of one group may touch, seen from its place at (y 0, x 0).
  const auto inside = [&](int64_t at, const Map& m, int64_t last_group, int64_t width) {
    const int64_t first = m.offset + at;
    const int64_t last = first + width + last_group * m.group + (to_.channels - 1) * m.channel;
    return first >= 0 && last <= arena_floats;
  };
  const auto readable = [&](int64_t at, int64_t width) {
    return outside_ ? at >= 0 && at + width <= extent_
                    : inside(at, from_, from_.groups - groups_of_source_, width);
  };
  check_moves(moves, index_, lanes, readable, [&](int64_t at) { return inside(at, to_, to_.groups - 1, lanes); });
  runs_ = runs_of(moves, index_, lanes, row_);
}

int64_t RepackStep::items() const { return static_cast<int64_t>(row_.size() - 1) * parts_; }

void RepackStep::run(const Run& run, int64_t group, int64_t item) const {
  const int64_t r = item / parts_, part = item % parts_;
  const int64_t c = to_.channels * part / parts_, end = to_.channels * (part + 1) / parts_;
  const float* from = outside_ ? run.inputs[source_.number] + group * images_ * source_.image + c * source_.channel
                               : from_.at(run.arena, group * groups_of_source_, 0, c, 0);
  run.kernels->repack({from, to_.at(run.arena, group, 0, c, 0), outside_ ? source_.channel : from_.channel, to_.channel,
                       end - c, runs_.data() + row_[r], row_[r + 1] - row_[r], index_.data(), fill_});
}

VectorInputStep::VectorInputStep(int64_t number, Map to, int64_t arena_floats) : number_(number), to_(to) {
  check_map(to_, arena_floats);
}

void VectorInputStep::run(const Run& run, int64_t group, int64_t) const {
  const float* from = run.inputs[number_] + group * to_.height * to_.channels;
  for (int64_t i = 0; i < to_.height; ++i, from += to_.channels)
    std::copy(from, from + to_.channels, to_.at(run.arena, group, i, 0, 0));
}

ExpandStep::ExpandStep(Map from, Map to, std::vector<int64_t> at, int64_t arena_floats)
    : from_(from), to_(to), at_(std::move(at)) {
  check_map(from_, arena_floats);
  check_map(to_, arena_floats);
  require(static_cast<int64_t>(at_.size()) == from_.height && from_.channels >= to_.channels, "a vector does not fit its map");
  const int64_t span = (to_.groups - 1) * to_.group + (to_.channels - 1) * to_.channel;
  for (int64_t a : at_) require(is_near(a) && to_.offset + a >= 0 && to_.offset + a + span < arena_floats, "a vector lands outside the arena");
}

void ExpandStep::run(const Run& run, int64_t group, int64_t) const {
  for (size_t i = 0; i < at_.size(); ++i)
    for (int64_t c = 0; c < to_.channels; ++c)
      to_.at(run.arena, group, 0, c, 0)[at_[i]] = *from_.at(run.arena, group, static_cast<int64_t>(i), c, 0);
}

OutputStep::OutputStep(Map from, Outside to, int64_t images, std::vector<int64_t> at, int64_t arena_floats)
    : from_(from), to_(to), images_(images), pixels_(static_cast<int64_t>(at.size()) / std::max<int64_t>(images, 1)),
      at_(std::move(at)) {
  check_map(from_, arena_floats);
  require(images >= 1 && at_.size() % images == 0, "an output needs a place for each pixel of each image");
  const int64_t span = (from_.groups - 1) * from_.group + (from_.channels - 1) * from_.channel;
  for (int64_t a : at_) require(is_near(a) && from_.offset + a >= 0 && from_.offset + a + span < arena_floats, "an output reads outside the arena");
}

void OutputStep::run(const Run& run, int64_t group, int64_t item) const {
  const float* from = from_.at(run.arena, group, 0, item, 0);
  for (int64_t i = 0; i < images_; ++i) {
    float* to = run.outputs[to_.number] + (group * images_ + i) * to_.image + item * to_.channel;
    const int64_t* at = at_.data() + i * pixels_;
    for (int64_t p = 0; p < pixels_; ++p) to[p] = from[at[p]];
  }
}

}  // namespace budwood
