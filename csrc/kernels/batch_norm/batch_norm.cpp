#include "kernels/batch_norm/batch_norm.hpp"

#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {
namespace {

constexpr float kInfinity = __builtin_huge_valf();

struct Row {
  const Planes& planes;
  float* at;
  Row(const Planes& p, int64_t y, int64_t c) : planes(p), at(p.at + y * p.row + c * p.channel) {}
  Vec operator[](int64_t x) const { return load(at + x * kLanes); }
  void set(int64_t x, Vec v) const { store(at + x * kLanes, v); }
};

// What lies where the mask is 0 may be NaN, so it is not multiplied.
template <bool Masked>
struct Counted {
  const float* mask;
  Counted(const PlaneSizes& s, int64_t y) : mask(Masked ? s.mask + y * s.vectors * kLanes : nullptr) {}
  Vec operator()(int64_t x, Vec v) const {
    if constexpr (!Masked) return v;
    else return select(less(broadcast(0.0f), load(mask + x * kLanes)), v, broadcast(0.0f));
  }
};

// g of the header.
template <bool Clamped>
Vec passed(Vec gradient, const Row& out, int64_t x, Vec low, Vec high) {
  if constexpr (!Clamped) return gradient;
  const Vec y = out[x], zero = broadcast(0.0f);
  return select(less(low, y), select(less(y, high), gradient, zero), zero);
}

void add_to(float* sums, Vec first, Vec second) {
  store(sums, add(load(sums), first));
  store(sums + kLanes, add(load(sums + kLanes), second));
}

template <bool Masked>
void sums(const BatchSums& b) {
  const PlaneSizes& s = b.size;
  for (int64_t y = 0; y < s.rows; ++y) {
    const Counted<Masked> counted(s, y);
    for (int64_t c = 0; c < s.channels; ++c) {
      const Row from(b.from, y, c);
      const Vec shift = broadcast(b.shift[c]);
      Vec first = broadcast(0.0f), second = first;
      for (int64_t x = 0; x < s.vectors; ++x) {
        const Vec d = counted(x, sub(from[x], shift));
        first = add(first, d);
        second = fma(d, d, second);
      }
      add_to(b.sums + c * 2 * kLanes, first, second);
    }
  }
}

template <bool Masked, bool Residual>
void forward(const BatchNorm& b) {
  const PlaneSizes& s = b.size;
  const Vec low = broadcast(b.low), high = broadcast(b.high);
  for (int64_t y = 0; y < s.rows; ++y) {
    const Counted<Masked> counted(s, y);
    for (int64_t c = 0; c < s.channels; ++c) {
      const Row from(b.from, y, c), residual(b.residual, Residual ? y : 0, Residual ? c : 0), out(b.out, y, c);
      const Vec mean = broadcast(b.mean[c]), scale = broadcast(b.scale[c]), bias = broadcast(b.bias[c]);
      for (int64_t x = 0; x < s.vectors; ++x) {
        Vec v = fma(sub(from[x], mean), scale, bias);
        if constexpr (Residual) v = add(v, residual[x]);
        out.set(x, counted(x, min(high, max(low, v))));
      }
    }
  }
}

template <bool Masked, bool Clamped>
void gradient_sums(const BatchNormSums& b) {
  const PlaneSizes& s = b.size;
  const Vec low = broadcast(b.low), high = broadcast(b.high);
  const bool kept = b.g_to.at != nullptr;
  for (int64_t y = 0; y < s.rows; ++y) {
    const Counted<Masked> counted(s, y);
    for (int64_t c = 0; c < s.channels; ++c) {
      const Row from(b.from, y, c), out(b.out, y, c), gradient(b.gradient, y, c), to(kept ? b.g_to : b.from, y, c);
      const Vec mean = broadcast(b.mean[c]);
      Vec first = broadcast(0.0f), second = first;
      for (int64_t x = 0; x < s.vectors; ++x) {
        const Vec g = counted(x, passed<Clamped>(gradient[x], out, x, low, high));
        first = add(first, g);
        second = fma(g, counted(x, sub(from[x], mean)), second);
        if (kept) to.set(x, g);
      }
      add_to(b.sums + c * 2 * kLanes, first, second);
    }
  }
}

template <bool Masked>
void gradient_back(const BatchNormBack& b) {
  const PlaneSizes& s = b.size;
  for (int64_t y = 0; y < s.rows; ++y) {
    const Counted<Masked> counted(s, y);
    for (int64_t c = 0; c < s.channels; ++c) {
      const Row from(b.from, y, c), g(b.g, y, c), to(b.to, y, c);
      const Vec mean = broadcast(b.mean[c]), scale = broadcast(b.scale[c]), slope = broadcast(b.slope[c]),
                offset = broadcast(b.offset[c]);
      for (int64_t x = 0; x < s.vectors; ++x)
        to.set(x, counted(x, fma(sub(from[x], mean), slope, fma(g[x], scale, offset))));
    }
  }
}

bool clamped(float low, float high) { return low != -kInfinity || high != kInfinity; }

}  // namespace

void batch_sums(const BatchSums& b) { b.size.mask ? sums<true>(b) : sums<false>(b); }

void batch_norm(const BatchNorm& b) {
  if (b.residual.at) b.size.mask ? forward<true, true>(b) : forward<false, true>(b);
  else b.size.mask ? forward<true, false>(b) : forward<false, false>(b);
}

void batch_norm_sums(const BatchNormSums& b) {
  if (clamped(b.low, b.high)) b.size.mask ? gradient_sums<true, true>(b) : gradient_sums<false, true>(b);
  else b.size.mask ? gradient_sums<true, false>(b) : gradient_sums<false, false>(b);
}

void batch_norm_back(const BatchNormBack& b) { b.size.mask ? gradient_back<true>(b) : gradient_back<false>(b); }

void spread(const Spread& r) {
  const PlaneSizes& s = r.size;
  const Vec zero = broadcast(0.0f), factor = broadcast(r.factor);
  for (int64_t y = 0; y < s.rows; ++y) {
    const float* mask = s.mask ? s.mask + y * s.vectors * kLanes : nullptr;
    for (int64_t c = 0; c < s.channels; ++c) {
      const Row to(r.to, y, c);
      const Vec v = mul(factor, gather(r.from + c * r.from_channel, r.index, zero));
      for (int64_t x = 0; x < s.vectors; ++x)
        to.set(x, mask ? select(less(zero, load(mask + x * kLanes)), v, zero) : v);
    }
  }
}

}  // namespace budwood::BUDWOOD_ISA
