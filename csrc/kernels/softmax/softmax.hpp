#pragma once

#include <cstdint>

namespace budwood {

// out[i] = e^(from[i] - largest) / sum over j of e^(from[j] - largest), i in [0, count). out may be from itself.
struct Softmax {
  const float* from;
  float* out;
  int64_t count;
};

}  // namespace budwood
