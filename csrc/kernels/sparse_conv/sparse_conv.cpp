#include "kernels/sparse_conv/sparse_conv.hpp"

#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);  // the first of four places is the lowest bits

enum class End { store, relu, clamp };  // what is done to a sum before it is stored

// The sums of one row live in T registers; each entry costs one broadcast and T fused multiply-adds whose second
// factor comes straight from the first-level cache, where the block's inputs stay while all rows pass by. Loads are
// what is scarce, so four places are read with one.
//
// The arguments are copies. Through a reference they would be read again after every store, which might have changed
// them for all the compiler knows.
template <int T, bool First, End end>
void rows(const SparseConv s) {
  const float* weight = s.weights;
  const uint16_t* place = s.places;
  const Vec low = broadcast(s.low), high = broadcast(s.high);
  for (const SparseRow *next = s.rows, *last = next + s.count; next != last; ++next) {
    const SparseRow row = *next;
    float* out = s.out + row.channel * s.out_channel;
    // What is there already: the sums of the blocks before, or bias and residual.
    const auto there = [&](int t) {
      if constexpr (!First) return load(out + t * kLanes);
      const Vec bias = broadcast(s.bias[row.channel]);
      return s.residual ? add(bias, load(s.residual + row.channel * s.residual_channel + t * kLanes)) : bias;
    };
    // Loaded ahead, so that nothing waits for it at the end, unless the registers would not do for both.
    constexpr bool kAhead = 2 * T < kRegisters;
    // Bias and residual are added to the first block's sum, not the other way round: a large number to begin with
    // would cost every product some of its digits.
    const bool apart = First || s.apart;
    Vec start[T], sum[T];
    for (int t = 0; t < T; ++t) {
      if (kAhead || !apart) start[t] = there(t);
      sum[t] = apart ? broadcast(0.0f) : start[t];
    }
    const auto entry = [&](float value, uint64_t at) {
      const Vec w = broadcast(value);
      const float* from = s.panel + at * kLanes;
      for (int t = 0; t < T; ++t) sum[t] = fma(w, load(from + t * kLanes), sum[t]);
    };
    int left = row.entries;
    for (; left >= 4; left -= 4, weight += 4, place += 4) {
      uint64_t four;
      __builtin_memcpy(&four, place, sizeof four);
      entry(weight[0], four & 0xffff);
      entry(weight[1], four >> 16 & 0xffff);
      entry(weight[2], four >> 32 & 0xffff);
      entry(weight[3], four >> 48);
    }
    for (; left > 0; --left) entry(*weight++, *place++);
    if (apart)
      for (int t = 0; t < T; ++t) sum[t] = add(kAhead ? start[t] : there(t), sum[t]);
    if constexpr (end != End::store)
      for (int t = 0; t < T; ++t) sum[t] = max(low, sum[t]);
    if constexpr (end == End::clamp)
      for (int t = 0; t < T; ++t) sum[t] = min(high, sum[t]);
    for (int t = 0; t < T; ++t) store(out + t * kLanes, sum[t]);
  }
}

template <int T, bool First>
void finish(const SparseConv& s) {
  constexpr float kInfinity = __builtin_inff();
  if (!s.last || (s.low == -kInfinity && s.high == kInfinity)) rows<T, First, End::store>(s);
  else if (s.high == kInfinity) rows<T, First, End::relu>(s);
  else rows<T, First, End::clamp>(s);
}

template <int T>
void tile(const SparseConv& s) {
  s.first ? finish<T, true>(s) : finish<T, false>(s);
}

}  // namespace

void sparse_conv(const SparseConv& s) {
  switch (s.tile) {
    case 1: return tile<1>(s);
    case 2: return tile<2>(s);
    case 3: return tile<3>(s);
    case 4: return tile<4>(s);
    case 5: return tile<5>(s);
    case 6: return tile<6>(s);
    case 7: return tile<7>(s);
    case 8: return tile<8>(s);
    case 9: return tile<9>(s);
    case 10: return tile<10>(s);
    case 11: return tile<11>(s);
    case 12: return tile<12>(s);
    case 13: return tile<13>(s);
    default: return tile<kSparseTile>(s);
  }
}

}  // namespace budwood::BUDWOOD_ISA
