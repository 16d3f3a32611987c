#include "kernels/multiply_add/multiply_add.hpp"

#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {
namespace {

template <bool Read>
void rounds(const MultiplyAdd& m) {
  Vec sum[kMultiplyAddSums];
  for (int i = 0; i < kMultiplyAddSums; ++i) sum[i] = broadcast(0.0f);
  const Vec factor = load(m.factors), plus = broadcast(m.factors[0]);
  for (int64_t r = 0; r < m.rounds; ++r) {
    const float* from = m.factors + r % 4 * kLanes;  // changes, or the compiler would read before the loop
    for (int i = 0; i < kMultiplyAddSums; ++i) sum[i] = fma(sum[i], Read ? load(from + i * kLanes) : factor, plus);
  }
  for (int i = 0; i < kMultiplyAddSums; ++i) store(m.to + i * kLanes, sum[i]);
}

}  // namespace

void multiply_add(const MultiplyAdd& m) { m.read ? rounds<true>(m) : rounds<false>(m); }

}  // namespace budwood::BUDWOOD_ISA
