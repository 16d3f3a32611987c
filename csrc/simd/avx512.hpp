#pragma once

#include <immintrin.h>

namespace budwood::avx512 {

using Vec = __m512;
constexpr int kLanes = 16;

inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Vec v) { _mm512_storeu_ps(to, v); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }

// Lanes outside the mask are neither read nor written, and cannot fault.
inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline Vec load_first(const float* from, int n) { return _mm512_maskz_loadu_ps(first(n), from); }
inline void store_first(float* to, Vec v, int n) { _mm512_mask_storeu_ps(to, first(n), v); }

}  // namespace budwood::avx512
