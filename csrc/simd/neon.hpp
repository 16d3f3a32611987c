#pragma once

#include <arm_neon.h>

namespace budwood::neon {

using Vec = float32x4_t;
constexpr int kLanes = 4;
constexpr int kRegisters = 32;

inline Vec broadcast(float x) { return vdupq_n_f32(x); }
inline Vec load(const float* from) { return vld1q_f32(from); }
// Keeps the compiler from loading v again at each of its uses: the loads are what is scarce.
inline Vec keep(Vec v) {
  asm("" : "+w"(v));
  return v;
}
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

inline Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
inline Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
inline Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
// The larger (smaller) of the two; b where either is NaN, so NaN passes from b.
inline Vec max(Vec a, Vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline Vec min(Vec a, Vec b) { return vbslq_f32(vcltq_f32(a, b), a, b); }

// Lane i is base[index[i]], or fill's lane i where index[i] < 0.
inline Vec gather(const float* base, const int* index, Vec fill) {
  float lane[kLanes];
  store(lane, fill);
  for (int i = 0; i < kLanes; ++i)
    if (index[i] >= 0) lane[i] = base[index[i]];
  return load(lane);
}
// For j in [0, kDealt), lane i of vector j is base[index[i] + j * step], or fill, the same in all lanes, where index[i] < 0; step 1 to
// kDealtStep.
constexpr int kDealt = 1, kDealtStep = 1;
inline void deal(const float* base, const int* index, int64_t, Vec fill, float* out) { store(out, gather(base, index, fill)); }
using Permutation = const int*;
inline Permutation permutation(const int* index) { return index; }
// Lane i is v's lane index[i], or fill's lane i where index[i] < 0.
inline Vec permute(Vec v, Permutation index, Vec fill) {
  float lane[kLanes];
  store(lane, v);
  return gather(lane, index, fill);
}

inline Vec abs(Vec a) { return vabsq_f32(a); }
inline Vec sqrt(Vec a) { return vsqrtq_f32(a); }
// The size of `size` with the sign of `sign`; `size` is not negative.
inline Vec with_sign(Vec size, Vec sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, size); }
// To the nearest whole number, half way to the even one.
inline Vec round(Vec a) { return vrndnq_f32(a); }

using Mask = uint32x4_t;
inline Mask less(Vec a, Vec b) { return vcltq_f32(a, b); }
inline Mask is_nan(Vec a) { return vmvnq_u32(vceqq_f32(a, a)); }
// Lane i is a's where the mask is set, else b's.
inline Vec select(Mask mask, Vec a, Vec b) { return vbslq_f32(mask, a, b); }

// 2^n for whole n from -126 to 127. The sum's low bits hold n + 127, which belongs into the exponent's place.
inline Vec power_of_two(Vec n) {
  const Vec sum = vaddq_f32(n, vdupq_n_f32(0x1.8p23f + 127));
  return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(sum), 23));
}

// Lane i is the sum of the lanes of vector i; kLanes vectors follow each other. The order of a sum is the same in all.
inline Vec lane_sums(const float* vectors) {
  const Vec low = vpaddq_f32(load(vectors), load(vectors + 4)), high = vpaddq_f32(load(vectors + 8), load(vectors + 12));
  return vpaddq_f32(low, high);
}

}  // namespace budwood::neon
