#include "kernels/global_average/global_average.hpp"

#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {
namespace {

// The sum of a row, then of the rows: neither is long. What the mask leaves out may be NaN, so it is not multiplied.
template <bool Masked>
Vec plane(const GlobalAverage& g, const float* from) {
  const Vec zero = broadcast(0.0f);
  Vec sum = zero;
  for (int64_t y = 0; y < g.rows; ++y) {
    const float* at = from + y * g.row;
    const float* mask = g.mask + y * g.vectors * kLanes;
    Vec part = zero;
    for (int64_t x = 0; x < g.vectors; ++x) {
      const Vec v = load(at + x * kLanes);
      part = add(part, Masked ? select(less(zero, load(mask + x * kLanes)), v, zero) : v);
    }
    sum = add(sum, part);
  }
  return sum;
}

}  // namespace

void global_average(const GlobalAverage& g) {
  const int64_t lanes = kLanes / g.images;
  for (int64_t c = 0; c < g.channels; ++c) {
    const float* from = g.from + c * g.channel;
    float lane[kLanes];
    store(lane, g.mask ? plane<true>(g, from) : plane<false>(g, from));
    for (int64_t i = 0; i < g.images; ++i) {
      double sum = 0;
      for (int64_t l = i * lanes; l < (i + 1) * lanes; ++l) sum += lane[l];
      g.to[i * g.to_image + c * g.to_channel] = static_cast<float>(sum / g.count);
    }
  }
}

}  // namespace budwood::BUDWOOD_ISA
