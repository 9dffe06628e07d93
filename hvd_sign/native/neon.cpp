// NEON, which every 64-bit ARM has: compiled for those machines alone, and usable on all of them.
#include "implementation.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include <type_traits>

#include "bitslice.h"
#include "neon.h"
#include "weigh.h"

namespace hvd_sign {
namespace {

using Words = uint64_t __attribute__((vector_size(16)));

// The top bits of a block's elements, v(i) being its i-th vector. NEON has no instruction for it:
// each byte is left the bit of its place among eight, and pairs are added until eight bytes remain.
template <class Float, class Get>
uint64_t sign_bits(Get v) {
  constexpr int kQuarter = kVectors<Float> / 4;
  const int8x16_t place = {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7};
  const auto quarter = [&](int q) {
    const Vector top = Lanes<Float>::top([&](int i) { return v(q * kQuarter + i); });
    return vshlq_u8(vshrq_n_u8(top, 7), place);
  };
  const Vector low = vpaddq_u8(quarter(0), quarter(1));
  const Vector both = vpaddq_u8(low, vpaddq_u8(quarter(2), quarter(3)));
  return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(both, both)), 0);
}

// Whether the largest magnitude is that of a finite number.
template <class Float>
bool is_finite(Vector highest) {
  return !any(Lanes<Float>::above(highest, Lanes<Float>::all(uint64_t(Float::kInfinity) - 1)));
}

template <class Float>
Scan scan(const void* blocks, size_t count, uint64_t* signs) {
  using L = Lanes<Float>;
  const Vector magnitude = L::all(uint64_t(Float::kSign) - 1);
  const Vector zero = vdupq_n_u8(0);
  const uint8_t* at = static_cast<const uint8_t*>(blocks);
  Vector highest = zero;
  uint64_t active = 0, with_zeros = 0;
  for (size_t block = 0; block < count; ++block, at += kVectors<Float> * sizeof(Vector)) {
    Vector low = magnitude, high = zero;
    for (int i = 0; i < kVectors<Float>; ++i) {
      const Vector size = vandq_u8(load_vector(at + i * sizeof(Vector)), magnitude);
      low = L::low(low, size);
      high = L::high(high, size);
    }
    signs[block] = sign_bits<Float>([&](int i) { return load_vector(at + i * sizeof(Vector)); });
    active |= uint64_t(any(high)) << block;
    with_zeros |= uint64_t(any(L::same(low, zero))) << block;
    highest = L::high(highest, high);
  }
  return {active, with_zeros, is_finite<Float>(highest)};
}

template <class Float>
uint64_t zeros(const void* block) {
  using L = Lanes<Float>;
  const Vector magnitude = L::all(uint64_t(Float::kSign) - 1);
  const uint8_t* at = static_cast<const uint8_t*>(block);
  return sign_bits<Float>([&](int i) {
    const Vector size = vandq_u8(load_vector(at + i * sizeof(Vector)), magnitude);
    return L::same(size, vdupq_n_u8(0));
  });
}

