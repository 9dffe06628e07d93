#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "coin.h"
#include "implementation.h"
#include "weigh.h"

namespace hvd_sign {
namespace {

// Walks through a bucket's blocks upwards and knows each one's coins, or how much of it is a
// tensor.
class CoinsOfBucket {
 public:
  explicit CoinsOfBucket(const TallyOptions& options)
      : options_(options), coins_(options.key, options.tensors ? options.ordinals[0] : 0) {}

  uint64_t word(int64_t block) {
    const uint64_t coins = coins_.word(within(block));
    return options_.parity ? ~coins : coins;
  }

  uint64_t exist(int64_t block) {
    const uint64_t before = within(block) * kBlock, length = options_.lengths[tensor_];
    return before < length ? low_bits(length - before) : 0;
  }

 private:
  // The block's number in its tensor.
  uint64_t within(int64_t block) {
    while (tensor_ + 1 < options_.tensors && options_.first_blocks[tensor_ + 1] <= block) {
      coins_ = Coins(options_.key, options_.ordinals[++tensor_]);
    }
    return uint64_t(block - options_.first_blocks[tensor_]);
  }

  const TallyOptions& options_;
  Coins coins_;
  size_t tensor_ = 0;
};

struct Activity {
  uint64_t any = 0;
  uint64_t all = ~0ull;
};

Activity activity_of(const Ballots& ballots) {
  Activity activity;
  for (size_t ballot = 0; ballot < ballots.count; ++ballot) {
    const uint64_t word = load_word(ballots.active + ballot * ballots.stride);
    activity.any |= word;
    activity.all &= word;
  }
  return activity;
}

// Decides up to 64 blocks, from block `first` of the bucket.
void decide(const Ballots& ballots, const Activity& activity, const TallyOptions& options,
            size_t first, CoinsOfBucket& coins, Blocks& verdict, TallyResult& result) {
  const Implementation& kernels = active_implementation();
  const uint64_t exist = low_bits(ballots.words);
  const bool full = (activity.all & exist) == exist;
  Ballots seen = ballots;
  if (full) seen.active = nullptr;
  uint64_t tied[kChunkBlocks];
  if (options.ties == Ties::zero) {
    kernels.signed_majority(seen, verdict.signs, verdict.nonzero, tied);
    result.ties += kernels.popcount(tied, ballots.words);
    return;
  }

  uint64_t voters[kMaxPlanes];
  if (full) {
    for (size_t k = 0; k < planes_for(ballots.count); ++k) voters[k] = -(ballots.count >> k & 1);
  } else {
    const auto active = [&](size_t i) { return load_word(ballots.active + i * ballots.stride); };
    count_votes<uint64_t>(ballots.count, active, voters);
  }
  kernels.majority(seen, voters, verdict.signs, tied);
  // Half of an odd number, rounded down, is no tie, and half of no voters is none.
  const uint64_t even = ~voters[0] & activity.any & exist;
  if (!even) return;
  for (uint64_t left = exist & ~even; left; left &= left - 1) tied[__builtin_ctzll(left)] = 0;
  result.ties += kernels.popcount(tied, ballots.words);
  if (options.ties != Ties::coin) return;
  for (size_t b = 0; b < ballots.words; ++b) {
    if (tied[b]) verdict.signs[b] |= tied[b] & coins.word(int64_t(first + b));
  }
}

// The same with weights. What lies past a tensor's end is decided as 0 votes would be.
void decide_weighted(Ballots ballots, const Activity& activity, const TallyOptions& options,
                     size_t first, CoinsOfBucket& coins, CoinsOfBucket& tensors, Blocks& verdict,
                     TallyResult& result) {
  const Weights& weights = *options.weights;
  uint64_t voters[kSumPlanes], exist[kChunkBlocks], tied[kChunkBlocks];
  for (size_t b = 0; b < ballots.words; ++b) exist[b] = tensors.exist(int64_t(first + b));
  const auto active = [&](size_t i) { return load_word(ballots.active + i * ballots.stride); };
  weigh_votes<uint64_t>(weights, active, voters);
  const Weighing weighing{weights, voters, exist, options.judged, options.agreed};
  const uint64_t here = low_bits(ballots.words);
  if ((activity.all & here) == here) ballots.active = nullptr;
  if (options.ties != Ties::zero) ballots.nonzero = nullptr;
  active_implementation().weighted_majority(ballots, weighing, verdict.signs, verdict.nonzero,
                                            tied);
  for (size_t b = 0; b < ballots.words; ++b) {
    tied[b] &= activity.any >> b & 1 ? exist[b] : 0;
    verdict.signs[b] &= exist[b];
    verdict.nonzero[b] &= exist[b];
    if (options.ties == Ties::coin && tied[b]) {
      verdict.signs[b] |= tied[b] & coins.word(int64_t(first + b));
    }
  }
  result.ties += active_implementation().popcount(tied, ballots.words);
}

// The median of the voters' means, the lower middle one of an even number. One voter among them
// moves it to a neighbour in their order at most; the mean of two middle ones would leave it in the
// hands of each of two voters, and a step too short mends itself, while one too long does not.
// 0 is no vote, for that voter was active in no block; nor is what no sound voter sends.
void median_of_trailers(const uint8_t* ballots, size_t count, const Geometry& geometry,
                        uint8_t* verdict) {
  thread_local std::vector<float> means;  // kept, so that later votes allocate nothing
  for (size_t index = 0; index < geometry.trailer_floats; ++index) {
    const size_t offset = geometry.trailer_offset + index * sizeof(float);
    means.clear();
    for (size_t ballot = 0; ballot < count; ++ballot) {
      float value;
      std::memcpy(&value, ballots + ballot * geometry.message_bytes + offset, sizeof value);
      if (value > 0 && std::isfinite(value)) means.push_back(value);
    }
    float median = 0;
    if (!means.empty()) {
      const auto middle = means.begin() + ptrdiff_t((means.size() - 1) / 2);
      std::nth_element(means.begin(), middle, means.end());
      median = *middle;
    }
    std::memcpy(verdict + offset, &median, sizeof median);
  }
}

// Says the mean of what one chunk's ballots say, and what was left unsaid before.
void average(const uint8_t* ballots, size_t count, const Geometry& geometry, size_t block,
             size_t coordinates, const Feedback& unsaid, const PackOptions& packing,
             uint8_t* verdict) {
  const auto write = active_implementation().write[size_t(Dtype::float32)];
  const auto blend = active_implementation().blend[size_t(Dtype::float32)];
  const size_t blocks = (coordinates + kBlock - 1) / kBlock;
  alignas(64) float sums[kChunk], said[kChunk];
  bool any = false, finite = true;
  for (size_t ballot = 0; ballot < count; ++ballot) {
    Blocks votes;
    get_blocks(votes, ballots + ballot * geometry.message_bytes, geometry, block, kChunkBlocks);
    if (!votes.active || !(votes.scale > 0) || !std::isfinite(votes.scale)) continue;
    uint64_t keep[kChunkBlocks];
    for (size_t b = 0; b < blocks; ++b) {
      keep[b] = votes.active >> b & 1 ? (geometry.nonzero ? votes.nonzero[b] : ~0ull) : 0;
    }
    write(any ? said : sums, blocks, votes.signs, keep, votes.scale, false);
    if (any) finite &= blend(sums, said, blocks, 1, 1, 1, sums);
    any = true;
  }
  if (!any) std::fill_n(sums, blocks * kBlock, 0.0f);
  if (!finite) {
    constexpr float kLargest = std::numeric_limits<float>::max();
    for (size_t i = 0; i < blocks * kBlock; ++i) {
      sums[i] = std::min(std::max(sums[i], -kLargest), kLargest);
    }
  }
  if ((count & (count - 1)) == 0) {  // the same to the bit, and faster
    blend(sums, sums, blocks, 1.0 / double(count), 0, 1, sums);
  } else {
    for (size_t i = 0; i < blocks * kBlock; ++i) sums[i] /= float(count);
  }
  pack_linear(sums, Dtype::float32, coordinates, nullptr, nullptr, {0, 1, 0, 0, 1}, unsaid, verdict,
              geometry, block, packing);
}

// Decides a shard by the mean of its ballots, chunk by chunk.
TallyResult tally_means(const uint8_t* ballots, size_t count, const Geometry& geometry,
                        uint8_t* verdict, const TallyOptions& options) {
  TallyResult result;
  const size_t first = options.shard * geometry.shard_blocks;
  const size_t blocks = geometry.blocks_in(options.shard);
  size_t tensor = 0;
  for (size_t done = 0; done < blocks; done += kChunkBlocks) {
    const int64_t at = int64_t(first + done);
    while (tensor + 1 < options.tensors && options.first_blocks[tensor + 1] <= at) ++tensor;
    const size_t block = size_t(at - options.first_blocks[tensor]), start = block * kBlock;
    const size_t coordinates = std::min(kChunk, size_t(options.lengths[tensor]) - start);
    uint64_t active = 0;
    for (size_t ballot = 0; ballot < count; ++ballot) {
      active |=
          load_word(ballots + ballot * geometry.message_bytes + geometry.active_offset + done / 8);
    }
    const Feedback& whole = options.unsaid[tensor];
    const size_t chunk = block / kChunkBlocks;
    const Feedback here{static_cast<const float*>(whole.kept) + start,
                        static_cast<float*>(whole.next) + start, whole.sent + chunk,
                        whole.next_sent + chunk};
    if (active) {
      average(ballots, count, geometry, done, coordinates, here,
              {options.ties, options.key, options.parity, options.ordinals[tensor], false, block},
              verdict);
    } else {
      put_blocks(Blocks{}, verdict, geometry, done, kChunkBlocks);
      if (here.next != here.kept) std::memcpy(here.next, here.kept, coordinates * sizeof(float));
      *here.next_sent = *here.sent;
      result.dead_blocks += (coordinates + kBlock - 1) / kBlock;
    }
  }
  return result;
}

}  // namespace

void Weights::assign(const int8_t* weights, size_t count) {
  values_.assign(weights, weights + count);
  for (auto& ballots : with_bit_) ballots.clear();
  distinct_.clear();
  total_ = 0;
  bool seen[2 * kMost + 1] = {};
  for (size_t ballot = 0; ballot < count; ++ballot) {
    const int weight = weights[ballot], size = std::abs(weight);
    if (size > kMost) {
      throw std::invalid_argument("tally: weights: expected numbers from -15 to 15, got " +
                                  std::to_string(weight));
    }
    seen[kMost + weight] = seen[kMost - weight] = true;
    total_ += uint64_t(size);
    for (size_t k = 0; k < kBits; ++k) {
      if (size >> k & 1) with_bit_[k].push_back(uint32_t(ballot));
    }
  }
  for (int weight = -kMost; weight <= kMost; ++weight) {
    if (seen[kMost + weight]) distinct_.push_back(weight);
  }
}

TallyResult tally(const uint8_t* ballots, size_t count, const Geometry& geometry, uint8_t* verdict,
                  const TallyOptions& options) {
  if (options.unsaid) return tally_means(ballots, count, geometry, verdict, options);
  TallyResult result;
  CoinsOfBucket coins(options), tensors(options);
  // The verdict is one message by itself: as if the bucket had only this shard's blocks.
  const size_t first = options.shard * geometry.shard_blocks;
  const size_t blocks = geometry.blocks_in(options.shard);
  for (size_t done = 0; done < blocks; done += kChunkBlocks) {
    const size_t words = std::min(kChunkBlocks, blocks - done);
    const size_t plane = done * 8;
    const Ballots seen{ballots + geometry.signs_offset + plane,
                       ballots + geometry.nonzero_offset + plane,
                       ballots + geometry.active_offset + done / 8,
                       geometry.message_bytes,
                       count,
                       words};
    const Activity activity = activity_of(seen);
    Blocks decided;
    decided.active = activity.any & low_bits(words);
    if (options.weights) {
      decide_weighted(seen, activity, options, first + done, coins, tensors, decided, result);
    } else {
      decide(seen, activity, options, first + done, coins, decided, result);
    }
    result.dead_blocks += words - size_t(__builtin_popcountll(decided.active));
    put_blocks(decided, verdict, geometry, done, words);
  }
  median_of_trailers(ballots, count, geometry, verdict);
  return result;
}

}  // namespace hvd_sign
