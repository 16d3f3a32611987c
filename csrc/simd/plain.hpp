#pragma once

// The readable reference of what every file in this folder offers: a vector of kLanes floats and seven operations.
namespace budwood::plain {

constexpr int kLanes = 4;

struct Vec {
  float lane[kLanes];
};

inline Vec broadcast(float x) { return {{x, x, x, x}}; }

inline Vec load(const float* from) { return {{from[0], from[1], from[2], from[3]}}; }

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

}  // namespace budwood::plain