// The reference's order of additions: two registers are its eight lanes.
template <class Float>
double abs_sum(const void* blocks, size_t count, double sum) {
  constexpr size_t kFour = 4 * sizeof(typename Float::Bits);
  const uint8_t* at = static_cast<const uint8_t*>(blocks);
  for (size_t block = 0; block < count; ++block) {
    float32x4_t low = vdupq_n_f32(0), high = low;
    for (size_t row = 0; row < 8; ++row, at += 2 * kFour) {
      low = vaddq_f32(low, vabsq_f32(Numbers<Float>::load(at)));
      high = vaddq_f32(high, vabsq_f32(Numbers<Float>::load(at + kFour)));
    }
    const float32x4_t four = vaddq_f32(low, high);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    sum += vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  return sum;
}

double abs_sum64(const void* blocks, size_t count, double sum) {
  const uint8_t* at = static_cast<const uint8_t*>(blocks);
  for (size_t block = 0; block < count; ++block) {
    float64x2_t lanes[4] = {};
    for (size_t pair = 0; pair < kBlock / 2; ++pair, at += sizeof(Vector)) {
      lanes[pair % 4] =
          vaddq_f64(lanes[pair % 4], vabsq_f64(vreinterpretq_f64_u8(load_vector(at))));
    }
    const float64x2_t low = vaddq_f64(lanes[0], lanes[2]), high = vaddq_f64(lanes[1], lanes[3]);
    const float64x2_t two = vaddq_f64(low, high);
    sum += vgetq_lane_f64(two, 0) + vgetq_lane_f64(two, 1);
  }
  return sum;
}

// As vectors of the compiler's: what is rounded, and when, stands in their operators.
template <class Float>
bool blend(const void* state, const void* gradient, size_t blocks, double a, double b,
           double unscale, void* to) {
  using State = ArithmeticOf<Float>;
  using Sum = decltype(Numbers<State>::load(nullptr));
  using Number = typename State::Arithmetic;
  // To all lanes by a subtraction: a factor of -0.0 stays one.
  const Sum of_state = Number(a) - Sum{}, of_gradient = Number(b) - Sum{};
  const Sum u = Number(unscale) - Sum{};
  const Vector magnitude = Lanes<State>::all(uint64_t(State::kSign) - 1);
  const Vector subnormal = Lanes<State>::all(State::kLeastNormal - 1);  // the largest
  const uint8_t* m = static_cast<const uint8_t*>(state);
  const uint8_t* g = static_cast<const uint8_t*>(gradient);
  uint8_t* at = static_cast<uint8_t*>(to);
  Vector highest = vdupq_n_u8(0);
  for (size_t i = 0; i < blocks * size_t(kVectors<State>); ++i) {
    const Sum sum =
        of_state * Numbers<State>::load(m) + of_gradient * (u * Numbers<Float>::load(g));
    const Vector size = vandq_u8(Vector(sum), magnitude);
    highest = Lanes<State>::high(highest, size);
    store_vector(at, vandq_u8(Vector(sum), Lanes<State>::above(size, subnormal)));
    m += sizeof(Vector), at += sizeof(Vector);
    g += size_t(kLanes<State>) * sizeof(typename Float::Bits);
  }
  return is_finite<State>(highest);
}

template <class Float>
bool feed(const void* kept, const void* gradient, size_t blocks, double unscale, float sent,
          bool exact, void* to) {
  using State = ArithmeticOf<Float>;
  using L = Lanes<State>;
  using Sum = decltype(Numbers<State>::load(nullptr));
  using Number = typename State::Arithmetic;
  const Sum u = Number(unscale) - Sum{};
  const Vector zero = vdupq_n_u8(0);
  const Vector magnitude = L::all(uint64_t(State::kSign) - 1);
  const Vector subnormal = L::all(State::kLeastNormal - 1);  // the largest
  const Vector scale = L::all(State::bits(Number(sent)));
  const Vector zeros_cast = exact ? zero : L::same(zero, zero);
  const uint8_t* p = static_cast<const uint8_t*>(kept);
  const uint8_t* g = static_cast<const uint8_t*>(gradient);
  uint8_t* at = static_cast<uint8_t*>(to);
  Vector highest = zero;
  for (size_t block = 0; block < blocks; ++block) {
    Vector found = zero;
    for (int i = 0; i < kVectors<State>; ++i) {
      found = vorrq_u8(found, load_vector(p + i * sizeof(Vector)));
    }
    const Vector said = any(vandq_u8(found, magnitude)) ? scale : zero;
    for (int i = 0; i < kVectors<State>; ++i) {
      const Vector before = load_vector(p);
      const Vector casts = vorrq_u8(zeros_cast, L::above(vandq_u8(before, magnitude), zero));
      const Vector cast = vandq_u8(vorrq_u8(said, vbicq_u8(before, magnitude)), casts);
      const Sum left = Sum(before) - Sum(cast);
      const Sum sum = u * Numbers<Float>::load(g) + left;
      const Vector size = vandq_u8(Vector(sum), magnitude);
      highest = L::high(highest, size);
      store_vector(at, vandq_u8(Vector(sum), L::above(size, subnormal)));
      p += sizeof(Vector), at += sizeof(Vector);
      g += size_t(kLanes<State>) * sizeof(typename Float::Bits);
    }
  }
  return is_finite<State>(highest);
}

template <class Float>
void write(void* out, size_t blocks, const uint64_t* signs, const uint64_t* keep, double scale,
           bool /*past_cache*/) {
  using L = Lanes<Float>;
  const auto bits = Float::bits(typename Float::Arithmetic(scale));
  const Vector positive = L::all(bits), negative = L::all(bits ^ Float::kSign);
  uint8_t* at = static_cast<uint8_t*>(out);
  for (size_t block = 0; block < blocks; ++block) {
    for (int first = 0; first < int(kBlock); first += kLanes<Float>, at += sizeof(Vector)) {
      const Vector value = vbslq_u8(L::mask(signs[block], first), negative, positive);
      store_vector(at, vandq_u8(value, L::mask(keep[block], first)));
    }
  }
}

void fence() {}

template <class Float>
void apply(void* p, size_t blocks, const uint64_t* signs, const uint64_t* keep, double lr) {
  constexpr size_t kBytes = sizeof(typename Float::Bits);
  const float32x4_t up = vdupq_n_f32(float(lr)), down = vdupq_n_f32(-float(lr));
  uint8_t* at = static_cast<uint8_t*>(p);
  for (size_t block = 0; block < blocks; ++block) {
    for (int first = 0; first < int(kBlock); first += 8, at += 8 * kBytes) {
      const auto stepped = [&](int next) {
        const uint32x4_t negative = Lanes32::in(Lanes32::mask(signs[block], first + next));
        return vsubq_f32(Numbers<Float>::load(at + next * kBytes), vbslq_f32(negative, down, up));
      };
      Vector after[8 / kLanes<Float>];
      Numbers<Float>::round8(stepped(0), stepped(4), after);
      for (int i = 0; i < 8 / kLanes<Float>; ++i) {
        uint8_t* to = at + i * sizeof(Vector);
        const Vector kept = Lanes<Float>::mask(keep[block], first + i * kLanes<Float>);
        store_vector(to, vbslq_u8(kept, after[i], load_vector(to)));
      }
    }
  }
}

void apply64(void* p, size_t blocks, const uint64_t* signs, const uint64_t* keep, double lr) {
  const float64x2_t up = vdupq_n_f64(lr), down = vdupq_n_f64(-lr);
  uint8_t* at = static_cast<uint8_t*>(p);
  for (size_t block = 0; block < blocks; ++block) {
    for (int first = 0; first < int(kBlock); first += 2, at += sizeof(Vector)) {
      const uint64x2_t negative = Lanes64::in(Lanes64::mask(signs[block], first));
      const Vector before = load_vector(at);
      const float64x2_t after =
          vsubq_f64(vreinterpretq_f64_u8(before), vbslq_f64(negative, down, up));
      store_vector(
          at, vbslq_u8(Lanes64::mask(keep[block], first), vreinterpretq_u8_f64(after), before));
    }
  }
}

// Calls one(W{}, word) for all words of the ballots, with the widest W that the rest still fills.
template <class One>
void for_each_word(size_t words, One one) {
  size_t word = 0;
  for (; word + 2 <= words; word += 2) one(Words{}, word);
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

bool usable() { return true; }

}  // namespace

const Implementation kNeon = {
    "neon",
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
#endif  // __aarch64__
