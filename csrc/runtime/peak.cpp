#include "runtime/peak.hpp"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <vector>

#include "runtime/thread_pool.hpp"

namespace budwood {

double peak(const InstructionSet& set, int threads, bool read, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kRounds = 20000;  // 0.03 to 0.1 ms
  const int64_t lanes = set.kernels.lanes;
  alignas(64) float factors[(kMultiplyAddSums + 3) * 16];  // a read that crosses a line would count twice
  std::fill(std::begin(factors), std::end(factors), 0.5f);
  const double flops = 2.0 * threads * kRounds * kMultiplyAddSums * static_cast<double>(lanes);
  const auto passed = [](Clock::time_point since) {
    return std::chrono::duration<double>(Clock::now() - since).count();
  };
  double best = 0;
  for (const auto start = Clock::now(); best == 0 || passed(start) < seconds;) {
    const auto begin = Clock::now();
    ThreadPool::instance().run(threads, threads, 1, [&](int64_t first, int64_t last) {
      std::vector<float> sums(kMultiplyAddSums * lanes);
      for (int64_t i = first; i < last; ++i) set.kernels.multiply_add({factors, sums.data(), kRounds, read});
    });
    best = std::max(best, flops / passed(begin) / 1e9);
  }
  return best;
}

}  // namespace budwood
