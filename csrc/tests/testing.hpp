#pragma once

// What the native tests share: random numbers, outputs with canaries, a count of failures.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "runtime/instruction_sets.hpp"

// Which sanitizer is at work: GCC defines names, older Clangs answer a question.
#ifdef __has_feature
#define BUDWOOD_HAS(feature) __has_feature(feature)
#else
#define BUDWOOD_HAS(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || BUDWOOD_HAS(address_sanitizer)
#define BUDWOOD_ADDRESS_SANITIZER 1
#else
#define BUDWOOD_ADDRESS_SANITIZER 0
#endif
#if defined(__SANITIZE_THREAD__) || BUDWOOD_HAS(thread_sanitizer)
#define BUDWOOD_THREAD_SANITIZER 1
#else
#define BUDWOOD_THREAD_SANITIZER 0
#endif

namespace budwood::testing {

constexpr float kCanary = 12345.0f;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kEps = 0x1p-24;  // half a unit in the last place of 1

inline int failures = 0;

inline void fail(const std::string& what) {
  if (++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

// What was tried, with the numbers that tell one case from another.
inline std::string label(const char* what, std::initializer_list<int64_t> numbers) {
  std::string s = what;
  for (int64_t n : numbers) s.append(1, ' ').append(std::to_string(n));
  return s;
}

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  float normal() { return normal_(engine_); }
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  bool chance(double p) { return std::bernoulli_distribution(p)(engine_); }
  std::vector<float> floats(int64_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = normal();
    return v;
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

// A sum in double, with the magnitude that bounds the error of the same sum in float.
struct Sum {
  double value = 0, magnitude = 0;
  int64_t terms = 0;
  void add(double x) { value += x, magnitude += std::fabs(x), ++terms; }
  double bound() const { return (static_cast<double>(terms) + 2) * kEps * magnitude; }
};

// Memory that a kernel writes to: canaries on both sides and wherever it must not write.
class Target {
 public:
  explicit Target(int64_t floats) : data_(floats + 2 * kGuard, kCanary), expected_(data_.size(), false) {}
  float* data() { return data_.data() + kGuard; }

  // Position `at` must have been written, with `value` within `bound`; NaN for NaN.
  void expect(int64_t at, double value, double bound, const std::string& what) {
    const float got = data()[at];
    expected_[at + kGuard] = true;
    const bool good = std::isnan(value) ? std::isnan(got)
                      : std::isinf(value) || std::isinf(static_cast<float>(value)) ? got == static_cast<float>(value)
                                                                                   : std::fabs(got - value) <= bound;
    if (!good) fail(what + ": " + std::to_string(got) + " at " + std::to_string(at) + ", not " + std::to_string(value));
  }

  // Nothing else may have been written.
  void finish(const std::string& what) const {
    for (size_t i = 0; i < data_.size(); ++i)
      if (!expected_[i] && data_[i] != kCanary) return fail(what + ": wrote outside its output");
  }

 private:
  static constexpr int64_t kGuard = 64;
  std::vector<float> data_;
  std::vector<bool> expected_;
};

inline double clamp(double x, double low, double high) {
  return std::isnan(x) ? x : std::fmin(high, std::fmax(low, x));
}

inline int finish(const char* name) {
  std::printf(failures ? "%s: %d FAILED\n" : "%s: all passed\n", name, failures);
  return failures != 0;
}

// A test on every instruction set of this machine.
inline int on_every_set(const char* name, void (*test)(const InstructionSet&)) {
  for (const auto& set : instruction_sets())
    if (set.available()) test(set);
  return finish(name);
}

}  // namespace budwood::testing
