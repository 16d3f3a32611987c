// Convolutions with weights in the arena and their gradient, on every instruction set of this machine: the kernel and
// the steps against the same sums in double, the same bits from any number of threads, and steps from random numbers
// that are refused or stay inside their memory (see plan_test.cpp).
#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>

#include "runtime/plan.hpp"
#include "runtime/steps/training_conv.hpp"
#include "testing.hpp"

namespace budwood::testing {
namespace {

// ---- the kernel

// Entries of each row: around the vectors that are summed over their lanes together, and none.
std::vector<std::vector<int32_t>> entries_of_rows(int64_t lanes) {
  const auto L = static_cast<int32_t>(lanes);
  return {{}, {0}, {1}, {L - 1}, {L}, {L + 1}, {4 * L}, {4 * L + 1}, {0, 3, 0, 4 * L - 2, 2}, {9 * L + 3}, {2 * L, 2 * L, 5}};
}

void test_kernel(const Kernels& k, Random& random, int tile, const std::vector<int32_t>& entries, bool special) {
  const int64_t L = k.lanes, places = 40, pitch = tile * L + 3;
  const auto channels = static_cast<int64_t>(entries.size());
  auto panel = random.floats((places + tile) * L), gradient = random.floats(std::max<int64_t>(channels, 1) * pitch);
  if (special) panel[(places - 1) * L] = kNan, gradient[0] = kInf;
  std::vector<SparseRow> rows;
  std::vector<uint16_t> place;
  for (int64_t m = channels - 1; m >= 0; --m) {
    rows.push_back({static_cast<int32_t>(m), entries[m]});
    for (int32_t e = 0; e < entries[m]; ++e) place.push_back(static_cast<uint16_t>(random.below(places)));
  }
  const auto before = random.floats(static_cast<int64_t>(place.size()));
  Target sums(static_cast<int64_t>(place.size()));
  std::copy(before.begin(), before.end(), sums.data());
  k.conv_gradient({panel.data(), gradient.data(), pitch, rows.data(), static_cast<int64_t>(rows.size()), place.data(), sums.data(), tile});
  int64_t at = 0;
  const auto what = label("conv_gradient", {tile, channels, static_cast<int64_t>(place.size()), special});
  for (const SparseRow& row : rows)
    for (int32_t e = 0; e < row.entries; ++e, ++at) {
      Sum sum;
      sum.add(before[at]);
      for (int64_t i = 0; i < tile * L; ++i) sum.add(double(gradient[row.channel * pitch + i]) * panel[place[at] * L + i]);
      sums.expect(at, sum.value, sum.bound(), what);
    }
  sums.finish(what);
}

// ---- the step

// Maps of a 3 x 3 convolution whose input stands in the arena with its halo.
struct Layer {
  Layer(const Kernels& k, int64_t groups, int64_t height, int64_t width, int64_t inputs, int64_t outputs, double density)
      : lanes(k.lanes) {
    Random random(static_cast<unsigned>(7 + height + width + outputs));
    const int64_t channel = (width + 2) * lanes, row = inputs * channel, group = (height + 2) * row;
    operand = {row + lanes, group, row, channel, groups, height, inputs, width, lanes, 1, 1};
    floats = groups * group;
    gradient = {floats, height * outputs * width * lanes, outputs * width * lanes, width * lanes, groups, height, outputs, width, lanes, 0, 0};
    floats += groups * gradient.group;
    for (int64_t c = 0; c < inputs; ++c)
      for (int64_t dy = -1; dy <= 1; ++dy)
        for (int64_t dx = -1; dx <= 1; ++dx) offsets.push_back(c * channel + dy * row + dx * lanes);
    start.push_back(0);
    for (int64_t m = 0; m < outputs; ++m) {
      for (int32_t e = 0; e < static_cast<int32_t>(offsets.size()); ++e)
        if (m != 1 && random.chance(density)) columns.push_back(e);
      start.push_back(static_cast<int64_t>(columns.size()));
    }
    weights_at = floats, floats += static_cast<int64_t>(columns.size());
  }

  ConvShape shape(std::vector<int64_t> blocks, int64_t widest) const {
    ConvShape s{};
    s.operand = operand, s.out = gradient, s.offsets = offsets, s.widest = widest, s.blocks = std::move(blocks), s.lanes = lanes;
    s.bias.assign(gradient.channels, 0.0f);
    return s;
  }

