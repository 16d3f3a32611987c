#pragma once

#include <cstdint>

namespace budwood {

// One vector of the destination, of every channel alike.
struct Move {
  enum Kind : int32_t { copy, permute, merge, gather };
  int32_t kind;
  int32_t index;    // permute, merge, gather: number of its index vector
  int64_t to;       // floats from the channel's place in the destination
  int64_t from;     // copy, permute, merge: the source vector, in floats from the channel's place in the source
};

// to[c * to_channel + move.to + lane] = copy:    from[c * from_channel + move.from + lane]
//                                       permute: from[c * from_channel + move.from + index[lane]]
//                                       merge:   the same, in the lanes that have an index
//                                       gather:  from[c * from_channel + index[lane]]
// for c in [0, channels) and every move; `fill` where the index is negative, but for merge, which goes on with the
// vector of the move before it (several source vectors make one). Each index vector has kLanes entries.
// Source and destination may be the same tensor if no move reads what another one writes.
struct Repack {
  const float* from;
  float* to;
  int64_t from_channel, to_channel, channels;
  const Move* moves;
  int64_t count;
  const int32_t* index;
  float fill;
};

}  // namespace budwood
