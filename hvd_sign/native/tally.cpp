#include <algorithm>
#include <cmath>

#include "bitslice.h"
#include "coin.h"
#include "implementation.h"

namespace hvd_sign {
namespace {

// Walks through a bucket's blocks upwards and knows each one's coins.
class CoinsOfBucket {
 public:
  explicit CoinsOfBucket(const TallyOptions& options)
      : options_(options), coins_(options.key, options.tensors ? options.ordinals[0] : 0) {}

  uint64_t word(int64_t block) {
    while (tensor_ + 1 < options_.tensors && options_.first_blocks[tensor_ + 1] <= block) {
      coins_ = Coins(options_.key, options_.ordinals[++tensor_]);
    }
    const uint64_t coins = coins_.word(uint64_t(block - options_.first_blocks[tensor_]));
    return options_.parity ? ~coins : coins;
  }

 private:
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

}  // namespace

TallyResult tally(const uint8_t* ballots, size_t count, const Geometry& geometry, uint8_t* verdict,
                  const TallyOptions& options) {
  TallyResult result;
  CoinsOfBucket coins(options);
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
    decide(seen, activity, options, first + done, coins, decided, result);
    result.dead_blocks += words - size_t(__builtin_popcountll(decided.active));
    put_blocks(decided, verdict, geometry, done, words);
  }
  median_of_trailers(ballots, count, geometry, verdict);
  return result;
}

}  // namespace hvd_sign
