#include "kernels/sparse_linear/sparse_linear.hpp"

#include "simd/math.hpp"

namespace budwood::BUDWOOD_ISA {

// The entries of a row side by side in the lanes, their inputs gathered. Four sums hide the multiply-add's latency.
void sparse_linear(const SparseLinear& s) {
  constexpr int kSums = 4;
  const Vec zero = broadcast(0.0f);
  for (int64_t i = 0; i < s.images; ++i) {
    const float* x = s.x + i * s.x_image;
    for (int64_t m = 0; m < s.rows; ++m) {
      Vec sum[kSums] = {zero, zero, zero, zero};
      int64_t v = s.start[m];
      const int64_t end = s.start[m + 1];
      const auto next = [&](Vec so_far) {
        const Vec input = gather(x, s.index + v * kLanes, zero);
        return fma(load(s.values + v++ * kLanes), input, so_far);
      };
      while (v + kSums <= end)
        for (int n = 0; n < kSums; ++n) sum[n] = next(sum[n]);
      for (int n = 0; v < end; ++n) sum[n] = next(sum[n]);
      const float all = s.bias[m] + total(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
      store_first(s.out + i * s.out_image + m, clamp(broadcast(all), s.low, s.high), 1);
    }
  }
}

}  // namespace budwood::BUDWOOD_ISA
