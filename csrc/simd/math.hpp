#pragma once

// Elementary functions of a vector, for the instruction set being compiled. Coefficients: coefficients.py.
#include BUDWOOD_SIMD

namespace budwood::BUDWOOD_ISA {

// c[0] + c[1] x + ... by Horner's rule.
template <int N>
inline Vec polynomial(Vec x, const float (&c)[N]) {
  Vec sum = broadcast(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) sum = fma(sum, x, broadcast(c[i]));
  return sum;
}

inline Vec clamp(Vec x, float low, float high) { return min(broadcast(high), max(broadcast(low), x)); }

// e^x = 2^n e^r with n = round(x / ln 2), so |r| <= ln 2 / 2. Within 2 units in the last place; infinity from 88.73
// on, 0 below -104.
inline Vec exp(Vec x) {
  constexpr float kRest[] = {0.5000000013f, 0.1666666668f, 0.04166646494f, 0.008333310928f, 0.001393364786f, 0.0001989098846f};
  x = clamp(x, -104.0f, 89.0f);  // bounds whose results are 0 and infinity, and whose 2^(n / 2) is a number
  const Vec n = round(mul(x, broadcast(1.44269504f)));
  // ln 2 in two parts, the first of so few bits that its product with n is exact.
  Vec r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  const Vec power = fma(mul(r, r), polynomial(r, kRest), add(r, broadcast(1.0f)));
  // 2^n may lie outside the exponents of a float while the result does not: half of it at a time.
  const Vec half = round(mul(n, broadcast(0.5f)));
  return mul(mul(power, power_of_two(half)), power_of_two(sub(n, half)));
}

inline Vec sigmoid(Vec x) { return div(broadcast(1.0f), add(broadcast(1.0f), exp(sub(broadcast(0.0f), x)))); }

// |x| < 0.625: x + x^3 p(x^2); beyond, 1 - 2 / (e^(2 |x|) + 1) with the sign of x.
inline Vec tanh(Vec x) {
  constexpr float kRest[] = {-0.3333332894f, 0.1333276974f, -0.05385090958f, 0.020997179f, -0.006096714166f};
  const Vec size = abs(x), square = mul(x, x), one = broadcast(1.0f);
  const Vec small = fma(mul(x, square), polynomial(square, kRest), x);
  const Vec large = sub(one, div(broadcast(2.0f), add(exp(add(size, size)), one)));
  return select(less(size, broadcast(0.625f)), small, with_sign(large, x));
}

// |x| < 1: x p(x^2); beyond, 1 - e^p(|x|) with the sign of x; 1 from 4 on.
inline Vec erf(Vec x) {
  constexpr float kRatio[] = {1.128379166f, -0.3761262667f, 0.1128359472f, -0.02685421201f, 0.005189087423f, -0.0008016864287f, 7.875875063e-5f};
  constexpr float kLogOfRest[] = {0.0003201380497f, -1.130233435f, -0.6318260516f, -0.1100800829f, 0.02642113601f,
                                  -0.004759596293f, 0.0005968056257f, -4.605804269e-5f, 1.637151415e-6f};
  const Vec size = min(broadcast(4.0f), abs(x));
  const Vec small = mul(x, polynomial(mul(x, x), kRatio));
  const Vec large = sub(broadcast(1.0f), exp(polynomial(size, kLogOfRest)));
  return select(less(size, broadcast(1.0f)), small, with_sign(large, x));
}

// The first n lanes of v, and the others of `rest`.
inline Vec first_of(Vec v, int n, Vec rest) {
  alignas(64) constexpr float kNumber[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return select(less(load(kNumber), broadcast(static_cast<float>(n))), v, rest);
}

// The sum of the lanes, in pairs.
inline float total(Vec v) {
  float lane[kLanes];
  store(lane, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

}  // namespace budwood::BUDWOOD_ISA
