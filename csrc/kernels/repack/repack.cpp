#include "kernels/repack/repack.hpp"

#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {

void repack(const Repack& r) {
  const Vec fill = broadcast(r.fill);
  for (int64_t c = 0; c < r.channels; ++c) {
    const float* from = r.from + c * r.from_channel;
    float* to = r.to + c * r.to_channel;
    Vec v = fill;
    for (const Move *m = r.moves, *end = m + r.count; m != end; ++m) {
      const int32_t* index = r.index + static_cast<int64_t>(m->index) * kLanes;
      if (m->kind == Move::copy) v = load(from + m->from);
      else if (m->kind == Move::permute) v = permute(load(from + m->from), index, fill);
      else if (m->kind == Move::merge) v = permute(load(from + m->from), index, v);
      else v = gather(from, index, fill);
      store(to + m->to, v);
    }
  }
}

}  // namespace budwood::BUDWOOD_ISA