  int64_t lanes, floats = 0, weights_at;
  Map operand, gradient;
  std::vector<int64_t> offsets, start;
  std::vector<int32_t> columns;
};

std::vector<float> run_gradient(const Kernels& k, const Layer& layer, const ConvShape& shape, const std::vector<float>& memory, int threads) {
  Plan plan(k, layer.floats);
  plan.segment(1);
  plan.add(std::make_unique<ConvGradientStep>(shape, 0, layer.floats, layer.columns, layer.start));
  plan.order({{0, 0}});
  auto arena = plan.take_arena();
  std::copy(memory.begin(), memory.end(), arena->data);
  std::vector<float> out(layer.columns.size(), kCanary);
  float* to = out.data();
  plan.run_turns(*arena, 0, 1, nullptr, &to, threads);
  plan.keep_arena(std::move(arena));
  return out;
}

void test_step(const Kernels& k, Random& random) {
  for (const auto& [groups, height, width, inputs, outputs] : {std::array<int64_t, 5>{1, 1, 1, 1, 2}, {3, 4, 15, 5, 20}, {2, 3, 7, 12, 40}}) {
    const Layer layer(k, groups, height, width, inputs, outputs, 0.4);
    const auto memory = random.floats(layer.floats);
    const int64_t depth = inputs * 9;
    for (const auto& blocks : {std::vector<int64_t>{0, depth}, {0, 9 * (inputs / 2), 9 * (inputs / 2), depth}}) {
      const auto shape = layer.shape(blocks, 14);
      const auto out = run_gradient(k, layer, shape, memory, 1);
      for (int threads : {2, 3, 5})
        if (const auto other = run_gradient(k, layer, shape, memory, threads); other.size() != out.size() || std::memcmp(out.data(), other.data(), out.size() * sizeof(float)) != 0)
          fail(label("conv_gradient: other bits from other threads", {threads, outputs}));
      for (int64_t m = 0; m < outputs; ++m)
        for (int64_t e = layer.start[m]; e < layer.start[m + 1]; ++e) {
          Sum sum;
          for (int64_t g = 0; g < groups; ++g)
            for (int64_t y = 0; y < height; ++y)
              for (int64_t i = 0; i < width * layer.lanes; ++i)
                sum.add(double(layer.gradient.at(memory.data(), g, y, m, 0)[i]) * layer.operand.at(memory.data(), g, y, 0, 0)[layer.offsets[layer.columns[e]] + i]);
          if (!(std::fabs(out[e] - sum.value) <= sum.bound())) fail(label("ConvGradientStep", {outputs, m, e}));
        }
    }
  }
}

// Weights that are packed into the arena give the bits of weights that the step holds itself.
template <class Own, class Packed>
void test_packed(const Kernels& k, const Layer& layer, const std::vector<float>& values, Own own, Packed packed, const char* what) {
  Random random(2);
  const auto memory = random.floats(layer.weights_at);
  const int64_t floats = layer.floats + 1000 * layer.lanes;
  std::vector<float> results[2];
  for (int which = 0; which < 2; ++which) {
    Plan plan(k, floats);
    plan.segment(1);
    const float* in = values.data();
    if (which == 0) {
      plan.add(own(floats));
    } else {
      auto step = packed(floats);
      plan.add(std::make_unique<PackStep>(0, layer.weights_at, step->order(), static_cast<int64_t>(values.size()), floats));
      plan.add(std::move(step));
    }
    plan.order({{0, 0}});
    auto arena = plan.take_arena();
    std::copy(memory.begin(), memory.end(), arena->data);
    plan.run_turns(*arena, 0, 1, &in, nullptr, 1 + which);
    results[which].assign(arena->data, arena->data + layer.weights_at);
    plan.keep_arena(std::move(arena));
  }
  if (std::memcmp(results[0].data(), results[1].data(), results[0].size() * sizeof(float)) != 0) fail(what);
  if (std::memcmp(results[0].data(), memory.data(), results[0].size() * sizeof(float)) == 0) fail(std::string(what) + ": nothing was computed");
}

void test_packed(const Kernels& k, Random& random) {
  const Layer layer(k, 1, 3, 7, 4, 20, 0.4);
  const auto shape = layer.shape({0, 9, 36}, 14);
  const auto values = random.floats(static_cast<int64_t>(layer.columns.size()));
  test_packed(k, layer, values,
              [&](int64_t floats) { return std::make_unique<SparseConvStep>(shape, floats, values, layer.columns, layer.start); },
              [&](int64_t floats) { return std::make_unique<SparseConvStep>(shape, floats, layer.weights_at, layer.columns, layer.start); },
              "sparse weights in the arena");
  const auto all = random.floats(20 * 36);
  test_packed(k, layer, all, [&](int64_t floats) { return std::make_unique<DenseConvStep>(shape, floats, all, 1); },
              [&](int64_t floats) { return std::make_unique<DenseConvStep>(shape, floats, layer.weights_at, 1); },
              "dense weights in the arena");
}

// ---- steps from random numbers

int test_random(const Kernels& k, Random& random) {
  constexpr int64_t kFloats = 4000, kNumbers = 12;
  const std::vector<float> input = random.floats(kNumbers);
  int made = 0;
  for (int n = 0; n < 20000; ++n) {
    const int64_t L = k.lanes, edges[] = {0, 1, -1, L, kFloats, kFloats - L, int64_t(1) << 39, -L, INT64_MAX, INT64_MIN};
    const auto wild = [&](int64_t usual, double p = 0.03) { return random.chance(p) ? edges[random.below(10)] : usual; };
    const int64_t height = 1 + random.below(3), width = 1 + random.below(4), outputs = 1 + random.below(4);
    const auto map = [&](int64_t channels) {
      return Map{wild(300 + random.below(300)), wild(random.below(300)), wild(random.below(8) * 32), wild(random.below(5) * 16), wild(1 + random.below(3)),
                 wild(height), wild(channels), wild(width), wild(L, 0.01), random.below(2), random.below(2)};
    };
    ConvShape shape{};
    shape.operand = map(3), shape.out = map(outputs), shape.lanes = L, shape.widest = wild(1 + random.below(15));
    for (int i = 0; i < 5; ++i) shape.offsets.push_back(wild((random.below(7) - 3) * L, 0.01));
    shape.blocks = {0, wild(random.below(6), 0.01), 5};
    shape.bias.assign(outputs, 0.0f);
    std::vector<int64_t> start{0};
    std::vector<int32_t> columns;
    for (int64_t m = 0; m < outputs; ++m) {
      for (int32_t e = 0; e < 5 && columns.size() < kNumbers; ++e)
        if (random.chance(0.4)) columns.push_back(random.chance(0.005) ? 5 : e);
      start.push_back(wild(static_cast<int64_t>(columns.size()), 0.01));
    }
    const int64_t at = wild(random.below(kFloats), 0.1);
    std::unique_ptr<Step> step;
    try {
      switch (random.below(4)) {
        case 0: step = std::make_unique<ConvGradientStep>(shape, 0, kFloats, columns, start); break;
        case 1: step = std::make_unique<SparseConvStep>(shape, kFloats, at, columns, start); break;
        case 2: step = std::make_unique<DenseConvStep>(shape, kFloats, at, 1); break;
        default: step = std::make_unique<PackStep>(0, at, std::vector<int64_t>{wild(random.below(kNumbers)), -1, random.below(kNumbers + 1)}, kNumbers, kFloats);
      }
    } catch (const PlanError&) {
      continue;
    }
    ++made;
    const std::unique_ptr<float[]> arena(new float[kFloats]()), out(new float[columns.size()]);
    const float* in = input.data();
    float* to = out.get();
    for (int64_t group : {0, 1, 5}) step->run_range({&k, arena.get(), &in, &to}, group, 0, step->items());
  }
  return made;
}

void test(const InstructionSet& set) {
  const int before = failures;
  Random random(1);
  for (int tile = 1; tile <= kSparseTile; ++tile)
    for (const auto& entries : entries_of_rows(set.kernels.lanes))
      for (bool special : {false, true}) test_kernel(set.kernels, random, tile, entries, special);
  test_step(set.kernels, random);
  test_packed(set.kernels, random);
  const int made = test_random(set.kernels, random);
  if (made < 1000) fail("hardly any random step was possible");
  std::printf("%s: %s, %d of 20000 random steps were possible\n", set.name, failures == before ? "passed" : "FAILED", made);
}

}  // namespace
}  // namespace budwood::testing

int main() { return budwood::testing::on_every_set("training_conv_test", budwood::testing::test); }
