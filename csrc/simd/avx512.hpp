#pragma once

#include <immintrin.h>

namespace budwood::avx512 {

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kRegisters = 32;

inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* from) { return _mm512_loadu_ps(from); }
// Keeps the compiler from loading v again at each of its uses: the loads are what is scarce.
inline Vec keep(Vec v) {
  asm("" : "+v"(v));
  return v;
}
inline void store(float* to, Vec v) { _mm512_storeu_ps(to, v); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }

// Lanes outside the mask are neither read nor written, and cannot fault.
inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline Vec load_first(const float* from, int n) { return _mm512_maskz_loadu_ps(first(n), from); }
inline void store_first(float* to, Vec v, int n) { _mm512_mask_storeu_ps(to, first(n), v); }

inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
// The larger (smaller) of the two; b where either is NaN, so NaN passes from b.
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }

// Lane i is base[index[i]], or fill's lane i where index[i] < 0.
inline Vec gather(const float* base, const int* index, Vec fill) {
  const __m512i at = _mm512_loadu_si512(index);
  return _mm512_mask_i32gather_ps(fill, _mm512_cmpge_epi32_mask(at, _mm512_setzero_si512()), at, base, 4);
}
// For j in [0, kDealt), lane i of vector j is base[index[i] + j * step], or fill, the same in all lanes, where index[i] < 0; step 1 to
// kDealtStep.
// Each lane's pixels are loaded side by side and transposed.
constexpr int kDealt = 8, kDealtStep = 4;
inline void deal(const float* base, const int* index, int64_t step, Vec fill, float* out) {
  const int end = static_cast<int>(7 * step + 1);
  const __m512i place = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7), _mm512_set1_epi32(static_cast<int>(step)));
  __m512 pair[8];  // the eight pixels of lanes k and k + 8
  if (step <= 2) {
    const __m512i wanted = _mm512_mask_add_epi32(place, 0xFF00, place, _mm512_set1_epi32(16));
    const auto pixels = [&](int lane) { return index[lane] < 0 ? fill : load_first(base + index[lane], end); };
    for (int k = 0; k < 8; ++k) pair[k] = _mm512_permutex2var_ps(pixels(k), wanted, pixels(k + 8));
  } else {
    const auto pixels = [&](int lane) {
      if (index[lane] < 0) return fill;
      return _mm512_permutex2var_ps(load(base + index[lane]), place, load_first(base + index[lane] + kLanes, end - kLanes));
    };
    for (int k = 0; k < 8; ++k) pair[k] = _mm512_shuffle_f32x4(pixels(k), pixels(k + 8), 0x44);
  }
  __m512d four[8];  // vectors j and j + 4 in lanes 0-3 and 8-11 (the last four: 4-7 and 12-15) of each half
  for (int h = 0; h < 2; ++h)
    for (int odd = 0; odd < 2; ++odd) {
      const __m512 *p = pair + 4 * h;
      const __m512d a = _mm512_castps_pd(odd ? _mm512_unpackhi_ps(p[0], p[1]) : _mm512_unpacklo_ps(p[0], p[1]));
      const __m512d b = _mm512_castps_pd(odd ? _mm512_unpackhi_ps(p[2], p[3]) : _mm512_unpacklo_ps(p[2], p[3]));
      four[4 * h + 2 * odd] = _mm512_unpacklo_pd(a, b);
      four[4 * h + 2 * odd + 1] = _mm512_unpackhi_pd(a, b);
    }
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  for (int j = 0; j < 4; ++j) {
    store(out + j * kLanes, _mm512_castpd_ps(_mm512_permutex2var_pd(four[j], low, four[4 + j])));
    store(out + (j + 4) * kLanes, _mm512_castpd_ps(_mm512_permutex2var_pd(four[j], high, four[4 + j])));
  }
}
struct Permutation {
  __m512i lanes;
  __mmask16 wanted;
};
inline Permutation permutation(const int* index) {
  const __m512i lanes = _mm512_loadu_si512(index);
  return {lanes, _mm512_cmpge_epi32_mask(lanes, _mm512_setzero_si512())};
}
// Lane i is v's lane index[i], or fill's lane i where index[i] < 0.
inline Vec permute(Vec v, Permutation index, Vec fill) {
  return _mm512_mask_permutexvar_ps(fill, index.wanted, index.lanes, v);
}

inline Vec abs(Vec a) { return _mm512_abs_ps(a); }
inline Vec sqrt(Vec a) { return _mm512_sqrt_ps(a); }
// The size of `size` with the sign of `sign`; `size` is not negative.
inline Vec with_sign(Vec size, Vec sign) { return _mm512_or_ps(size, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f))); }
// To the nearest whole number, half way to the even one.
inline Vec round(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

using Mask = __mmask16;
inline Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Mask is_nan(Vec a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
// Lane i is a's where the mask is set, else b's.
inline Vec select(Mask mask, Vec a, Vec b) { return _mm512_mask_blend_ps(mask, b, a); }

// 2^n for whole n from -126 to 127. The sum's low bits hold n + 127, which belongs into the exponent's place.
inline Vec power_of_two(Vec n) {
  const Vec sum = _mm512_add_ps(n, _mm512_set1_ps(0x1.8p23f + 127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(sum), 23));
}

// Lane i is the sum of the lanes of vector i; kLanes vectors follow each other. The order of a sum is the same in all.
//
// Each level adds halves of two vectors: one permutation, and one blend, which another port does.
inline Vec lane_sums(const float* vectors) {
  const __m512i swapped = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
  const auto halves = [&](int i) {
    const Vec a = load(vectors + i * kLanes), b = load(vectors + (i + 8) * kLanes);
    return add(_mm512_mask_blend_ps(0xFF00, a, b), _mm512_shuffle_f32x4(a, b, 0x4E));
  };
  const auto quarters = [&](int i) {
    const Vec a = halves(i), b = halves(i + 4);
    return add(_mm512_mask_blend_ps(0xF0F0, a, b), _mm512_permutex2var_ps(a, swapped, b));
  };
  const auto pairs = [&](int i) {
    const Vec a = quarters(i), b = quarters(i + 2);
    return add(_mm512_mask_blend_ps(0xCCCC, a, b), _mm512_shuffle_ps(a, b, 0x4E));
  };
  const Vec a = pairs(0), b = pairs(1);
  return _mm512_permute_ps(add(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD)), 0xD8);
}

}  // namespace budwood::avx512
