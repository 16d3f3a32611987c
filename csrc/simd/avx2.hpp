#pragma once

#include <immintrin.h>

namespace budwood::avx2 {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kRegisters = 16;

inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* from) { return _mm256_loadu_ps(from); }
// Keeps the compiler from loading v again at each of its uses: the loads are what is scarce.
inline Vec keep(Vec v) {
  asm("" : "+x"(v));
  return v;
}
inline void store(float* to, Vec v) { _mm256_storeu_ps(to, v); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

// Lanes outside the mask are neither read nor written, and cannot fault.
inline __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load_first(const float* from, int n) { return _mm256_maskload_ps(from, first(n)); }
inline void store_first(float* to, Vec v, int n) { _mm256_maskstore_ps(to, first(n), v); }

inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
// The larger (smaller) of the two; b where either is NaN, so NaN passes from b.
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }

// Lane i is base[index[i]], or fill's lane i where index[i] < 0.
inline Vec gather(const float* base, const int* index, Vec fill) {
  const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
  if (_mm256_movemask_ps(_mm256_castsi256_ps(at)) == 0) {  // one by one: faster than the instruction, where all are read
    const auto lane = [&](int i) { return base[index[i]]; };
    return _mm256_setr_ps(lane(0), lane(1), lane(2), lane(3), lane(4), lane(5), lane(6), lane(7));
  }
  const __m256i wanted = _mm256_cmpgt_epi32(at, _mm256_set1_epi32(-1));
  return _mm256_mask_i32gather_ps(fill, base, at, _mm256_castsi256_ps(wanted), 4);
}
// For j in [0, kDealt), lane i of vector j is base[index[i] + j * step], or fill, the same in all lanes, where index[i] < 0; step 1 to
// kDealtStep.
// Each lane's pixels are loaded side by side and transposed.
constexpr int kDealt = 4, kDealtStep = 2;
inline void deal(const float* base, const int* index, int64_t step, Vec fill, float* out) {
  const auto pixels = [&](int lane) {
    if (index[lane] < 0) return _mm256_castps256_ps128(fill);
    const float* at = base + index[lane];
    return step == 1 ? _mm_loadu_ps(at) : _mm_shuffle_ps(_mm_loadu_ps(at), _mm_loadu_ps(at + 3), _MM_SHUFFLE(3, 1, 2, 0));
  };
  const auto pair = [&](int k) { return _mm256_insertf128_ps(_mm256_castps128_ps256(pixels(k)), pixels(k + 4), 1); };
  const __m256 p[4] = {pair(0), pair(1), pair(2), pair(3)};
  const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(p[0], p[1])), b = _mm256_castps_pd(_mm256_unpacklo_ps(p[2], p[3]));
  const __m256d c = _mm256_castps_pd(_mm256_unpackhi_ps(p[0], p[1])), d = _mm256_castps_pd(_mm256_unpackhi_ps(p[2], p[3]));
  store(out, _mm256_castpd_ps(_mm256_unpacklo_pd(a, b)));
  store(out + kLanes, _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  store(out + 2 * kLanes, _mm256_castpd_ps(_mm256_unpacklo_pd(c, d)));
  store(out + 3 * kLanes, _mm256_castpd_ps(_mm256_unpackhi_pd(c, d)));
}
using Permutation = __m256i;
inline Permutation permutation(const int* index) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)); }
// Lane i is v's lane index[i], or fill's lane i where index[i] < 0.
inline Vec permute(Vec v, Permutation index, Vec fill) {
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(v, index), fill, _mm256_castsi256_ps(index));
}

inline Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
// The size of `size` with the sign of `sign`; `size` is not negative.
inline Vec with_sign(Vec size, Vec sign) { return _mm256_or_ps(size, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f))); }
// To the nearest whole number, half way to the even one.
inline Vec round(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

using Mask = __m256;
inline Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
inline Mask is_nan(Vec a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
// Lane i is a's where the mask is set, else b's.
inline Vec select(Mask mask, Vec a, Vec b) { return _mm256_blendv_ps(b, a, mask); }

// 2^n for whole n from -126 to 127. The sum's low bits hold n + 127, which belongs into the exponent's place.
inline Vec power_of_two(Vec n) {
  const Vec sum = _mm256_add_ps(n, _mm256_set1_ps(0x1.8p23f + 127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(sum), 23));
}

// Lane i is the sum of the lanes of vector i; kLanes vectors follow each other. The order of a sum is the same in all.
//
// Each level adds halves of two vectors: one permutation, and one blend, which another port does.
inline Vec lane_sums(const float* vectors) {
  const auto halves = [&](int i) {
    const Vec a = load(vectors + i * kLanes), b = load(vectors + (i + 4) * kLanes);
    return add(_mm256_blend_ps(a, b, 0xF0), _mm256_permute2f128_ps(a, b, 0x21));
  };
  const auto pairs = [&](int i) {
    const Vec a = halves(i), b = halves(i + 2);
    return add(_mm256_blend_ps(a, b, 0xCC), _mm256_shuffle_ps(a, b, 0x4E));
  };
  return _mm256_permute_ps(_mm256_hadd_ps(pairs(0), pairs(1)), 0xD8);
}

}  // namespace budwood::avx2
