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

// All ones in the lanes where bit `bit` (a number, or a number for each lane) of `of` is set.
template <class W, class Bit>
W spread(W of, Bit bit) {
  return -(of >> bit & 1);
}

template <class W>
struct Vote {
  const Ballots& ballots;
  size_t word;  // the first block of W

  W plane(const uint8_t* first, size_t ballot) const {
    const uint8_t* at = first + ballot * ballots.stride;
    W votes = load<W>(at + word * 8);
    if (ballots.active) {
      const uint64_t active = load_word(ballots.active + ballot * ballots.stride);
      votes &= spread(W{} + active, lane_numbers<W>(word));
    }
    return votes;
  }
  W negative(size_t ballot) const { return plane(ballots.signs, ballot); }
  W nonzero(size_t ballot) const { return plane(ballots.nonzero, ballot); }
  W negative_nonzero(size_t ballot) const { return negative(ballot) & nonzero(ballot); }
};

// sum of three bits: returns the carry, leaves the sum in a
template <class W>
W add(W& a, W b, W c) {
  const W half = a ^ b;
  const W carry = (a & b) | (half & c);
  a = half ^ c;
  return carry;
}

// Adds `carry` to the counters from plane `from` on.
template <class W>
void ripple(W* planes, size_t from, size_t count, W carry) {
  for (size_t plane = from; plane < count; ++plane) {
    const W sum = planes[plane] ^ carry;
    carry &= planes[plane];
    planes[plane] = sum;
  }
}

inline size_t planes_for(size_t count) {
  size_t planes = 0;
  for (; count; count >>= 1) ++planes;
  return planes;
}

// Counts the votes of `count` ballots into planes[0 .. planes_for(count) - 1].
template <class W, class Votes>
void count_votes(size_t count, Votes votes, W* planes) {
  const size_t used = planes_for(count);
  for (size_t plane = 0; plane < used; ++plane) planes[plane] = W{};
  size_t ballot = 0;
  if (count >= 8) {
    W ones{}, twos{}, fours{};
    for (; ballot + 8 <= count; ballot += 8) {
      W two_a = add(ones, votes(ballot), votes(ballot + 1));
      const W two_b = add(ones, votes(ballot + 2), votes(ballot + 3));
      W four_a = add(twos, two_a, two_b);
      two_a = add(ones, votes(ballot + 4), votes(ballot + 5));
      const W two_c = add(ones, votes(ballot + 6), votes(ballot + 7));
      const W four_b = add(twos, two_a, two_c);
      ripple(planes, 3, used, add(fours, four_a, four_b));
    }
    planes[0] = ones;
    planes[1] = twos;
    planes[2] = fours;
  }
  for (; ballot < count; ++ballot) ripple(planes, 0, used, votes(ballot));
}

template <class W>
void majority_of_word(const Ballots& ballots, size_t word, const uint64_t* half, uint64_t* above,
                      uint64_t* equal) {
  W planes[kMaxPlanes];
  const Vote<W> vote{ballots, word};
  count_votes<W>(ballots.count, [&](size_t ballot) { return vote.negative(ballot); }, planes);
  const W threshold = load<W>(reinterpret_cast<const uint8_t*>(half + word));
  W more{}, same = ~W{};
  for (size_t plane = planes_for(ballots.count); plane-- > 0;) {
    const W bit = spread(threshold, plane);
    more |= same & planes[plane] & ~bit;
    same &= ~(planes[plane] ^ bit);
  }
  std::memcpy(above + word, &more, sizeof more);
  std::memcpy(equal + word, &same, sizeof same);
}

template <class W>
void signed_majority_of_word(const Ballots& ballots, size_t word, uint64_t* negative,
                             uint64_t* nonzero, uint64_t* tied) {
  W negatives[kMaxPlanes], votes[kMaxPlanes];
  const Vote<W> vote{ballots, word};
  count_votes<W>(
      ballots.count, [&](size_t ballot) { return vote.negative_nonzero(ballot); }, negatives);
  count_votes<W>(ballots.count, [&](size_t ballot) { return vote.nonzero(ballot); }, votes);
  // Twice the negatives against all votes; the bits of the double are one plane up.
  const size_t used = planes_for(ballots.count);
  W more = negatives[used - 1], same = ~more, any{};
  for (size_t plane = used; plane-- > 0;) {
    const W twice = plane ? negatives[plane - 1] : W{};
    more |= same & twice & ~votes[plane];
    same &= ~(twice ^ votes[plane]);
    any |= votes[plane];
  }
  const W decided = ~same;
  const W balanced = same & any;
  std::memcpy(negative + word, &more, sizeof more);
  std::memcpy(nonzero + word, &decided, sizeof decided);
  std::memcpy(tied + word, &balanced, sizeof balanced);
}

}  // namespace
}  // namespace hvd_sign
