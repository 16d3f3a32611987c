#include "kernels/layer_norm/layer_norm.hpp"

#include "simd/math.hpp"

namespace budwood::BUDWOOD_ISA {
namespace {

// Terms summed before their sum is added to the total, so that a long row of channels loses no digits.
constexpr int64_t kRun = 64;

// total[t] = sum over channels of term(vector t of the channel).
template <int T, class Term>
void sum_of_channels(const LayerNorm& n, const float* from, Vec (&total)[T], Term term) {
  for (int t = 0; t < T; ++t) total[t] = broadcast(0.0f);
  for (int64_t c = 0; c < n.channels;) {
    Vec part[T];
    for (int t = 0; t < T; ++t) part[t] = broadcast(0.0f);
    for (const int64_t end = n.channels - c > kRun ? c + kRun : n.channels; c < end; ++c)
      for (int t = 0; t < T; ++t) part[t] = term(part[t], load(from + c * n.from_channel + t * kLanes), t);
    for (int t = 0; t < T; ++t) total[t] = add(total[t], part[t]);
  }
}

// A first mean rounds by more than the deviation may be, so it only serves to shift: what is left of it is found with
// the variance, by differences that are small, var(x) = mean(d^2) - mean(d)^2 with d = x - first mean.
template <int T>
void tile(const LayerNorm& n, int64_t vector) {
  const float* from = n.from + vector * kLanes;
  float* out = n.out + vector * kLanes;
  const Vec count = broadcast(static_cast<float>(n.channels)), eps = broadcast(n.eps);
  Vec mean[T], rest[T], factor[T];
  sum_of_channels<T>(n, from, mean, [](Vec sum, Vec x, int) { return add(sum, x); });
  for (int t = 0; t < T; ++t) mean[t] = div(mean[t], count);
  sum_of_channels<T>(n, from, rest, [&](Vec sum, Vec x, int t) { return add(sum, sub(x, mean[t])); });
  sum_of_channels<T>(n, from, factor, [&](Vec sum, Vec x, int t) {
    const Vec d = sub(x, mean[t]);
    return fma(d, d, sum);
  });
  for (int t = 0; t < T; ++t) {
    rest[t] = div(rest[t], count);
    const Vec variance = max(broadcast(0.0f), sub(div(factor[t], count), mul(rest[t], rest[t])));
    factor[t] = div(broadcast(1.0f), sqrt(add(variance, eps)));
  }
  for (int64_t c = 0; c < n.channels; ++c) {
    const Vec scale = broadcast(n.scale[c]), offset = broadcast(n.offset[c]);
    for (int t = 0; t < T; ++t) {
      const Vec x = sub(sub(load(from + c * n.from_channel + t * kLanes), mean[t]), rest[t]);
      store(out + c * n.out_channel + t * kLanes, fma(mul(x, factor[t]), scale, offset));
    }
  }
}

// The sum over a row of `count` floats of term(vector); what lies beyond the row's end counts as `beyond`.
template <class Term>
float sum_of_row(const float* from, int64_t count, float beyond, Term term) {
  Vec sum[2] = {broadcast(0.0f), broadcast(0.0f)};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    sum[0] = term(sum[0], load(from + i));
    sum[1] = term(sum[1], load(from + i + kLanes));
  }
  for (; i < count; i += kLanes) {
    const int n = static_cast<int>(count - i);
    sum[0] = term(sum[0], n >= kLanes ? load(from + i) : first_of(load_first(from + i, n), n, broadcast(beyond)));
  }
  return budwood::BUDWOOD_ISA::total(add(sum[0], sum[1]));
}

}  // namespace

void layer_norm(const LayerNorm& n) {
  int64_t v = 0;
  for (; v + 4 <= n.vectors; v += 4) tile<4>(n, v);
  for (; v < n.vectors; ++v) tile<1>(n, v);
}

void layer_norm_vector(const LayerNormVector& n) {
  const float count = static_cast<float>(n.channels);
  const float mean = sum_of_row(n.from, n.channels, 0.0f, [](Vec sum, Vec x) { return add(sum, x); }) / count;
  const float rest = sum_of_row(n.from, n.channels, mean, [=](Vec sum, Vec x) { return add(sum, sub(x, broadcast(mean))); }) / count;
  const float squares = sum_of_row(n.from, n.channels, mean, [=](Vec sum, Vec x) {
    const Vec d = sub(x, broadcast(mean));
    return fma(d, d, sum);
  });
  const float left = squares / count - rest * rest;
  const float factor = 1.0f / __builtin_sqrtf((left < 0 ? 0 : left) + n.eps);
  const auto of = [=](Vec x, Vec scale, Vec offset) {
    return fma(mul(sub(sub(x, broadcast(mean)), broadcast(rest)), broadcast(factor)), scale, offset);
  };
  int64_t i = 0;
  for (; i + kLanes <= n.channels; i += kLanes)
    store(n.out + i, of(load(n.from + i), load(n.scale + i), load(n.offset + i)));
  if (const int last = static_cast<int>(n.channels - i))
    store_first(n.out + i, of(load_first(n.from + i, last), load_first(n.scale + i, last), load_first(n.offset + i, last)), last);
}

}  // namespace budwood::BUDWOOD_ISA
