// The reference: plain C++ for any machine. Every other implementation equals it bit for bit.
#include "bitslice.h"
#include "floats.h"
#include "implementation.h"
#include "weigh.h"

namespace hvd_sign {
namespace {

template <class Float>
typename Float::Bits load_bits(const void* data, size_t index) {
  typename Float::Bits bits;
  std::memcpy(&bits, static_cast<const uint8_t*>(data) + index * sizeof bits, sizeof bits);
  return bits;
}

template <class Float>
void store_bits(void* data, size_t index, typename Float::Bits bits) {
  std::memcpy(static_cast<uint8_t*>(data) + index * sizeof bits, &bits, sizeof bits);
}

template <class Float>
Scan scan(const void* blocks, size_t count, uint64_t* signs) {
  using Bits = typename Float::Bits;
  constexpr int kShift = sizeof(Bits) * 8 - 1;
  Scan found{0, 0, true};
  for (size_t block = 0; block < count; ++block) {
    uint64_t word = 0;
    Bits low = Float::kSign, high = 0;
    for (size_t i = 0; i < kBlock; ++i) {
      const Bits bits = load_bits<Float>(blocks, block * kBlock + i);
      const Bits magnitude = bits & Bits(~Float::kSign);
      word |= uint64_t(bits >> kShift) << i;
      low = magnitude < low ? magnitude : low;
      high = magnitude > high ? magnitude : high;
    }
    signs[block] = word;
    found.active |= uint64_t(high != 0) << block;
    found.with_zeros |= uint64_t(low == 0) << block;
    if (high >= Float::kInfinity) found.finite = false;
  }
  return found;
}

template <class Float>
uint64_t zeros(const void* block) {
  using Bits = typename Float::Bits;
  uint64_t found = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    found |= uint64_t(!(load_bits<Float>(block, i) & Bits(~Float::kSign))) << i;
  }
  return found;
}

// The order of these additions is part of the meaning: in a block eight lanes over eight rows, then
// a tree; then block after block.
template <class Float>
double abs_sum(const void* blocks, size_t count, double sum) {
  using Bits = typename Float::Bits;
  for (size_t block = 0; block < count; ++block) {
    typename Float::Arithmetic lanes[8] = {};
    for (size_t i = 0; i < kBlock; ++i) {
      const Bits bits = load_bits<Float>(blocks, block * kBlock + i);
      lanes[i % 8] += Float::value(bits & Bits(~Float::kSign));
    }
    sum += ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
           ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  }
  return sum;
}

template <class Float>
bool blend(const void* state, const void* gradient, size_t blocks, double a, double b,
           double unscale, void* to) {
  using Arithmetic = typename Float::Arithmetic;
  using State = ArithmeticOf<Float>;
  const Arithmetic of_state = Arithmetic(a), of_gradient = Arithmetic(b), u = Arithmetic(unscale);
  typename State::Bits highest = 0;
  for (size_t i = 0; i < blocks * kBlock; ++i) {
    const Arithmetic m = State::value(load_bits<State>(state, i));
    const Arithmetic g = Float::value(load_bits<Float>(gradient, i));
    const auto sum = State::bits(of_state * m + of_gradient * (u * g));
    const auto magnitude = sum & ~State::kSign;
    highest = magnitude > highest ? magnitude : highest;
    store_bits<State>(to, i, magnitude < State::kLeastNormal ? typename State::Bits(0) : sum);
  }
  return highest < State::kInfinity;
}

template <class Float>
bool feed(const void* kept, const void* gradient, size_t blocks, double unscale, float sent,
          bool exact, void* to) {
  using Arithmetic = typename Float::Arithmetic;
  using State = ArithmeticOf<Float>;
  const Arithmetic u = Arithmetic(unscale);
  const auto scale = State::bits(Arithmetic(sent));
  typename State::Bits highest = 0;
  for (size_t block = 0; block < blocks; ++block) {
    const size_t begin = block * kBlock, end = begin + kBlock;
    typename State::Bits any = 0;
    for (size_t i = begin; i < end; ++i) any |= load_bits<State>(kept, i) & ~State::kSign;
    for (size_t i = begin; i < end; ++i) {
      const auto before = load_bits<State>(kept, i);
      const bool silent = !any || (exact && !(before & ~State::kSign));
      const auto cast = silent ? typename State::Bits(0) : scale | (before & State::kSign);
      const Arithmetic left = State::value(before) - State::value(cast);
      const auto sum = State::bits(u * Float::value(load_bits<Float>(gradient, i)) + left);
      const auto magnitude = sum & ~State::kSign;
      highest = magnitude > highest ? magnitude : highest;
      store_bits<State>(to, i, magnitude < State::kLeastNormal ? typename State::Bits(0) : sum);
    }
  }
  return highest < State::kInfinity;
}

template <class Float>
void write(void* out, size_t blocks, const uint64_t* signs, const uint64_t* keep, double scale,
           bool /*past_cache*/) {
  using Bits = typename Float::Bits;
  const Bits positive = Float::bits(typename Float::Arithmetic(scale));
  for (size_t i = 0; i < blocks * kBlock; ++i) {
    const bool negative = signs[i / kBlock] >> i % kBlock & 1;
    const bool kept = keep[i / kBlock] >> i % kBlock & 1;
    const Bits value = negative ? Bits(positive ^ Float::kSign) : positive;
    store_bits<Float>(out, i, kept ? value : Bits(0));
  }
}

void fence() {}

template <class Float>
void apply(void* p, size_t blocks, const uint64_t* signs, const uint64_t* keep, double lr) {
  using Arithmetic = typename Float::Arithmetic;
  const Arithmetic step = Arithmetic(lr);
  for (size_t i = 0; i < blocks * kBlock; ++i) {
    if (!(keep[i / kBlock] >> i % kBlock & 1)) continue;
    const bool negative = signs[i / kBlock] >> i % kBlock & 1;
    const Arithmetic before = Float::value(load_bits<Float>(p, i));
    store_bits<Float>(p, i, Float::bits(before - (negative ? -step : step)));
  }
}

void majority(const Ballots& ballots, const uint64_t* voters, uint64_t* above, uint64_t* equal) {
  for (size_t word = 0; word < ballots.words; ++word) {
    majority_of_word<uint64_t>(ballots, word, voters, above, equal);
  }
}

void signed_majority(const Ballots& ballots, uint64_t* negative, uint64_t* nonzero,
                     uint64_t* tied) {
  for (size_t word = 0; word < ballots.words; ++word) {
    signed_majority_of_word<uint64_t>(ballots, word, negative, nonzero, tied);
  }
}

void weighted_majority(const Ballots& ballots, const Weighing& weighing, uint64_t* negative,
                       uint64_t* nonzero, uint64_t* tied) {
  for (size_t word = 0; word < ballots.words; ++word) {
    weighted_majority_of_word<uint64_t>(ballots, word, weighing, negative, nonzero, tied);
  }
}

uint64_t popcount(const uint64_t* words, size_t count) {
  uint64_t sum = 0;
  for (size_t word = 0; word < count; ++word) sum += uint64_t(__builtin_popcountll(words[word]));
  return sum;
}

bool usable() { return true; }

}  // namespace

const Implementation kScalar = {
    "scalar",
    usable,
    {scan<Float32>, scan<Float64>, scan<Float16>, scan<BFloat16>},
    {zeros<Float32>, zeros<Float64>, zeros<Float16>, zeros<BFloat16>},
    {abs_sum<Float32>, abs_sum<Float64>, abs_sum<Float16>, abs_sum<BFloat16>},
    {blend<Float32>, blend<Float64>, blend<Float16>, blend<BFloat16>},
    {feed<Float32>, feed<Float64>, feed<Float16>, feed<BFloat16>},
    majority,
    signed_majority,
    weighted_majority,
    popcount,
    {write<Float32>, write<Float64>, write<Float16>, write<BFloat16>},
    fence,
    {apply<Float32>, apply<Float64>, apply<Float16>, apply<BFloat16>},
};

}  // namespace hvd_sign
