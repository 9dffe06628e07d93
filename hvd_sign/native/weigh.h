// The weighted majority, bit-sliced (bitslice.h): a vote of weight w is as many votes in the planes
// of w's bits. Everything has internal linkage, as there.
#pragma once

#include "bitslice.h"

namespace hvd_sign {
namespace {

// The planes of a sum of weights, and three more: its sign, and room for votes of the highest bit.
constexpr size_t kSumPlanes = kMaxPlanes + 3;

// Sums the votes vote(ballot), each as often as the size of its weight says. Smaller than
// count_votes(): it is compiled several times in one file, and the compiler stops to inline what is
// beside it when the file grows too much.
template <class W, class Vote>
void weigh_votes(const Weights& weights, Vote vote, W* planes) {
  const size_t used = planes_for(weights.total());
  for (size_t plane = 0; plane < used + 3; ++plane) planes[plane] = W{};
  for (size_t k = 0; k < Weights::kBits; ++k) {
    const auto& ballots = weights.with_bit(k);
    const size_t count = ballots.size();
    W ones = planes[k], twos = planes[k + 1], fours = planes[k + 2];
    const auto add_eights = [&](W carry) {
      for (size_t plane = k + 3; plane < used; ++plane) {
        const W sum = planes[plane] ^ carry;
        carry &= planes[plane];
        planes[plane] = sum;
      }
    };
    size_t first = 0;
    for (; first + 8 <= count; first += 8) {
      const auto each = [&](size_t i) { return vote(ballots[i]); };
      add_eights(add_group<8>(ones, twos, fours, first, each));
    }
    if (first < count) {
      const auto rest = [&](size_t i) { return i < count ? vote(ballots[i]) : W{}; };
      add_eights(add_group<8>(ones, twos, fours, first, rest));
    }
    planes[k] = ones;
    planes[k + 1] = twos;
    planes[k + 2] = fours;
  }
}

// Votes as weighted ones see them: of a negative weight they are inverted.
template <class W>
struct WeightedVotes {
  WeightedVotes(const Ballots& ballots, const Weights& weights, size_t word)
      : ballots(ballots), weights(weights), word(word), blocks(lane_numbers<W>(word)) {}

  W negative(size_t ballot) const { return at(ballots.signs, ballot); }
  W voted(size_t ballot) const {
    const W all = ballots.nonzero ? at(ballots.nonzero, ballot) : ~W{};
    if (!ballots.active) return all;
    return all & spread(load_word(ballots.active + ballot * ballots.stride), blocks);
  }
  W against(size_t ballot) const {
    const W inverted = W{} - uint64_t(weights.value(ballot) < 0);
    return (negative(ballot) ^ inverted) & voted(ballot);
  }

 private:
  W at(const uint8_t* first, size_t ballot) const {
    return load<W>(first + ballot * ballots.stride + word * 8);
  }

  const Ballots& ballots;
  const Weights& weights;
  const size_t word;
  const W blocks;
};

// A weighted sum T of votes, in two's complement, and how it compares with what one vote weighs.
template <class W>
class WeightedSum {
 public:
  // Of the weight `all` of those who voted, `against` is negative: T = all - 2 * against.
  WeightedSum(const W* all, const W* against, size_t used) {
    W carry = ~W{};
    for (size_t plane = 0; plane <= used; ++plane) {
      W sum = plane < used ? all[plane] : W{};
      carry = add(sum, ~(plane ? against[plane - 1] : W{}), carry);
      sum_[plane] = sum;
      if (plane < used) any_ |= sum;
    }
    sign_ = sum_[used];
    any_ |= sign_;
    for (size_t plane = used; plane < Weights::kBits; ++plane) sum_[plane] = sign_;
    for (size_t plane = Weights::kBits; plane < used; ++plane) {
      over_ |= ~sign_ & sum_[plane];
      under_ |= sign_ & ~sum_[plane];
    }
  }

  W negative() const { return sign_; }
  W nonzero() const { return any_; }

  struct Order {
    W more, same;
    W less() const { return ~(more | same); }
  };

  // T beside a weight: outside -16 to 15 it is beyond each; within, five bits tell.
  Order beside(int weight) const {
    Order order{over_, ~(over_ | under_)};
    if (weight < 0) {
      order.more |= order.same & ~sign_;
      order.same &= sign_;
    } else {
      order.same &= ~sign_;
    }
    for (size_t plane = Weights::kBits; plane-- > 0;) {
      if (weight >> plane & 1) {
        order.same &= sum_[plane];
      } else {
        order.more |= order.same & sum_[plane];
        order.same &= ~sum_[plane];
      }
    }
    return order;
  }

 private:
  W sum_[kSumPlanes];
  W sign_{}, any_{}, over_{}, under_{};
};

template <class W>
uint64_t count_bits(W word) {
  uint64_t lanes[sizeof(W) / 8], count = 0;
  std::memcpy(lanes, &word, sizeof word);
  for (const uint64_t lane : lanes) count += uint64_t(__builtin_popcountll(lane));
  return count;
}

// A vote s of weight w agrees with the others, whose sum is T - w s, where s T > w, and is against
// them where s T < w.
template <class W>
void judge(const WeightedSum<W>& sum, const WeightedVotes<W>& votes, const Weighing& weighing,
           W exist) {
  typename WeightedSum<W>::Order orders[2 * Weights::kMost + 1];
  for (const int weight : weighing.weights.distinct()) {
    orders[weight + Weights::kMost] = sum.beside(weight);
  }
  for (size_t ballot = 0; ballot < weighing.weights.count(); ++ballot) {
    const auto& plus = orders[Weights::kMost + weighing.weights.value(ballot)];
    const auto& minus = orders[Weights::kMost - weighing.weights.value(ballot)];
    const W negative = votes.negative(ballot);
    const W tied = (~negative & plus.same) | (negative & minus.same);
    const W agreed = (~negative & plus.more) | (negative & minus.less());
    const W counted = votes.voted(ballot) & exist & ~tied;
    weighing.judged[ballot] += count_bits(counted);
    weighing.agreed[ballot] += count_bits(counted & agreed);
  }
}

template <class W>
void weighted_majority_of_word(const Ballots& ballots, size_t word, const Weighing& weighing,
                               uint64_t* negative, uint64_t* nonzero, uint64_t* tied) {
  const Weights& weights = weighing.weights;
  const size_t used = planes_for(weights.total());
  const WeightedVotes<W> votes(ballots, weights, word);
  W against[kSumPlanes], all[kSumPlanes];
  weigh_votes<W>(weights, [&](size_t ballot) { return votes.against(ballot); }, against);
  W voted{};
  if (ballots.nonzero) {
    weigh_votes<W>(weights, [&](size_t ballot) { return votes.voted(ballot); }, all);
    for (size_t ballot = 0; ballot < ballots.count; ++ballot) voted |= votes.voted(ballot);
  } else {
    const W blocks = lane_numbers<W>(word);
    for (size_t k = 0; k < used; ++k) all[k] = spread(weighing.voters[k], blocks);
    voted = ~W{};
  }
  const WeightedSum<W> sum(all, against, used);
  const W below = sum.negative(), decided = sum.nonzero(), balanced = voted & ~decided;
  std::memcpy(negative + word, &below, sizeof below);
  std::memcpy(nonzero + word, &decided, sizeof decided);
  std::memcpy(tied + word, &balanced, sizeof balanced);
  if (!weighing.judged) return;
  judge(sum, votes, weighing, load<W>(reinterpret_cast<const uint8_t*>(weighing.exist + word)));
}

}  // namespace
}  // namespace hvd_sign
