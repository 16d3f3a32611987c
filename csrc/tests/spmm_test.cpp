// Every kernel of this build against a double sum, with canaries around the output. Needs no Python, so that it
// also runs under an emulator: see run_aarch64.sh.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "runtime/instruction_sets.hpp"

namespace {

constexpr float kCanary = 12345.0f;
constexpr int kGuard = 64;  // floats on each side

struct Problem {
  int64_t rows, depth, width;
  std::vector<float> values, bias, panel;
  std::vector<int32_t> columns, row_start{0};
};

Problem make(int64_t rows, int64_t depth, int64_t width, double density, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::bernoulli_distribution kept(density);
  Problem q{rows, depth, width, {}, {}, {}, {}};
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k = 0; k < depth; ++k)
      if (kept(random)) q.columns.push_back(static_cast<int32_t>(k)), q.values.push_back(normal(random));
    q.row_start.push_back(static_cast<int32_t>(q.values.size()));
    q.bias.push_back(normal(random));
  }
  for (int64_t i = 0; i < depth * width; ++i) q.panel.push_back(normal(random));
  return q;
}

// The standard bound of a sum of n products: n units in the last place of the sum of magnitudes.
bool close(const Problem& q, int64_t m, int64_t p, float got) {
  double sum = q.bias[m], magnitude = std::fabs(q.bias[m]);
  for (int32_t e = q.row_start[m]; e < q.row_start[m + 1]; ++e) {
    const double term = double(q.values[e]) * q.panel[q.columns[e] * q.width + p];
    sum += term, magnitude += std::fabs(term);
  }
  return std::fabs(sum - got) <= (q.row_start[m + 1] - q.row_start[m] + 1) * 0x1p-24 * magnitude;
}

bool holds(const budwood::InstructionSet& set, const Problem& q) {
  std::vector<float> out(q.rows * q.width + 2 * kGuard, kCanary);
  set.kernels.spmm({q.rows, q.width, q.values.data(), q.columns.data(), q.row_start.data(), q.bias.data(), q.panel.data(),
            out.data() + kGuard});
  for (int i = 0; i < kGuard; ++i)
    if (out[i] != kCanary || out[out.size() - 1 - i] != kCanary) return false;
  for (int64_t m = 0; m < q.rows; ++m)
    for (int64_t p = 0; p < q.width; ++p)
      if (!close(q, m, p, out[kGuard + m * q.width + p])) return false;
  return true;
}

}  // namespace

int main() {
  int failures = 0;
  for (const auto& set : budwood::instruction_sets()) {
    if (!set.available()) continue;
    std::mt19937 random(1);
    int problems = 0;
    for (int64_t width = 0; width <= 200; width += width < 70 ? 1 : 13)
      for (double density : {0.0, 0.1, 1.0})
        for (int64_t depth : {1, 9, 40}) {
          ++problems;
          if (holds(set, make(5, depth, width, density, random))) continue;
          std::printf("%s: wrong at depth %d, width %d, density %.1f\n", set.name, int(depth), int(width), density);
          ++failures;
        }
    std::printf("%s: %d problems\n", set.name, problems);
  }
  std::printf(failures ? "%d FAILED\n" : "all passed\n", failures);
  return failures != 0;
}
