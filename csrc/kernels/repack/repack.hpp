#pragma once

#include <cstdint>

namespace budwood {

// `count` vectors of the destination side by side, of every channel alike.
struct MoveRun {
  enum Kind : int32_t { copy, permute, merge, gather, fill };
  int32_t kind;
  int32_t index;  // permute, merge, gather: number of its index vector
  int64_t count;
  int64_t to;    // floats from the channel's place in the destination
  int64_t from;  // copy, permute, merge: the first source vector, in floats from the channel's place in the source
  int64_t step;  // and floats from one source vector to the next; gather: from a lane's pixel to its next one
};

// For c in [0, channels), every run in its order and i in [0, run.count):
//
// to[c * to_channel + run.to + i * kLanes + lane] = copy:    from[c * from_channel + run.from + i * run.step + lane]
//                                                   permute: from[c * from_channel + run.from + i * run.step + index[lane]]
//                                                   merge:   the same, in the lanes that have an index
//                                                   gather:  from[c * from_channel + i * run.step + index[lane]]
//                                                   fill:    fill
// and `fill` where the index is negative, but for merge, which leaves there what runs before it have made (several
// source vectors make one). Each index vector has kLanes entries.
// Source and destination may be the same tensor if no move reads what another one writes. Nothing is read beside the
// pixels that are named but what lies between those of one lane in one run.
struct Repack {
  const float* from;
  float* to;
  int64_t from_channel, to_channel, channels;
  const MoveRun* runs;
  int64_t count;
  const int32_t* index;
  float fill;
};

}  // namespace budwood
