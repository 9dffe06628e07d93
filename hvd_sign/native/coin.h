// Coins that are the same on every rank: a word depends on nothing but its key and its place.
#pragma once

#include <cstdint>

namespace hvd_sign {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014; Stafford's variant 13): a bijection.
inline uint64_t mix64(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

enum class CoinStream : uint64_t { zero = 1, tie = 2, node = 3 };

inline uint64_t coin_key(uint64_t seed, CoinStream stream, uint64_t step) {
  return mix64(mix64(mix64(seed + kGolden) + kGolden * uint64_t(stream)) ^ mix64(step + kGolden));
}

// The coins of one tensor: SplitMix64 at any place of its sequence.
struct Coins {
  Coins(uint64_t key, uint64_t ordinal) : start(mix64(key ^ mix64(ordinal + kGolden))) {}
  // The coins of a block of the tensor; bit i belongs to coordinate i.
  uint64_t word(uint64_t block) const { return mix64(start + kGolden * (block + 1)); }

  uint64_t start;
};

}  // namespace hvd_sign
