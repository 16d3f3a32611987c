#pragma once

#include <cstdint>
#include <vector>

#include "runtime/moves.hpp"

namespace budwood {

// Where a plan's data come from and go to: the arena, or a caller's array [images][channels][pixels].
struct Outside {
  int64_t number;          // of the input or output
  int64_t image, channel;  // floats from one to the next
};

// Moves pixels between two maps, of every channel alike: halos, other divisions of a plane into lanes, strides, and
// the way in from a caller's array. See kernels/repack.
class RepackStep : public Step {
 public:
  // `moves` in rows of the destination: those of row r are moves[row[r]] .. moves[row[r + 1] - 1]; `to` and `from` as
  // in kernels/repack, from the place of (group, y 0, channel c, x 0). Index vectors of `lanes` entries.
  RepackStep(Map from, Map to, const std::vector<Move>& moves, std::vector<int64_t> row, std::vector<int32_t> index,
             float fill, int64_t groups_of_source, int64_t arena_floats, int64_t lanes);
  // From input `outside.number`; a group takes `images` of them. Gathers and copies alike read `extent` floats of a channel at most.
  RepackStep(Outside from, int64_t images, Map to, const std::vector<Move>& moves, std::vector<int64_t> row,
             std::vector<int32_t> index, float fill, int64_t extent, int64_t arena_floats, int64_t lanes);

  int64_t items() const override;
  void run(const Run& run, int64_t group, int64_t item) const override;

 private:
  void prepare(const std::vector<Move>& moves, int64_t lanes, int64_t arena_floats);

  bool outside_ = false;
  Outside source_{};
  Map from_{}, to_;
  std::vector<MoveRun> runs_;
  std::vector<int64_t> row_;  // of the runs
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
