// AVX-512 as every such server has it: F, BW, VL and DQ. Its own are the kernels that it hastens:
// tallies (1.3 to 2.5 times AVX2: full adders of two instructions, activity as masks of loads) and
// apply of 16-bit types (1.4 to 1.8 times). Measured beside AVX2 on a Zen 5, the others were as
// fast or up to 5 % slower on data from memory, the more so in arrays that are not aligned to lines
// of 64 bytes, where each load touches two; those stay AVX2's.
// Only this file's functions are compiled for AVX-512; avx2.cpp says why.
#include "implementation.h"

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
// This compiler's own header warns of its deliberately undefined registers (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c")
#endif

#include "bitslice.h"
#include "floats.h"
#include "weigh.h"

namespace hvd_sign {
namespace {

using Vector = __m512i;
using Words = uint64_t __attribute__((vector_size(64)));
using HalfWords = uint64_t __attribute__((vector_size(32)));

// The reference's eight lanes are one register of float64.
double abs_sum64(const void* blocks, size_t count, double sum) {
  const double* at = static_cast<const double*>(blocks);
  for (size_t block = 0; block < count; ++block) {
    __m512d lanes = _mm512_setzero_pd();
    for (size_t row = 0; row < 8; ++row, at += 8) {
      lanes = _mm512_add_pd(lanes, _mm512_abs_pd(_mm512_loadu_pd(at)));
    }
    const __m256d four =
        _mm256_add_pd(_mm512_castpd512_pd256(lanes), _mm512_extractf64x4_pd(lanes, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    sum += _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
  return sum;
}

// Sixteen numbers of a 16-bit type, as float32. Those that are not kept are not stored.
template <class Float>
struct Numbers;

template <>
struct Numbers<Float16> {
  static __m512 load(const void* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
  }
  static void store(void* to, __m512 v, __mmask16 kept) {
    _mm256_mask_storeu_epi16(to, kept, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};

template <>
struct Numbers<BFloat16> {
  static __m512 load(const void* from) {
    const __m256i bits = _mm256_loadu_si256(static_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  // A NaN needs no care: its lower half is 0 here, as avx2.cpp explains.
  static void store(void* to, __m512 v, __mmask16 kept) {
    const Vector bits = _mm512_castps_si512(v);
    const Vector odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const Vector half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
    const Vector rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    _mm256_mask_storeu_epi16(to, kept, _mm512_cvtepi32_epi16(rounded));
  }
};

template <class Float>
void apply(void* p, size_t blocks, const uint64_t* signs, const uint64_t* keep, double lr) {
  const __m512 up = _mm512_set1_ps(float(lr)), down = _mm512_set1_ps(-float(lr));
  uint8_t* at = static_cast<uint8_t*>(p);
  for (size_t block = 0; block < blocks; ++block) {
    for (int first = 0; first < int(kBlock); first += 16, at += 16 * sizeof(typename Float::Bits)) {
      const __m512 step = _mm512_mask_blend_ps(__mmask16(signs[block] >> first), up, down);
      Numbers<Float>::store(at, _mm512_sub_ps(Numbers<Float>::load(at), step),
                            __mmask16(keep[block] >> first));
    }
  }
}

// A full adder is two instructions: the table of a ^ b ^ c and that of the majority.
template <>
Words add<Words>(Words& a, Words b, Words c) {
  const Vector x = Vector(a), y = Vector(b), z = Vector(c);
  a = Words(_mm512_ternarylogic_epi64(x, y, z, 0b10010110));
  return Words(_mm512_ternarylogic_epi64(x, y, z, 0b11101000));
}

// Words begin at multiples of eight: a byte of the bitmap is the mask of what to load.
template <>
Words Votes<Words>::plane(const uint8_t* first, size_t ballot) const {
  const size_t offset = ballot * ballots.stride;
  const uint8_t* at = first + offset + word * 8;
  if (!ballots.active) return Words(_mm512_loadu_si512(at));
  return Words(_mm512_maskz_loadu_epi64(ballots.active[offset + word / 8], at));
}

// Calls one(W{}, word) for all words of the ballots, with the widest W that the rest still fills.
template <class One>
void for_each_word(size_t words, One one) {
  size_t word = 0;
  for (; word + 8 <= words; word += 8) one(Words{}, word);
  for (; word + 4 <= words; word += 4) one(HalfWords{}, word);
  for (; word < words; ++word) one(uint64_t{}, word);
}

void majority(const Ballots& ballots, const uint64_t* voters, uint64_t* above, uint64_t* equal) {
  for_each_word(ballots.words, [&](auto width, size_t word) {
    majority_of_word<decltype(width)>(ballots, word, voters, above, equal);
  });
}

void signed_majority(const Ballots& ballots, uint64_t* negative, uint64_t* nonzero,
                     uint64_t* tied) {
  for_each_word(ballots.words, [&](auto width, size_t word) {
    signed_majority_of_word<decltype(width)>(ballots, word, negative, nonzero, tied);
  });
}

// In two widths alone: with a third the file would have grown so much that the compiler no longer
// inlines what the plain majority needs (1.5 times its time).
void weighted_majority(const Ballots& ballots, const Weighing& weighing, uint64_t* negative,
                       uint64_t* nonzero, uint64_t* tied) {
  const auto one = [&](auto width, size_t word) {
    weighted_majority_of_word<decltype(width)>(ballots, word, weighing, negative, nonzero, tied);
  };
  size_t word = 0;
  for (; word + 8 <= ballots.words; word += 8) one(Words{}, word);
  for (; word < ballots.words; ++word) one(uint64_t{}, word);
}

}  // namespace
}  // namespace hvd_sign

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace hvd_sign {
namespace {

// These run on every machine, and so stand behind the target region.
bool usable() {
  return kAvx2.usable() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}

// kAvx2 is a constant of the compiler's: it is there before this begins.
Implementation beyond_avx2() {
  Implementation table = kAvx2;
  table.name = "avx512";
  table.usable = usable;
  table.abs_sum[size_t(Dtype::float64)] = abs_sum64;
  table.majority = majority;
  table.signed_majority = signed_majority;
  table.weighted_majority = weighted_majority;
  table.apply[size_t(Dtype::float16)] = apply<Float16>;
  table.apply[size_t(Dtype::bfloat16)] = apply<BFloat16>;
  return table;
}

}  // namespace

const Implementation kAvx512 = beyond_avx2();

}  // namespace hvd_sign
#endif  // __x86_64__
