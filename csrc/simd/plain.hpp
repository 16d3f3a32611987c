#pragma once

// The readable reference of what every file in this folder offers: a vector of kLanes floats and its operations.
namespace budwood::plain {

constexpr int kLanes = 4;
constexpr int kRegisters = 16;

struct Vec {
  float lane[kLanes];
};

inline Vec broadcast(float x) { return {{x, x, x, x}}; }

inline Vec load(const float* from) { return {{from[0], from[1], from[2], from[3]}}; }

inline Vec keep(Vec v) { return v; }  // a hint: v stays in its register

inline void store(float* to, Vec v) {
  for (int i = 0; i < kLanes; ++i) to[i] = v.lane[i];
}

// The first n < kLanes floats; the lanes after them are zero, and the memory after them is not read.
inline Vec load_first(const float* from, int n) {
  Vec v = broadcast(0);
  for (int i = 0; i < n; ++i) v.lane[i] = from[i];
  return v;
}

inline void store_first(float* to, Vec v, int n) {
  for (int i = 0; i < n; ++i) to[i] = v.lane[i];
}

inline Vec add(Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] += b.lane[i];
  return a;
}

// a * b + c. The sets that have the instruction round once, this one twice.
inline Vec fma(Vec a, Vec b, Vec c) {
  for (int i = 0; i < kLanes; ++i) c.lane[i] += a.lane[i] * b.lane[i];
  return c;
}

inline Vec sub(Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] -= b.lane[i];
  return a;
}
inline Vec mul(Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] *= b.lane[i];
  return a;
}
inline Vec div(Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] /= b.lane[i];
  return a;
}
// The larger (smaller) of the two; b where either is NaN, so NaN passes from b.
inline Vec max(Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) b.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return b;
}
inline Vec min(Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) b.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return b;
}

// Lane i is base[index[i]], or fill's lane i where index[i] < 0.
inline Vec gather(const float* base, const int* index, Vec fill) {
  for (int i = 0; i < kLanes; ++i)
    if (index[i] >= 0) fill.lane[i] = base[index[i]];
  return fill;
}
// For j in [0, kDealt), lane i of vector j is base[index[i] + j * step], or fill, the same in all lanes, where index[i] < 0; step 1 to
// kDealtStep.
constexpr int kDealt = 1, kDealtStep = 1;
inline void deal(const float* base, const int* index, int64_t, Vec fill, float* out) { store(out, gather(base, index, fill)); }
using Permutation = const int*;
inline Permutation permutation(const int* index) { return index; }
// Lane i is v's lane index[i], or fill's lane i where index[i] < 0.
inline Vec permute(Vec v, Permutation index, Vec fill) { return gather(v.lane, index, fill); }

inline Vec abs(Vec a) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] = __builtin_fabsf(a.lane[i]);
  return a;
}
inline Vec sqrt(Vec a) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] = __builtin_sqrtf(a.lane[i]);
  return a;
}
// The size of `size` with the sign of `sign`; `size` is not negative.
inline Vec with_sign(Vec size, Vec sign) {
  for (int i = 0; i < kLanes; ++i) size.lane[i] = __builtin_copysignf(size.lane[i], sign.lane[i]);
  return size;
}
// To the nearest whole number, half way to the even one; |a| < 2^22. The sum has no bits left for a fraction.
inline Vec round(Vec a) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] = (a.lane[i] + 0x1.8p23f) - 0x1.8p23f;
  return a;
}

struct Mask {
  bool lane[kLanes];
};
inline Mask less(Vec a, Vec b) {
  Mask mask;
  for (int i = 0; i < kLanes; ++i) mask.lane[i] = a.lane[i] < b.lane[i];
  return mask;
}
inline Mask is_nan(Vec a) {
  Mask mask;
  for (int i = 0; i < kLanes; ++i) mask.lane[i] = a.lane[i] != a.lane[i];
  return mask;
}
// Lane i is a's where the mask is set, else b's.
inline Vec select(Mask mask, Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) b.lane[i] = mask.lane[i] ? a.lane[i] : b.lane[i];
  return b;
}

// 2^n for whole n from -126 to 127. The sum's low bits hold n + 127, which belongs into the exponent's place.
inline Vec power_of_two(Vec n) {
  for (int i = 0; i < kLanes; ++i) {
    const float sum = n.lane[i] + (0x1.8p23f + 127);
    n.lane[i] = __builtin_bit_cast(float, __builtin_bit_cast(unsigned, sum) << 23);
  }
  return n;
}

// Lane i is the sum of the lanes of vector i; kLanes vectors follow each other. The order of a sum is the same in all.
inline Vec lane_sums(const float* vectors) {
  Vec sum;
  for (int i = 0; i < kLanes; ++i, vectors += kLanes) sum.lane[i] = (vectors[0] + vectors[1]) + (vectors[2] + vectors[3]);
  return sum;
}

}  // namespace budwood::plain
