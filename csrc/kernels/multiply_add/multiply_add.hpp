#pragma once

#include <cstdint>

namespace budwood {

// Multiply-adds and nothing else, to know what a core can do. kMultiplyAddSums vectors, from zero, become so many times
//
//   sum[i] = sum[i] * factor + factors[0]
//
// and go to `to`. The factor is in a register; or it is read, as the sparse kernel reads its panel: vector r % 4 + i of
// `factors` in round r.
constexpr int kMultiplyAddSums = 12;  // hide the latency of two units, and leave room in 16 registers

struct MultiplyAdd {
  const float* factors;  // [kMultiplyAddSums + 3][kLanes]
  float* to;             // [kMultiplyAddSums][kLanes]
  int64_t rounds;
  bool read;
};

}  // namespace budwood
