#include "runtime/moves.hpp"

#include <algorithm>
#include <optional>

namespace budwood {
namespace {

bool none(const std::vector<int32_t>& index, int64_t vector, int64_t lanes) {
  const auto first = index.begin() + vector * lanes;
  return std::all_of(first, first + lanes, [](int32_t lane) { return lane < 0; });
}

MoveRun alone(const Move& m, const std::vector<int32_t>& index, int64_t lanes) {
  if (m.kind == Move::copy) return {MoveRun::copy, 0, 1, m.to, m.from, 0};
  if (m.kind != Move::merge && none(index, m.index, lanes)) return {MoveRun::fill, 0, 1, m.to, 0, 0};
  return {m.kind, m.index, 1, m.to, m.kind == Move::gather ? 0 : m.from, 0};
}

// Floats from where `run` began to `next`: of a gather, from every lane's pixel to its next one. None where they differ
// in more.
std::optional<int64_t> between(const MoveRun& run, const MoveRun& next, const std::vector<int32_t>& index, int64_t lanes) {
  if (run.kind != next.kind) return {};
  if (run.kind != MoveRun::gather) return run.index == next.index ? std::optional(next.from - run.from) : std::nullopt;
  const auto a = index.begin() + run.index * lanes, b = index.begin() + next.index * lanes;
  const int64_t there = std::find_if(a, a + lanes, [](int32_t lane) { return lane >= 0; }) - a;
  const int64_t distance = int64_t{b[there]} - a[there];
  const bool alike = std::equal(a, a + lanes, b, [&](int64_t x, int64_t y) { return x < 0 ? y < 0 : y >= 0 && y == x + distance; });
  return alike ? std::optional(distance) : std::nullopt;
}

// Whether `next` does to the next vector what `run` does to its last one.
bool goes_on(const MoveRun& run, const MoveRun& next, const std::vector<int32_t>& index, int64_t lanes) {
  const auto distance = between(run, next, index, lanes);
  return distance && next.to == run.to + run.count * lanes && (run.count == 1 || *distance == run.count * run.step);
}

}  // namespace

std::vector<MoveRun> runs_of(const std::vector<Move>& moves, const std::vector<int32_t>& index, int64_t lanes,
                             std::vector<int64_t>& row) {
  std::vector<MoveRun> runs;
  for (size_t r = 0; r + 1 < row.size(); ++r) {
    const auto begin = static_cast<int64_t>(runs.size());
    int64_t before = begin;  // the runs of the vectors before: one, and its merges
    for (int64_t m = row[r]; m < row[r + 1];) {
      const auto here = static_cast<int64_t>(runs.size());
      do runs.push_back(alone(moves[m], index, lanes));
      while (++m < row[r + 1] && moves[m].kind == Move::merge);
      if (!std::equal(runs.begin() + before, runs.begin() + here, runs.begin() + here, runs.end(),
                      [&](const MoveRun& a, const MoveRun& b) { return goes_on(a, b, index, lanes); })) {
        before = here;
        continue;
      }
      for (int64_t s = before, next = here; s < here; ++s, ++next) {
        if (runs[s].count++ == 1) runs[s].step = *between(runs[s], runs[next], index, lanes);
      }
      runs.resize(here);
    }
    row[r] = begin;
  }
  if (!row.empty()) row.back() = static_cast<int64_t>(runs.size());
  return runs;
}

}  // namespace budwood
