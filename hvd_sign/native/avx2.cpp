// AVX2 with F16C. Only this file's functions are compiled for them: what the standard library
// defines inline stays outside of the target region, or the linker might keep this copy of it for
// machines that cannot run it.
#include "implementation.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c,popcnt")
#endif

#include "avx2.h"
#include "bitslice.h"
#include "floats.h"
#include "weigh.h"

namespace hvd_sign {
namespace {

using Words = uint64_t __attribute__((vector_size(32)));

// The hardware's prefetching ends at each page of 4 KiB: ours goes on, two pages ahead. One core
// that reads 36 GB/s packs 34 with it, 27 without.
constexpr size_t kAhead = 8192;

template <size_t kBytes>
void prefetch(const void* at) {
  for (size_t line = 0; line < kBytes; line += 64) {
    _mm_prefetch(static_cast<const char*>(at) + kAhead + line, _MM_HINT_T0);
  }
}

// Whether the largest magnitude is that of a finite number.
template <class Float>
bool is_finite(Vector highest) {
  using L = Lanes<Float>;
  const Vector nonfinite = L::above(highest, L::all(uint64_t(Float::kInfinity) - 1));
  return _mm256_testz_si256(nonfinite, nonfinite);
}

template <class Float>
Scan scan(const void* blocks, size_t count, uint64_t* signs) {
  using L = Lanes<Float>;
  const Vector magnitude = L::all(uint64_t(Float::kSign) - 1);
  const uint8_t* at = static_cast<const uint8_t*>(blocks);
  Vector highest = _mm256_setzero_si256();
  uint64_t active = 0, with_zeros = 0;
  for (size_t block = 0; block < count; ++block) {
    prefetch<kVectors<Float> * sizeof(Vector)>(at);
    Vector v[kVectors<Float>];
    Vector low = magnitude, high = _mm256_setzero_si256();
    for (size_t i = 0; i < kVectors<Float>; ++i, at += sizeof(Vector)) {
      v[i] = load_vector(at);
      const Vector size = _mm256_and_si256(v[i], magnitude);
      low = L::low(low, size);
      high = L::high(high, size);
    }
    signs[block] = L::sign_bits([&](int i) { return v[i]; });
    const Vector zero = L::same(low, _mm256_setzero_si256());
    active |= uint64_t(!_mm256_testz_si256(high, high)) << block;
    with_zeros |= uint64_t(!_mm256_testz_si256(zero, zero)) << block;
    highest = L::high(highest, high);
  }
  return {active, with_zeros, is_finite<Float>(highest)};
}

template <class Float>
uint64_t zeros(const void* block) {
  using L = Lanes<Float>;
  const Vector magnitude = L::all(uint64_t(Float::kSign) - 1);
  const Vector* v = static_cast<const Vector*>(block);
  return L::sign_bits([&](int i) {
    return L::same(_mm256_and_si256(load_vector(v + i), magnitude), _mm256_setzero_si256());
  });
}

// The reference's order of additions: a register is its eight lanes.
template <class Float>
double abs_sum(const void* blocks, size_t count, double sum) {
  const uint8_t* at = static_cast<const uint8_t*>(blocks);
  const __m256 sign = _mm256_set1_ps(-0.0f);
  for (size_t block = 0; block < count; ++block) {
    __m256 lanes = _mm256_setzero_ps();
    for (size_t row = 0; row < 8; ++row, at += 8 * sizeof(typename Float::Bits)) {
      lanes = _mm256_add_ps(lanes, _mm256_andnot_ps(sign, Numbers<Float>::load(at)));
    }
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    sum += _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  return sum;
}

double abs_sum64(const void* blocks, size_t count, double sum) {
  const double* at = static_cast<const double*>(blocks);
  const __m256d sign = _mm256_set1_pd(-0.0);
  for (size_t block = 0; block < count; ++block) {
    __m256d low = _mm256_setzero_pd(), high = low;
    for (size_t row = 0; row < 8; ++row, at += 8) {
      low = _mm256_add_pd(low, _mm256_andnot_pd(sign, _mm256_loadu_pd(at)));
      high = _mm256_add_pd(high, _mm256_andnot_pd(sign, _mm256_loadu_pd(at + 4)));
    }
    const __m256d four = _mm256_add_pd(low, high);
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    sum += _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
  return sum;
}

// As vectors of the compiler's: what is rounded, and when, stands in their operators.
template <class Float>
bool blend(const void* state, const void* gradient, size_t blocks, double a, double b,
           double unscale, void* to) {
  using State = ArithmeticOf<Float>;
  using Sum = decltype(Numbers<State>::load(state));
  constexpr size_t kLanes = sizeof(Sum) / sizeof(typename State::Bits);
  using Number = typename State::Arithmetic;
  // To all lanes by a subtraction: a factor of -0.0 stays one.
  const Sum of_state = Number(a) - Sum{}, of_gradient = Number(b) - Sum{};
  const Sum u = Number(unscale) - Sum{};
  const Vector magnitude = Lanes<State>::all(uint64_t(State::kSign) - 1);
  const Vector subnormal = Lanes<State>::all(State::kLeastNormal - 1);  // the largest
  const uint8_t* m = static_cast<const uint8_t*>(state);
  const uint8_t* g = static_cast<const uint8_t*>(gradient);
  uint8_t* at = static_cast<uint8_t*>(to);
  Vector highest = _mm256_setzero_si256();
  for (size_t block = 0; block < blocks; ++block) {
    prefetch<kVectors<State> * sizeof(Vector)>(m);
    prefetch<kVectors<Float> * sizeof(Vector)>(g);
    for (size_t i = 0; i < kVectors<State>; ++i) {
      const Sum sum =
          of_state * Numbers<State>::load(m) + of_gradient * (u * Numbers<Float>::load(g));
      const Vector size = _mm256_and_si256(Vector(sum), magnitude);
      highest = Lanes<State>::high(highest, size);
      store_vector(at, _mm256_and_si256(Vector(sum), Lanes<State>::above(size, subnormal)));
      m += sizeof(Vector), at += sizeof(Vector), g += kLanes * sizeof(typename Float::Bits);
    }
  }
  return is_finite<State>(highest);
}

template <class Float>
bool feed(const void* kept, const void* gradient, size_t blocks, double unscale, float sent,
          bool exact, void* to) {
  using State = ArithmeticOf<Float>;
  using L = Lanes<State>;
  using Sum = decltype(Numbers<State>::load(kept));
  constexpr size_t kLanes = sizeof(Sum) / sizeof(typename State::Bits);
  using Number = typename State::Arithmetic;
  const Sum u = Number(unscale) - Sum{};
  const Vector zero = _mm256_setzero_si256();
  const Vector magnitude = L::all(uint64_t(State::kSign) - 1);
  const Vector subnormal = L::all(State::kLeastNormal - 1);  // the largest
  const Vector scale = L::all(State::bits(Number(sent)));
  const Vector zeros_cast = exact ? zero : L::same(zero, zero);
  const uint8_t* p = static_cast<const uint8_t*>(kept);
  const uint8_t* g = static_cast<const uint8_t*>(gradient);
  uint8_t* at = static_cast<uint8_t*>(to);
  Vector highest = zero;
  for (size_t block = 0; block < blocks; ++block) {
    prefetch<kVectors<State> * sizeof(Vector)>(p);
    prefetch<kVectors<Float> * sizeof(Vector)>(g);
    Vector any = zero;
    for (size_t i = 0; i < kVectors<State>; ++i) {
      any = _mm256_or_si256(any, load_vector(p + i * sizeof(Vector)));
    }
    const Vector said = _mm256_testz_si256(any, magnitude) ? zero : scale;
    for (size_t i = 0; i < kVectors<State>; ++i) {
      const Vector before = load_vector(p);
      const Vector casts =
          _mm256_or_si256(zeros_cast, L::above(_mm256_and_si256(before, magnitude), zero));
      const Vector cast =
          _mm256_and_si256(_mm256_or_si256(said, _mm256_andnot_si256(magnitude, before)), casts);
      const Sum left = Sum(before) - Sum(cast);
      const Sum sum = u * Numbers<Float>::load(g) + left;
      const Vector size = _mm256_and_si256(Vector(sum), magnitude);
      highest = L::high(highest, size);
      store_vector(at, _mm256_and_si256(Vector(sum), L::above(size, subnormal)));
      p += sizeof(Vector), at += sizeof(Vector), g += kLanes * sizeof(typename Float::Bits);
    }
  }
  return is_finite<State>(highest);
}

// Puts bit `first + lane` of a word on top of each lane; the bits below it are of no use.
Vector bits_on_top16(uint64_t word, int first) {
  const Vector shift = _mm256_setr_epi16(int16_t(0x8000), 0x4000, 0x2000, 0x1000, 0x800, 0x400,
                                         0x200, 0x100, 0x80, 0x40, 0x20, 0x10, 8, 4, 2, 1);
  return _mm256_mullo_epi16(_mm256_set1_epi16(int16_t(word >> first)), shift);
}
Vector bits_on_top32(uint64_t word, int first) {
  const Vector shift = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
  return _mm256_sllv_epi32(_mm256_set1_epi32(int32_t(word >> first)), shift);
}
Vector bits_on_top64(uint64_t word, int first) {
  const Vector shift = _mm256_setr_epi64x(63, 62, 61, 60);
  return _mm256_sllv_epi64(_mm256_set1_epi64x(int64_t(word >> first)), shift);
}

template <class Float>
Vector bits_on_top(uint64_t word, int first) {
  if constexpr (sizeof(typename Float::Bits) == 2) return bits_on_top16(word, first);
  if constexpr (sizeof(typename Float::Bits) == 4) return bits_on_top32(word, first);
  if constexpr (sizeof(typename Float::Bits) == 8) return bits_on_top64(word, first);
}

// All ones in the lanes whose bit of `keep`, from bit `first` on, is set.
template <class Float>
Vector mask_of(uint64_t keep, int first) {
  const Vector top = Lanes<Float>::all(Float::kSign);
  const Vector bits = _mm256_and_si256(bits_on_top<Float>(keep, first), top);
  return Lanes<Float>::same(bits, top);
}

template <class Float, bool kPast>
void write_blocks(uint8_t* at, size_t blocks, const uint64_t* signs, const uint64_t* keep,
                  Vector positive) {
  constexpr int kLanes = sizeof(Vector) / sizeof(typename Float::Bits);
  const Vector sign = Lanes<Float>::all(Float::kSign);
  for (size_t block = 0; block < blocks; ++block) {
    const bool whole = keep[block] == ~0ull;
    for (int first = 0; first < int(kBlock); first += kLanes, at += sizeof(Vector)) {
      const Vector negative = _mm256_and_si256(bits_on_top<Float>(signs[block], first), sign);
      Vector value = _mm256_xor_si256(positive, negative);
      if (!whole) value = _mm256_and_si256(value, mask_of<Float>(keep[block], first));
      if (kPast) {
        // Two halves, for malloc aligns large arrays to 16 bytes and no more.
        __m128i* to = reinterpret_cast<__m128i*>(at);
        _mm_stream_si128(to, _mm256_castsi256_si128(value));
        _mm_stream_si128(to + 1, _mm256_extracti128_si256(value, 1));
      } else {
        store_vector(at, value);
      }
    }
  }
}

template <class Float>
void write(void* out, size_t blocks, const uint64_t* signs, const uint64_t* keep, double scale,
           bool past_cache) {
  const Vector positive = Lanes<Float>::all(Float::bits(typename Float::Arithmetic(scale)));
  uint8_t* at = static_cast<uint8_t*>(out);
  if (past_cache && reinterpret_cast<uintptr_t>(at) % sizeof(__m128i) == 0) {
    write_blocks<Float, true>(at, blocks, signs, keep, positive);
  } else {
    write_blocks<Float, false>(at, blocks, signs, keep, positive);
  }
}

void fence() { _mm_sfence(); }

template <class Float>
void apply(void* p, size_t blocks, const uint64_t* signs, const uint64_t* keep, double lr) {
  constexpr size_t kBytes = sizeof(typename Float::Bits);
  constexpr int kLanes = sizeof(Vector) / kBytes;
  const __m256 step = _mm256_set1_ps(float(lr));
  const __m256 sign = _mm256_set1_ps(-0.0f);
  uint8_t* at = static_cast<uint8_t*>(p);
  for (size_t block = 0; block < blocks; ++block) {
    const bool whole = keep[block] == ~0ull;
    for (int first = 0; first < int(kBlock); first += 16, at += 16 * kBytes) {
      const auto stepped = [&](int next) {
        const __m256 top = _mm256_castsi256_ps(bits_on_top32(signs[block], first + next));
        return _mm256_sub_ps(Numbers<Float>::load(at + next * kBytes),
                             _mm256_xor_ps(step, _mm256_and_ps(top, sign)));
      };
      Vector after[16 / kLanes];
      Numbers<Float>::round16(stepped(0), stepped(8), after);
      for (int i = 0; i < 16 / kLanes; ++i) {
        uint8_t* to = at + i * sizeof(Vector);
        if (!whole) {
          const Vector mask = mask_of<Float>(keep[block], first + i * kLanes);
          after[i] = _mm256_blendv_epi8(load_vector(to), after[i], mask);
        }
        store_vector(to, after[i]);
      }
    }
  }
}

void apply64(void* p, size_t blocks, const uint64_t* signs, const uint64_t* keep, double lr) {
  const __m256d step = _mm256_set1_pd(lr);
  const __m256d sign = _mm256_set1_pd(-0.0);
  double* at = static_cast<double*>(p);
  for (size_t block = 0; block < blocks; ++block) {
    for (int first = 0; first < int(kBlock); first += 4, at += 4) {
      const __m256d top = _mm256_castsi256_pd(bits_on_top64(signs[block], first));
      const __m256d before = _mm256_loadu_pd(at);
      const __m256d after = _mm256_sub_pd(before, _mm256_xor_pd(step, _mm256_and_pd(top, sign)));
      const __m256d kept = _mm256_castsi256_pd(bits_on_top64(keep[block], first));
      _mm256_storeu_pd(at, _mm256_blendv_pd(before, after, kept));
    }
  }
}

// Calls one(W{}, word) for all words of the ballots, with the widest W that the rest still fills.
template <class One>
void for_each_word(size_t words, One one) {
  size_t word = 0;
  for (; word + 4 <= words; word += 4) one(Words{}, word);
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

void weighted_majority(const Ballots& ballots, const Weighing& weighing, uint64_t* negative,
                       uint64_t* nonzero, uint64_t* tied) {
  for_each_word(ballots.words, [&](auto width, size_t word) {
    weighted_majority_of_word<decltype(width)>(ballots, word, weighing, negative, nonzero, tied);
  });
}

uint64_t popcount(const uint64_t* words, size_t count) {
  uint64_t sum = 0;
  for (size_t word = 0; word < count; ++word) sum += uint64_t(__builtin_popcountll(words[word]));
  return sum;
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

// Runs on every machine, and so stands behind the target region.
bool usable() {
  unsigned a, b, c, d;  // older compilers' __builtin_cpu_supports does not know f16c
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
}

}  // namespace

const Implementation kAvx2 = {
    "avx2",
    usable,
    {scan<Float32>, scan<Float64>, scan<Float16>, scan<BFloat16>},
    {zeros<Float32>, zeros<Float64>, zeros<Float16>, zeros<BFloat16>},
    {abs_sum<Float32>, abs_sum64, abs_sum<Float16>, abs_sum<BFloat16>},
    {blend<Float32>, blend<Float64>, blend<Float16>, blend<BFloat16>},
    {feed<Float32>, feed<Float64>, feed<Float16>, feed<BFloat16>},
    majority,
    signed_majority,
    weighted_majority,
    popcount,
    {write<Float32>, write<Float64>, write<Float16>, write<BFloat16>},
    fence,
    {apply<Float32>, apply64, apply<Float16>, apply<BFloat16>},
};

}  // namespace hvd_sign
#endif  // __x86_64__
