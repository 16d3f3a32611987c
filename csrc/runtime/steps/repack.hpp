#pragma once

#include <cstdint>
#include <vector>

#include "runtime/plan.hpp"

namespace budwood {

// Where a plan's data come from and go to: the arena, or a caller's array [images][channels][pixels].
struct Outside {
  int64_t number;          // of the input or output
  int64_t image, channel;  // floats from one to the next
};

// Refuses moves that name no index vector or no lane, or that touch what readable(at, floats) and writable(at) deny.
template <class Readable, class Writable>
void check_moves(const std::vector<Move>& moves, const std::vector<int32_t>& index, int64_t lanes,
                 const Readable& readable, const Writable& writable) {
  require(index.size() % lanes == 0, "an index vector has one entry per lane");
  const int64_t vectors = static_cast<int64_t>(index.size()) / lanes;
  std::vector<bool> gathered(vectors, false);
  for (const Move& m : moves) {
    require(writable(m.to), "a move writes outside its destination");
    if (m.kind != Move::gather) require(readable(m.from, lanes), "a move reads outside its source");
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

// Moves pixels between two maps, of every channel alike: halos, other divisions of a plane into lanes, strides, and
// the way in from a caller's array. See kernels/repack.
class RepackStep : public Step {
 public:
  // `moves` in rows of the destination: those of row r are moves[row[r]] .. moves[row[r + 1] - 1]; `to` and `from` as
  // in kernels/repack, from the place of (group, y 0, channel c, x 0). Index vectors of `lanes` entries.
  RepackStep(Map from, Map to, std::vector<Move> moves, std::vector<int64_t> row, std::vector<int32_t> index,
             float fill, int64_t groups_of_source, int64_t arena_floats, int64_t lanes);
  // From input `outside.number`; a group takes `images` of them. Gathers and copies alike read `extent` floats of a channel at most.
  RepackStep(Outside from, int64_t images, Map to, std::vector<Move> moves, std::vector<int64_t> row,
             std::vector<int32_t> index, float fill, int64_t extent, int64_t arena_floats, int64_t lanes);

  int64_t items() const override;
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  void prepare(int64_t lanes, int64_t arena_floats);

  bool outside_ = false;
  Outside source_{};
  Map from_{}, to_;
  std::vector<Move> moves_;
  std::vector<int64_t> row_;
  std::vector<int32_t> index_;
  float fill_;
  int64_t groups_of_source_ = 1;  // a group of the destination is made from so many of the source
  int64_t images_ = 1, extent_ = 0;
  int64_t parts_ = 1;  // of the channels
};

// Brings plain vectors from a caller's array [images][channels] into the arena; the images of a group are the rows of
// `to`.
class VectorInputStep : public Step {
 public:
  VectorInputStep(int64_t number, Map to, int64_t arena_floats);
  int64_t items() const override { return 1; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  int64_t number_;
  Map to_;
};

// Gives plain vectors the form of a map of one pixel: that of image i of a group lies at floats at[i] from the place
// of (group, y 0, channel c, x 0).
class ExpandStep : public Step {
 public:
  ExpandStep(Map from, Map to, std::vector<int64_t> at, int64_t arena_floats);
  int64_t items() const override { return 1; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  Map from_, to_;
  std::vector<int64_t> at_;
};

// Writes a map to output `outside.number`: pixel p of image i of a group is at floats at[i * pixels + p] from the
// place of (group, y 0, channel c, x 0).
class OutputStep : public Step {
 public:
  OutputStep(Map from, Outside to, int64_t images, std::vector<int64_t> at, int64_t arena_floats);
  int64_t items() const override { return from_.channels; }
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  Map from_;
  Outside to_;
  int64_t images_, pixels_;
  std::vector<int64_t> at_;
};

}  // namespace budwood
