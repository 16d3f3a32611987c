#pragma once

#include <cstdint>
#include <vector>

#include "kernels/repack/repack.hpp"
#include "runtime/plan.hpp"

namespace budwood {

// One vector of a destination, of every channel alike; the fields are those of MoveRun, a merge goes where the move
// before it goes.
struct Move {
  enum Kind : int32_t { copy = MoveRun::copy, permute = MoveRun::permute, merge = MoveRun::merge, gather = MoveRun::gather };
  int32_t kind, index;
  int64_t to, from;
};

// The same moves, those that do the same to vectors side by side in one. `row` are places in `moves` that no run
// reaches across, in order; they become places in the runs.
std::vector<MoveRun> runs_of(const std::vector<Move>& moves, const std::vector<int32_t>& index, int64_t lanes,
                             std::vector<int64_t>& row);

// Refuses moves that name no index vector or no lane, or that touch what readable(at, floats) and writable(at) deny.
template <class Readable, class Writable>
void check_moves(const std::vector<Move>& moves, const std::vector<int32_t>& index, int64_t lanes,
                 const Readable& readable, const Writable& writable) {
  require(index.size() % lanes == 0, "an index vector has one entry per lane");
  const int64_t vectors = static_cast<int64_t>(index.size()) / lanes;
  std::vector<bool> gathered(vectors, false);
  for (const Move& m : moves) {
    require(is_near(m.to) && is_near(m.from), "a move goes too far");
    require(writable(m.to), "a move writes outside its destination");
    if (m.kind != Move::gather) require(readable(m.from, lanes), "a move reads outside its source");
    if (m.kind == Move::merge) require(&m != moves.data() && m.to == (&m)[-1].to, "a merge goes on with the vector before it");
    if (m.kind == Move::copy) continue;
    require(m.index >= 0 && m.index < vectors, "a move names no index vector");
    if (m.kind == Move::gather) gathered[m.index] = true;
    else
      for (int64_t i = 0; i < lanes; ++i) require(index[m.index * lanes + i] < lanes, "a permutation names no lane");
  }
  for (int64_t v = 0; v < vectors; ++v)
    for (int64_t i = 0; gathered[v] && i < lanes; ++i) {
      const int32_t at = index[v * lanes + i];
      require(at < 0 || readable(at, 1), "a move reads outside its source");
    }
}

}  // namespace budwood
