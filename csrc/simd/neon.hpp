#pragma once

#include <arm_neon.h>

namespace budwood::neon {

using Vec = float32x4_t;
constexpr int kLanes = 4;

inline Vec broadcast(float x) { return vdupq_n_f32(x); }
inline Vec load(const float* from) { return vld1q_f32(from); }
inline void store(float* to, Vec v) { vst1q_f32(to, v); }
inline Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }

// NEON has no masked access: a tail goes through a full vector on the stack.
inline Vec load_first(const float* from, int n) {
  float lane[kLanes] = {};
  for (int i = 0; i < n; ++i) lane[i] = from[i];
  return load(lane);
}
inline void store_first(float* to, Vec v, int n) {
  float lane[kLanes];
  store(lane, v);
  for (int i = 0; i < n; ++i) to[i] = lane[i];
}

}  // namespace budwood::neon
