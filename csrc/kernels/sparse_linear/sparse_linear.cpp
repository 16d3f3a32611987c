#include "kernels/sparse_linear/sparse_linear.hpp"

#include "simd/math.hpp"

namespace budwood::BUDWOOD_ISA {
namespace {

constexpr int kSums = 4;  // independent sums, which hide the multiply-add's latency

Vec all_of(const Vec (&sum)[kSums]) { return add(add(sum[0], sum[1]), add(sum[2], sum[3])); }

// One image: the entries of a row side by side in the lanes, their inputs gathered.
void one_image(const SparseLinear& s, int64_t image) {
  const Vec zero = broadcast(0.0f);
  const float* x = s.x + image * s.x_image;
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
    const Vec all = broadcast(s.bias[m] + total(all_of(sum)));
    store_first(s.out + image * s.out_image + m, clamp(all, s.low, s.high), 1);
  }
}

// scratch[k][lane] = x[image + lane][k] for the first `count` lanes, 0 in the others.
void lay_side_by_side(const SparseLinear& s, int64_t image, int count) {
  int32_t index[kLanes];
  for (int l = 0; l < kLanes; ++l) index[l] = l < count ? static_cast<int32_t>(l * s.x_image) : -1;
  const float* x = s.x + image * s.x_image;
  for (int64_t k = 0; k < s.depth; ++k) store(s.scratch + k * kLanes, gather(x + k, index, broadcast(0.0f)));
}

// `count` <= kLanes images, one in each lane: an entry is one broadcast and one multiply-add for all of them.
void together(const SparseLinear& s, int64_t image, int count) {
  lay_side_by_side(s, image, count);
  for (int64_t m = 0; m < s.rows; ++m) {
    int64_t e = s.start[m] * kLanes, end = s.start[m + 1] * kLanes;
    while (end > e && s.index[end - 1] < 0) --end;
    const Vec zero = broadcast(0.0f);
    Vec sum[kSums] = {zero, zero, zero, zero};
    const auto next = [&](Vec so_far) {
      const Vec input = load(s.scratch + static_cast<int64_t>(s.index[e]) * kLanes);
      return fma(broadcast(s.values[e++]), input, so_far);
    };
    while (e + kSums <= end)
      for (int n = 0; n < kSums; ++n) sum[n] = next(sum[n]);
    for (int n = 0; e < end; ++n) sum[n] = next(sum[n]);
    float lane[kLanes];
    store(lane, clamp(add(broadcast(s.bias[m]), all_of(sum)), s.low, s.high));
    for (int l = 0; l < count; ++l) s.out[(image + l) * s.out_image + m] = lane[l];
  }
}

}  // namespace

void sparse_linear(const SparseLinear& s) {
  for (int64_t i = 0; i < s.images;) {
    const int count = s.images - i < kLanes ? static_cast<int>(s.images - i) : kLanes;
    if (count >= kSparseLinearTogether) together(s, i, count), i += count;
    else one_image(s, i++);
  }
}

}  // namespace budwood::BUDWOOD_ISA
