#include "kernels/depthwise/depthwise.hpp"

#include "simd/math.hpp"

namespace budwood::BUDWOOD_ISA {
namespace {

// T sums in registers hide the latency of the multiply-add and share each broadcast weight. A tile may span rows, so
// that a narrow map fills it too. Bias and residual are added last: a large number to begin with would cost every
// product some of its digits.
template <int T>
void channels(const Depthwise& d) {
  for (int64_t c = d.first; c < d.first + d.channels; ++c) {
    Vec sum[T];
    for (int t = 0; t < T; ++t) sum[t] = broadcast(0.0f);
    const char* from[T];
    for (int t = 0; t < T; ++t)
      from[t] = reinterpret_cast<const char*>(d.operand + d.operand_at[t] + c / d.multiplier * d.operand_channel);
    for (const Entry *e = d.entries + d.start[c], *end = d.entries + d.start[c + 1]; e != end; ++e) {
      const Vec weight = broadcast(e->weight);
      for (int t = 0; t < T; ++t)
        sum[t] = fma(weight, load(reinterpret_cast<const float*>(from[t] + e->offset)), sum[t]);
    }
    for (int t = 0; t < T; ++t) sum[t] = add(sum[t], broadcast(d.bias[c]));
    if (d.residual)
      for (int t = 0; t < T; ++t)
        sum[t] = add(sum[t], load(d.residual + d.residual_at[t] + c * d.residual_channel));
    for (int t = 0; t < T; ++t) store(d.out + d.out_at[t] + c * d.out_channel, clamp(sum[t], d.low, d.high));
  }
}

}  // namespace

void depthwise(const Depthwise& d) {
  switch (d.tile) {
    case 1: return channels<1>(d);
    case 2: return channels<2>(d);
    case 3: return channels<3>(d);
    case 4: return channels<4>(d);
    case 5: return channels<5>(d);
    case 6: return channels<6>(d);
    case 7: return channels<7>(d);
    default: return channels<kDepthwiseTile>(d);
  }
}

}  // namespace budwood::BUDWOOD_ISA
