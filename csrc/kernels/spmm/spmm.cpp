// Compiled once per instruction set, so it must include nothing of the standard library that the linker could
// share between them (an inline function built for AVX-512 would then run on a machine without it).
#include "kernels/spmm/spmm.hpp"

#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {
namespace {

// Vectors of outputs kept in registers for one pass over a row. More hide the latency of the FMA (4 cycles, two
// a cycle) and share each broadcast weight; with their totals, 6 are what the 16 registers of AVX2 hold.
constexpr int kTile = 6;

// Entries summed before their sum is added to the total. One running sum over a long row would lose more digits
// than the blocked dense products it is compared with; the extra add is one in 64.
constexpr int32_t kRun = 64;

// How memory is touched: whole vectors, or the first `count` < kLanes floats of one.
struct Full {
  Vec load(const float* from) const { return BUDWOOD_ISA::load(from); }
  void store(float* to, Vec v) const { BUDWOOD_ISA::store(to, v); }
};
struct First {
  int count;
  Vec load(const float* from) const { return load_first(from, count); }
  void store(float* to, Vec v) const { store_first(to, v, count); }
};

// All rows, for the T vectors of outputs that begin at column p.
template <int T, class Access>
void columns_block(const Spmm& s, int64_t p, Access access) {
  const float* panel = s.panel + p;
  float* out = s.out + p;
  for (int64_t m = 0; m < s.rows; ++m) {
    Vec total[T];
    for (int t = 0; t < T; ++t) total[t] = broadcast(s.bias[m]);
    const int32_t end = s.row_start[m + 1];
    for (int32_t e = s.row_start[m]; e < end;) {
      const int32_t stop = end - e > kRun ? e + kRun : end;
      Vec sum[T];
      for (int t = 0; t < T; ++t) sum[t] = broadcast(0.0f);
      for (; e < stop; ++e) {
        const Vec weight = broadcast(s.values[e]);
        const float* row = panel + s.columns[e] * s.width;
        for (int t = 0; t < T; ++t) sum[t] = fma(weight, access.load(row + t * kLanes), sum[t]);
      }
      for (int t = 0; t < T; ++t) total[t] = add(total[t], sum[t]);
    }
    for (int t = 0; t < T; ++t) access.store(out + m * s.width + t * kLanes, total[t]);
  }
}

}  // namespace

void spmm(const Spmm& s) {
  int64_t p = 0;
  for (; p + kTile * kLanes <= s.width; p += kTile * kLanes) columns_block<kTile>(s, p, Full{});
  for (; p + kLanes <= s.width; p += kLanes) columns_block<1>(s, p, Full{});
  if (p < s.width) columns_block<1>(s, p, First{static_cast<int>(s.width - p)});
}

}  // namespace budwood::BUDWOOD_ISA
