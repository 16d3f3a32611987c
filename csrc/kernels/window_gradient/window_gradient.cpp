#include "kernels/window_gradient/window_gradient.hpp"

#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {
namespace {

// Sums of one row for N taps at a time: each vector of the gradient is loaded once for them.
template <int N>
void row_sums(const float* plane, const float* gradient, const int64_t* taps, int64_t width, float* sums) {
  Vec sum[N];
  for (int n = 0; n < N; ++n) sum[n] = broadcast(0.0f);
  for (int64_t x = 0; x < width * kLanes; x += kLanes) {
    const Vec g = load(gradient + x);
    for (int n = 0; n < N; ++n) sum[n] = fma(g, load(plane + taps[n] + x), sum[n]);
  }
  for (int n = 0; n < N; ++n) store(sums + n * kLanes, add(load(sums + n * kLanes), sum[n]));
}

}  // namespace

void max_pool_gradient(const MaxPoolGradient& p) {
  const Vec zero = broadcast(0.0f);
  for (int64_t y = 0; y < p.height; ++y)
    for (int64_t x = 0; x < p.width * kLanes; x += kLanes) {
      const float* plane = p.plane + y * p.row + x;
      float* to = p.plane_gradient + y * p.row + x;
      const Vec largest = load(p.out + y * p.out_row + x);
      Vec left = load(p.gradient + y * p.gradient_row + x);
      for (int64_t t = 0; t < p.count; ++t) {
        const Mask smaller = less(load(plane + p.taps[t]), largest);
        store(to + p.taps[t], add(load(to + p.taps[t]), select(smaller, zero, left)));
        left = select(smaller, left, zero);
      }
    }
}

void stencil_gradient(const StencilGradient& s) {
  for (int64_t y = 0; y < s.height; ++y) {
    const float* plane = s.plane + y * s.row;
    const float* gradient = s.gradient + y * s.gradient_row;
    int64_t t = 0;
    for (; t + 4 <= s.count; t += 4) row_sums<4>(plane, gradient, s.taps + t, s.width, s.sums + t * kLanes);
    for (; t < s.count; ++t) row_sums<1>(plane, gradient, s.taps + t, s.width, s.sums + t * kLanes);
    if (!s.plane_gradient) continue;
    for (t = 0; t < s.count; ++t) {
      const Vec weight = broadcast(s.weights[t]);
      float* to = s.plane_gradient + y * s.row + s.taps[t];
      for (int64_t x = 0; x < s.width * kLanes; x += kLanes) store(to + x, fma(weight, load(gradient + x), load(to + x)));
    }
  }
}

void put_back(const PutBack& b) {
  const PutBack::Pair* pair = b.pairs;
  for (const auto* end = pair + b.vectors; pair != end; ++pair)
    store(b.to + pair->to, add(load(b.to + pair->to), load(b.from + pair->from)));
  for (const auto* end = pair + b.floats; pair != end; ++pair) b.to[pair->to] += b.from[pair->from];
}

}  // namespace budwood::BUDWOOD_ISA
