#include "kernels/softmax/softmax.hpp"

#include "simd/math.hpp"

namespace budwood::BUDWOOD_ISA {
namespace {

// f(i, n) for the places of a row's vectors; n < kLanes at its end.
template <class F>
void each(int64_t count, F f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, kLanes);
  if (i < count) f(i, static_cast<int>(count - i));
}

Vec part(const float* from, int n, float rest) {
  return n == kLanes ? load(from) : first_of(load_first(from, n), n, broadcast(rest));
}

void put(float* to, Vec v, int n) { n == kLanes ? store(to, v) : store_first(to, v, n); }

}  // namespace

// A NaN that max() drops makes the sum NaN, and with it every output.
void softmax(const Softmax& s) {
  Vec large = broadcast(-__builtin_inff());
  each(s.count, [&](int64_t i, int n) { large = max(large, part(s.from + i, n, -__builtin_inff())); });
  float lane[kLanes], largest = -__builtin_inff();
  store(lane, large);
  for (int l = 0; l < kLanes; ++l) largest = lane[l] > largest ? lane[l] : largest;
  Vec sum = broadcast(0.0f);
  each(s.count, [&](int64_t i, int n) {
    const Vec power = exp(sub(part(s.from + i, n, -__builtin_inff()), broadcast(largest)));
    sum = add(sum, n == kLanes ? power : first_of(power, n, broadcast(0.0f)));
    put(s.out + i, power, n);
  });
  const Vec whole = broadcast(total(sum));
  each(s.count, [&](int64_t i, int n) { put(s.out + i, div(part(s.out + i, n, 0.0f), whole), n); });
}

}  // namespace budwood::BUDWOOD_ISA
