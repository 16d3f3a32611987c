#pragma once

#include <immintrin.h>

namespace budwood::avx2 {

using Vec = __m256;
constexpr int kLanes = 8;

inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Vec v) { _mm256_storeu_ps(to, v); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

// Lanes outside the mask are neither read nor written, and cannot fault.
inline __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load_first(const float* from, int n) { return _mm256_maskload_ps(from, first(n)); }
inline void store_first(float* to, Vec v, int n) { _mm256_maskstore_ps(to, first(n), v); }

}  // namespace budwood::avx2
