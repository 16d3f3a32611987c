#include "kernels/dense_conv/dense_conv.hpp"

#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {
namespace {

constexpr int kAhead = 1024;  // floats

// Three rows share each loaded vector of inputs: (T + 3) loads for 3 T fused multiply-adds.
template <int T, bool Ahead>
void rows(const DenseConv& d) {
  constexpr int R = kDenseRows;
  const char* panel = reinterpret_cast<const char*>(d.panel);
  const Vec low = broadcast(d.low), high = broadcast(d.high);
  const float* weight = d.weights;
  for (int64_t channel = 0; channel < d.channels; channel += R) {
    const int live = d.channels - channel < R ? static_cast<int>(d.channels - channel) : R;
    Vec sum[R][T];
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) sum[r][t] = broadcast(0.0f);
    for (int64_t k = 0; k < d.depth; ++k, weight += R) {
      const float* from = reinterpret_cast<const float*>(panel + d.offsets[k]);
      Vec w[R];
      for (int r = 0; r < R; ++r) w[r] = broadcast(weight[r]);
      if constexpr (Ahead) __builtin_prefetch(weight + kAhead);
      for (int t = 0; t < T; ++t) {
        const Vec x = keep(load(from + t * kLanes));
        for (int r = 0; r < R; ++r) sum[r][t] = fma(w[r], x, sum[r][t]);
      }
    }
    // A block is summed by itself: one running sum over a whole row would lose more digits.
    for (int r = 0; r < live; ++r)
      for (int t = 0; t < T; ++t) {
        float* out = d.out + (channel + r) * d.out_channel + t * kLanes;
        Vec v = sum[r][t];
        if (d.first) {
          v = add(v, broadcast(d.bias[channel + r]));
          if (d.residual) v = add(v, load(d.residual + (channel + r) * d.residual_channel + t * kLanes));
        } else {
          v = add(v, load(out));
        }
        store(out, d.last ? min(high, max(low, v)) : v);
      }
  }
}

template <int T>
void tile(const DenseConv& d) {
  d.ahead ? rows<T, true>(d) : rows<T, false>(d);
}

}  // namespace

void dense_conv(const DenseConv& d) {
  constexpr int kWidest = kRegisters >= 32 ? kDenseTile : 4;  // tiles whose sums stay in registers
  if (d.tile > kWidest) {
    const int half = (d.tile + 1) / 2;
    DenseConv part = d;
    part.tile = half;
    dense_conv(part);
    part.tile = d.tile - half;
    part.panel += half * kLanes;
    part.out += half * kLanes;
    if (part.residual) part.residual += half * kLanes;
    return dense_conv(part);
  }
  switch (d.tile) {
    case 1: return tile<1>(d);
    case 2: return tile<2>(d);
    case 3: return tile<3>(d);
    case 4: return tile<4>(d);
    case 5: return tile<5>(d);
    case 6: return tile<6>(d);
    case 7: return tile<7>(d);
    default: return tile<kDenseTile>(d);
  }
}

}  // namespace budwood::BUDWOOD_ISA
