// Counting votes without unpacking them: plane k holds bit k of 64 counters in each word, and
// carry-save adders put ballots into the planes (Harley and Seal). W is uint64_t or a vector of
// it: only operators that both have are used, so one text serves every instruction set.
//
// Everything has internal linkage: each instruction set's file gets its own copy.
#pragma once

#include "implementation.h"

namespace hvd_sign {
namespace {

constexpr size_t kMaxPlanes = 32;

inline size_t planes_for(size_t count) {
  size_t planes = 0;
  for (; count; count >>= 1) ++planes;
  return planes;
}

template <class W>
W load(const uint8_t* from) {
  W word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

// The number of the block in each lane of a word that begins at block `first`.
template <class W>
W lane_numbers(size_t first) {
  uint64_t numbers[sizeof(W) / 8];
  for (size_t lane = 0; lane < sizeof(W) / 8; ++lane) numbers[lane] = first + lane;
  return load<W>(reinterpret_cast<const uint8_t*>(numbers));
}

// All ones in the lanes whose block has a 1 in `bits`, where bit b is block b.
template <class W>
W spread(uint64_t bits, W blocks) {
  return -((W{} + bits) >> blocks & 1);
}

// The votes of one word of each ballot: of one block, or of as many as W has lanes.
template <class W>
struct Votes {
  Votes(const Ballots& ballots, size_t word)
      : ballots(ballots), word(word), blocks(lane_numbers<W>(word)) {}

  W plane(const uint8_t* first, size_t ballot) const {
    const size_t offset = ballot * ballots.stride;
    const W votes = load<W>(first + offset + word * 8);
    if (!ballots.active) return votes;
    return votes & spread(load_word(ballots.active + offset), blocks);
  }
  W negative(size_t ballot) const { return plane(ballots.signs, ballot); }
  W nonzero(size_t ballot) const { return plane(ballots.nonzero, ballot); }
  W negative_nonzero(size_t ballot) const { return negative(ballot) & nonzero(ballot); }

  const Ballots& ballots;
  const size_t word;
  const W blocks;
};

// sum of three bits: returns the carry, leaves the sum in a
template <class W>
W add(W& a, W b, W c) {
  const W half = a ^ b;
  const W carry = (a & b) | (half & c);
  a = half ^ c;
  return carry;
}

// Adds N <= 8 votes to counters modulo 8 and returns the carry of weight 8.
template <size_t N, class W, class Vote>
W add_group(W& ones, W& twos, W& fours, size_t first, Vote vote) {
  const auto get = [&](size_t i) { return i < N ? vote(first + i) : W{}; };
  W two_a = add(ones, get(0), get(1));
  const W two_b = add(ones, get(2), get(3));
  const W four_a = add(twos, two_a, two_b);
  two_a = add(ones, get(4), get(5));
  const W two_c = add(ones, get(6), get(7));
  const W four_b = add(twos, two_a, two_c);
  return add(fours, four_a, four_b);
}

// Counts the votes vote(0), ..., vote(count - 1) into planes[0 .. planes_for(count) - 1].
template <class W, class Vote>
void count_votes(size_t count, Vote vote, W* planes) {
  const size_t used = planes_for(count);
  for (size_t plane = 3; plane < used; ++plane) planes[plane] = W{};
  const auto add_eights = [&](W carry) {
    for (size_t plane = 3; plane < used; ++plane) {
      const W sum = planes[plane] ^ carry;
      carry &= planes[plane];
      planes[plane] = sum;
    }
  };
  W ones{}, twos{}, fours{};
  size_t first = 0;
  for (; first + 8 <= count; first += 8) {
    add_eights(add_group<8>(ones, twos, fours, first, vote));
  }
  switch (count - first) {
    case 1:
      add_eights(add_group<1>(ones, twos, fours, first, vote));
      break;
    case 2:
      add_eights(add_group<2>(ones, twos, fours, first, vote));
      break;
    case 3:
      add_eights(add_group<3>(ones, twos, fours, first, vote));
      break;
    case 4:
      add_eights(add_group<4>(ones, twos, fours, first, vote));
      break;
    case 5:
      add_eights(add_group<5>(ones, twos, fours, first, vote));
      break;
    case 6:
      add_eights(add_group<6>(ones, twos, fours, first, vote));
      break;
    case 7:
      add_eights(add_group<7>(ones, twos, fours, first, vote));
      break;
  }
  planes[0] = ones;
  planes[1] = twos;
  planes[2] = fours;
}

template <class W>
void majority_of_word(const Ballots& ballots, size_t word, const uint64_t* voters, uint64_t* above,
                      uint64_t* equal) {
  W planes[kMaxPlanes];
  const Votes<W> votes(ballots, word);
  count_votes<W>(ballots.count, [&](size_t ballot) { return votes.negative(ballot); }, planes);
  // Half the voters, rounded down, is their number one plane lower.
  const size_t used = planes_for(ballots.count);
  W more{}, same = ~planes[used - 1];
  for (size_t plane = used - 1; plane-- > 0;) {
    const W half = spread(voters[plane + 1], votes.blocks);
    more |= same & planes[plane] & ~half;
    same &= ~(planes[plane] ^ half);
  }
  more |= planes[used - 1];
  std::memcpy(above + word, &more, sizeof more);
  std::memcpy(equal + word, &same, sizeof same);
}

template <class W>
void signed_majority_of_word(const Ballots& ballots, size_t word, uint64_t* negative,
                             uint64_t* nonzero, uint64_t* tied) {
  W negatives[kMaxPlanes], all[kMaxPlanes];
  const Votes<W> votes(ballots, word);
  count_votes<W>(
      ballots.count, [&](size_t ballot) { return votes.negative_nonzero(ballot); }, negatives);
  count_votes<W>(ballots.count, [&](size_t ballot) { return votes.nonzero(ballot); }, all);
  // Twice the negatives against all votes; the bits of the double are one plane up.
  const size_t used = planes_for(ballots.count);
  W more = negatives[used - 1], same = ~more, any{};
  for (size_t plane = used; plane-- > 0;) {
    const W twice = plane ? negatives[plane - 1] : W{};
    more |= same & twice & ~all[plane];
    same &= ~(twice ^ all[plane]);
    any |= all[plane];
  }
  const W decided = ~same;
  const W balanced = same & any;
  std::memcpy(negative + word, &more, sizeof more);
  std::memcpy(nonzero + word, &decided, sizeof decided);
  std::memcpy(tied + word, &balanced, sizeof balanced);
}

}  // namespace
}  // namespace hvd_sign
