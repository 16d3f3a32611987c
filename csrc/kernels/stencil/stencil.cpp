#include "kernels/stencil/stencil.hpp"

#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {
namespace {

// N taps side by side for T outputs side by side: T + N - 1 vectors are loaded instead of T * N.
template <int T, int N>
void run(const float* from, const float* weight, Vec* sum) {
  Vec w[N];
  for (int n = 0; n < N; ++n) w[n] = broadcast(weight[n]);
#pragma GCC unroll 16
  for (int i = 0; i < T + N - 1; ++i) {
    const Vec x = keep(load(from + i * kLanes));
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
      if (i - n >= 0 && i - n < T) sum[i - n] = fma(w[n], x, sum[i - n]);
  }
}

template <int T>
void tile(const Stencil& s, int64_t y, int64_t x) {
  const float* from = s.plane + y * s.row + x * kLanes;
  const float* weight = s.weights;
  Vec sum[T];
  for (int t = 0; t < T; ++t) sum[t] = broadcast(s.bias);
  for (const TapRun *r = s.runs, *end = r + s.count; r != end; weight += r->taps, ++r) {
    const float* first = from + r->offset;
    switch (r->taps) {
      case 1: run<T, 1>(first, weight, sum); break;
      case 2: run<T, 2>(first, weight, sum); break;
      case 3: run<T, 3>(first, weight, sum); break;
      case 4: run<T, 4>(first, weight, sum); break;
      case 5: run<T, 5>(first, weight, sum); break;
      case 6: run<T, 6>(first, weight, sum); break;
      default: run<T, kTapRun>(first, weight, sum);
    }
  }
  const Vec low = broadcast(s.low), high = broadcast(s.high);
  float* out = s.out + y * s.out_row + x * kLanes;
  for (int t = 0; t < T; ++t) {
    if (s.residual) sum[t] = add(sum[t], load(s.residual + y * s.residual_row + (x + t) * kLanes));
    store(out + t * kLanes, min(high, max(low, sum[t])));
  }
}

}  // namespace

void stencil(const Stencil& s) {
  for (int64_t y = 0; y < s.height; ++y) {
    int64_t x = 0;
    for (; x + 7 <= s.width; x += 7) tile<7>(s, y, x);
    switch (s.width - x) {
      case 1: tile<1>(s, y, x); break;
      case 2: tile<2>(s, y, x); break;
      case 3: tile<3>(s, y, x); break;
      case 4: tile<4>(s, y, x); break;
      case 5: tile<5>(s, y, x); break;
      case 6: tile<6>(s, y, x); break;
      default: break;
    }
  }
}

}  // namespace budwood::BUDWOOD_ISA
