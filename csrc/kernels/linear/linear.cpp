#include "kernels/linear/linear.hpp"

#include "simd/math.hpp"

namespace budwood::BUDWOOD_ISA {
namespace {

// Products summed before their sum is added to the output: a single running sum over a long row would lose more
// digits than the blocked products it is compared with. About the square root of the row, so that neither the sum of
// a run nor that of the runs is long; and so few that a run of weights stays in the caches while the images pass by.
int64_t run_of(int64_t depth) {
  int64_t run = 64;
  while (run < 512 && run * run < depth) run += 32;
  return run;
}

// One image is bound by the reading of the weights: 8 independent sums hide the multiply-add's latency. For several
// images each loaded weight is used kImages times; kImages * kVectors sums, kVectors weights and one broadcast input
// fill the registers.
constexpr int kImages = 6;
constexpr int kVectors = kRegisters >= 32 ? 4 : 2;
constexpr int kAlone = 8;
constexpr int64_t kShort = 32, kLong = 1024;

struct Full {
  Vec load(const float* from) const { return BUDWOOD_ISA::load(from); }
  void store(float* to, Vec v) const { BUDWOOD_ISA::store(to, v); }
};
struct First {
  int count;
  Vec load(const float* from) const { return load_first(from, count); }
  void store(float* to, Vec v) const { store_first(to, v, count); }
};

// A run of k in [k, end), for I images from i on and V vectors of outputs from m on.
template <int I, int V, class Access>
void block(const Linear& l, int64_t i, int64_t m, int64_t k, int64_t end, Access access) {
  const float* x = l.x + i * l.x_image;
  float* out = l.out + i * l.out_image + m;
  const float* weights = l.weights + m * l.depth;
  Vec sum[I][V];
  for (int a = 0; a < I; ++a)
    for (int v = 0; v < V; ++v) sum[a][v] = broadcast(0.0f);
  const bool first = k == 0, last = end == l.depth;
  while (k < end) {
    // One image leaves registers for sums of sums, which cost nothing beside the reading of the weights.
    const int64_t stop = I == 1 && end - k > kShort ? k + kShort : end;
    Vec before[I][V];
    for (int a = 0; a < I; ++a)
      for (int v = 0; v < V; ++v) before[a][v] = sum[a][v], sum[a][v] = broadcast(0.0f);
    for (; k < stop; ++k) {
      Vec weight[V];
      for (int v = 0; v < V; ++v) weight[v] = load(weights + (v * l.depth + k) * kLanes);
      for (int a = 0; a < I; ++a) {
        const Vec input = broadcast(x[a * l.x_image + k]);
        for (int v = 0; v < V; ++v) sum[a][v] = fma(input, weight[v], sum[a][v]);
      }
    }
    for (int a = 0; a < I; ++a)
      for (int v = 0; v < V; ++v) sum[a][v] = add(before[a][v], sum[a][v]);
  }
  for (int a = 0; a < I; ++a)
    for (int v = 0; v < V; ++v) {
      float* to = out + a * l.out_image + v * kLanes;
      const Vec all = add(access.load(first ? l.bias + m + v * kLanes : to), sum[a][v]);
      access.store(to, last ? clamp(all, l.low, l.high) : all);
    }
}

// All k and all images for V vectors of outputs from m on.
template <int V, class Access>
void outputs(const Linear& l, int64_t m, Access access) {
  const int64_t run = run_of(l.depth);
  int64_t k = 0;
  do {
    const int64_t end = l.depth - k > run ? k + run : l.depth;
    int64_t i = 0;
    for (; i + kImages <= l.images; i += kImages) block<kImages, V>(l, i, m, k, end, access);
    switch (l.images - i) {
      case 5: block<5, V>(l, i, m, k, end, access); break;
      case 4: block<4, V>(l, i, m, k, end, access); break;
      case 3: block<3, V>(l, i, m, k, end, access); break;
      case 2: block<2, V>(l, i, m, k, end, access); break;
      case 1: block<1, V>(l, i, m, k, end, access); break;
    }
    k = end;
  } while (k < l.depth);
}

void alone(const Linear& l, int64_t m) {
  const int64_t run = kLong;
  int64_t k = 0;
  do {
    const int64_t end = l.depth - k > run ? k + run : l.depth;
    block<1, kAlone>(l, 0, m, k, end, Full{});
    k = end;
  } while (k < l.depth);
}

}  // namespace

void linear(const Linear& l) {
  int64_t m = 0;
  if (l.images == 1)
    for (; m + kAlone * kLanes <= l.outputs; m += kAlone * kLanes) alone(l, m);
  for (; m + kVectors * kLanes <= l.outputs; m += kVectors * kLanes) outputs<kVectors>(l, m, Full{});
  for (; m + kLanes <= l.outputs; m += kLanes) outputs<1>(l, m, Full{});
  if (m < l.outputs) outputs<1>(l, m, First{static_cast<int>(l.outputs - m)});
}

}  // namespace budwood::BUDWOOD_ISA
