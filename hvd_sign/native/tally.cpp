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
      : options_(options), coins_(options.key, options.ordinals[0]) {}

  uint64_t word(int64_t block) {
    while (tensor_ + 1 < options_.tensors && options_.first_blocks[tensor_ + 1] <= block) {
      coins_ = Coins(options_.key, options_.ordinals[++tensor_]);
    }
    return coins_.word(uint64_t(block - options_.first_blocks[tensor_]));
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

// How many ballots are active in each of 64 blocks.
void count_voters(const Ballots& ballots, uint64_t* voters) {
  uint64_t planes[kMaxPlanes];
  count_votes<uint64_t>(
      ballots.count,
      [&](size_t ballot) { return load_word(ballots.active + ballot * ballots.stride); }, planes);
  std::fill_n(voters, kChunkBlocks, 0);
  for (size_t plane = 0; plane < planes_for(ballots.count); ++plane) {
    for (size_t b = 0; b < kChunkBlocks; ++b) voters[b] |= (planes[plane] >> b & 1) << plane;
  }
}

// Decides up to 64 blocks, from block `first` of the bucket; `masked`: not all ballots are active
// in all of them.
void decide(const Ballots& ballots, bool masked, const TallyOptions& options, size_t first,
            CoinsOfBucket& coins, Blocks& verdict, TallyResult& result) {
  const Implementation& kernels = active_implementation();
  Ballots seen = ballots;
  if (!masked) seen.active = nullptr;
  uint64_t tied[kChunkBlocks];
  if (options.ties == Ties::zero) {
    kernels.signed_majority(seen, verdict.signs, verdict.nonzero, tied);
  } else {
    uint64_t voters[kChunkBlocks], half[kChunkBlocks];
    if (masked) {
      count_voters(ballots, voters);
    } else {
      std::fill_n(voters, kChunkBlocks, ballots.count);
    }
    for (size_t b = 0; b < kChunkBlocks; ++b) half[b] = voters[b] / 2;
    kernels.majority(seen, half, verdict.signs, tied);
    for (size_t b = 0; b < ballots.words; ++b) {
      if (voters[b] % 2 || voters[b] == 0) tied[b] = 0;
      if (options.ties == Ties::coin && tied[b]) {
        verdict.signs[b] |= tied[b] & coins.word(int64_t(first + b));
      }
    }
  }
  result.ties += kernels.popcount(tied, ballots.words);
}

// Mean over the voters, in rank order; a NaN is no vote.
void mean_of_trailers(const uint8_t* ballots, size_t count, const Geometry& geometry,
                      uint8_t* verdict) {
  for (size_t index = 0; index < geometry.trailer_floats; ++index) {
    const size_t offset = geometry.trailer_offset + index * sizeof(float);
    double sum = 0;
    size_t voters = 0;
    for (size_t ballot = 0; ballot < count; ++ballot) {
      float value;
      std::memcpy(&value, ballots + ballot * geometry.message_bytes + offset, sizeof value);
      if (std::isnan(value)) continue;
      sum += value;
      ++voters;
    }
    const float mean = voters ? float(sum / double(voters)) : 0.0f;
    std::memcpy(verdict + offset, &mean, sizeof mean);
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
    const uint64_t exist = low_bits(words);
    const Activity activity = activity_of(seen);
    Blocks decided;
    decided.active = activity.any & exist;
    decide(seen, (activity.all & exist) != exist, options, first + done, coins, decided, result);
    result.dead_blocks += words - size_t(__builtin_popcountll(decided.active));
    put_blocks(decided, verdict, geometry, done, words);
  }
  mean_of_trailers(ballots, count, geometry, verdict);
  return result;
}

}  // namespace hvd_sign
