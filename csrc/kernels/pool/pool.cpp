#include "kernels/pool/pool.hpp"

#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {
namespace {

// max() passes a NaN of its second argument only.
Vec larger(Vec a, Vec b) { return select(is_nan(a), a, max(a, b)); }

template <int T, bool Largest>
void channels(const Pool& p) {
  for (int64_t c = 0; c < p.channels; ++c) {
    const float* from[T];
    for (int t = 0; t < T; ++t) from[t] = p.operand + p.operand_at[t] + c * p.operand_channel;
    Vec sum[T];
    for (int t = 0; t < T; ++t) sum[t] = load(from[t] + p.taps[0]);
    for (const int64_t *tap = p.taps + 1, *end = p.taps + p.count; tap < end; ++tap)
      for (int t = 0; t < T; ++t) {
        const Vec x = load(from[t] + *tap);
        sum[t] = Largest ? larger(sum[t], x) : add(sum[t], x);
      }
    for (int t = 0; t < T; ++t) {
      if (!Largest) sum[t] = mul(sum[t], p.table ? load(p.table + p.table_at[t]) : broadcast(p.factor));
      store(p.out + p.out_at[t] + c * p.out_channel, sum[t]);
    }
  }
}

template <int T>
void tile(const Pool& p) {
  p.largest ? channels<T, true>(p) : channels<T, false>(p);
}

}  // namespace

void pool(const Pool& p) {
  switch (p.tile) {
    case 1: return tile<1>(p);
    case 2: return tile<2>(p);
    case 3: return tile<3>(p);
    case 4: return tile<4>(p);
    case 5: return tile<5>(p);
    case 6: return tile<6>(p);
    case 7: return tile<7>(p);
    default: return tile<kPoolTile>(p);
  }
}

}  // namespace budwood::BUDWOOD_ISA
