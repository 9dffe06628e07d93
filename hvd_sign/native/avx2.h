// AVX2's registers as its kernels use them. Included in the target region of avx2.cpp alone.
#pragma once

#include "floats.h"

namespace hvd_sign {
namespace {

using Vector = __m256i;

Vector load_vector(const void* from) {
  return _mm256_loadu_si256(static_cast<const Vector*>(from));
}
void store_vector(void* to, Vector v) { _mm256_storeu_si256(static_cast<Vector*>(to), v); }

// Integer vectors of one element size, as the scan needs them. Magnitudes are never negative, so
// that signed comparisons order them. sign_bits(v) gathers the top bits of a block's elements,
// where v(i) is its i-th vector.
struct Lanes16 {
  static Vector all(uint64_t value) { return _mm256_set1_epi16(int16_t(value)); }
  static Vector low(Vector a, Vector b) { return _mm256_min_epi16(a, b); }
  static Vector high(Vector a, Vector b) { return _mm256_max_epi16(a, b); }
  static Vector same(Vector a, Vector b) { return _mm256_cmpeq_epi16(a, b); }
  static Vector above(Vector a, Vector b) { return _mm256_cmpgt_epi16(a, b); }

  template <class Get>
  static uint64_t sign_bits(Get v) {
    const auto half = [&](int i) {
      // Saturation keeps signs. Both halves of a register are packed apart: the permutation mends.
      const Vector bytes = _mm256_packs_epi16(v(i), v(i + 1));
      return uint32_t(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0b11011000)));
    };
    return half(0) | uint64_t(half(2)) << 32;
  }
};

struct Lanes32 {
  static Vector all(uint64_t value) { return _mm256_set1_epi32(int32_t(value)); }
  static Vector low(Vector a, Vector b) { return _mm256_min_epi32(a, b); }
  static Vector high(Vector a, Vector b) { return _mm256_max_epi32(a, b); }
  static Vector same(Vector a, Vector b) { return _mm256_cmpeq_epi32(a, b); }
  static Vector above(Vector a, Vector b) { return _mm256_cmpgt_epi32(a, b); }

  template <class Get>
  static uint64_t sign_bits(Get v) {
    const Vector order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const auto half = [&](int i) {
      const Vector low = _mm256_packs_epi32(v(i), v(i + 1));
      const Vector high = _mm256_packs_epi32(v(i + 2), v(i + 3));
      const Vector bytes = _mm256_packs_epi16(low, high);
      return uint32_t(_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(bytes, order)));
    };
    return half(0) | uint64_t(half(4)) << 32;
  }
};

struct Lanes64 {
  static Vector all(uint64_t value) { return _mm256_set1_epi64x(int64_t(value)); }
  static Vector low(Vector a, Vector b) { return _mm256_blendv_epi8(a, b, above(a, b)); }
  static Vector high(Vector a, Vector b) { return _mm256_blendv_epi8(b, a, above(a, b)); }
  static Vector same(Vector a, Vector b) { return _mm256_cmpeq_epi64(a, b); }
  static Vector above(Vector a, Vector b) { return _mm256_cmpgt_epi64(a, b); }

  template <class Get>
  static uint64_t sign_bits(Get v) {
    uint64_t bits = 0;
    for (int i = 0; i < 16; ++i) {
      bits |= uint64_t(_mm256_movemask_pd(_mm256_castsi256_pd(v(i)))) << 4 * i;
    }
    return bits;
  }
};

template <class Float>
using Lanes =
    std::conditional_t<sizeof(typename Float::Bits) == 2, Lanes16,
                       std::conditional_t<sizeof(typename Float::Bits) == 4, Lanes32, Lanes64>>;

template <class Float>
constexpr size_t kVectors = sizeof(typename Float::Bits) * kBlock / sizeof(Vector);

// Numbers in their arithmetic's type: a register at a time; of those in float32, sixteen back.
template <class Float>
struct Numbers;

template <>
struct Numbers<Float64> {
  static __m256d load(const void* from) {
    return _mm256_loadu_pd(static_cast<const double*>(from));
  }
};

template <>
struct Numbers<Float32> {
  static __m256 load(const void* from) { return _mm256_loadu_ps(static_cast<const float*>(from)); }
  static void round16(__m256 low, __m256 high, Vector* to) {
    to[0] = _mm256_castps_si256(low);
    to[1] = _mm256_castps_si256(high);
  }
};

template <>
struct Numbers<Float16> {
  static __m256 load(const void* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  }
  static void round16(__m256 low, __m256 high, Vector* to) {
    const __m128i first = _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT);
    const __m128i second = _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT);
    *to = _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
  }
};

template <>
struct Numbers<BFloat16> {
  static __m256 load(const void* from) {
    const __m128i bits = _mm_loadu_si128(static_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  // A NaN needs no care: it came from a bfloat16 or is the default one, so its lower half is 0 and
  // the rounding carries nothing into the upper one, and the arithmetic has made it quiet.
  static Vector round8(__m256 v) {
    const Vector bits = _mm256_castps_si256(v);
    const Vector odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const Vector half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
    return _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  }
  static void round16(__m256 low, __m256 high, Vector* to) {
    // Both halves of a register are packed apart: the permutation mends.
    *to = _mm256_permute4x64_epi64(_mm256_packus_epi32(round8(low), round8(high)), 0b11011000);
  }
};

}  // namespace
}  // namespace hvd_sign
