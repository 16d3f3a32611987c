#include "kernels/conv_gradient/conv_gradient.hpp"

#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {
namespace {

// Entries whose vectors of products wait to be summed over their lanes together.
constexpr int kWaiting = 4 * kLanes;

// sums[i] += the sum of the lanes of waiting vector i, i in [0, count).
void sum_up(const float* waiting, int count, float* sums) {
  for (; count >= kLanes; count -= kLanes, waiting += kLanes * kLanes, sums += kLanes)
    store(sums, add(load(sums), lane_sums(waiting)));
  if (count > 0) store_first(sums, add(load_first(sums, count), lane_sums(waiting)), count);
}

// The gradients of one row live in T registers; each entry costs T fused multiply-adds whose second factor comes
// straight from the first-level cache, and its share of the sums over lanes, which are done for kLanes entries at once
// whichever row they are of. The arguments are copies, which no store can change, as in sparse_conv.
template <int T>
void rows(const ConvGradient s) {
  alignas(64) float waiting[kWaiting * kLanes] = {};
  int filled = 0;
  float* sums = s.sums;
  const uint16_t* place = s.places;
  for (const SparseRow *next = s.rows, *last = next + s.count; next != last; ++next) {
    const SparseRow row = *next;
    const float* gradient = s.gradient + row.channel * s.gradient_channel;
    Vec g[T];
    for (int t = 0; t < T; ++t) g[t] = load(gradient + t * kLanes);
    for (int left = row.entries; left > 0;) {
      const int now = left < kWaiting - filled ? left : kWaiting - filled;
      float* to = waiting + filled * kLanes;
      for (const uint16_t* stop = place + now; place != stop; ++place, to += kLanes) {
        const float* from = s.panel + static_cast<int64_t>(*place) * kLanes;
        Vec sum = mul(g[0], load(from));
        for (int t = 1; t < T; ++t) sum = fma(g[t], load(from + t * kLanes), sum);
        store(to, sum);
      }
      left -= now, filled += now;
      if (filled == kWaiting) {
        sum_up(waiting, kWaiting, sums);
        sums += kWaiting, filled = 0;
      }
    }
  }
  sum_up(waiting, filled, sums);
}

}  // namespace

void conv_gradient(const ConvGradient& s) {
  switch (s.tile) {
    case 1: return rows<1>(s);
    case 2: return rows<2>(s);
    case 3: return rows<3>(s);
    case 4: return rows<4>(s);
    case 5: return rows<5>(s);
    case 6: return rows<6>(s);
    case 7: return rows<7>(s);
    case 8: return rows<8>(s);
    case 9: return rows<9>(s);
    case 10: return rows<10>(s);
    case 11: return rows<11>(s);
    case 12: return rows<12>(s);
    case 13: return rows<13>(s);
    default: return rows<kSparseTile>(s);
  }
}

}  // namespace budwood::BUDWOOD_ISA
