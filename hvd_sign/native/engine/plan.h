// How a bucket is cut into segments that follow one another through the pipeline, and the buffers
// that they travel in. Does not depend on Python.
#pragma once

#include <vector>

#include "../kernels.h"
#include "wire.h"

namespace hvd_sign {

// A tensor of the bucket.
struct Tensor {
  size_t first_block;  // in the bucket
  size_t count;        // coordinates
  uint64_t ordinal;
};

// A run of one tensor's blocks within a segment of the pipeline.
struct Piece {
  size_t tensor;
  size_t block;   // of the tensor, at which the piece begins: a multiple of 64
  size_t first;   // block of the segment
  size_t blocks;  // how many
  size_t count;   // coordinates
};

// A run of one piece's blocks that one thread works on.
struct Part {
  size_t piece;
  size_t block;  // of the tensor: a multiple of 64
  size_t first;  // block of the segment
  size_t count;  // coordinates
};

// What is packed, sent, tallied and applied in one go. The last segment of a scaled bucket has no
// blocks: it carries the tensors' scales, which are known when all else is packed.
struct Segment {
  Segment(size_t first_block, std::vector<Piece> pieces, const std::vector<Tensor>& tensors,
          const Geometry& geometry);

  size_t first_block;  // of the bucket
  std::vector<Piece> pieces;
  std::vector<Part> parts;  // of all pieces, in their order; the same for any number of threads
  // Which parts may be packed at the same time, and which only alone: blocks of a message share
  // bytes of its bitmap, so between any two of the former there is a strip of the latter.
  std::vector<size_t> shared, alone;
  Geometry geometry;
  std::vector<int64_t> first_blocks;  // of the pieces' tensors, counted from the segment's start
  std::vector<uint64_t> ordinals;
  std::vector<uint64_t> lengths;
};

// Which voters tally each shard, in ascending order; the first of them tells the others.
using Owners = std::vector<std::vector<size_t>>;

struct PlanSettings {
  Ties ties;
  Owners owners;
  bool scaled;
  size_t rank;
  size_t voters;
  uint32_t stream;
  uint32_t bucket;
  size_t segment_blocks;  // aimed at
  size_t depth;           // segments in flight at most
  bool counted = false;   // verdicts carry how often each voter agreed with the others
  bool averaged = false;  // they are means, see TallyOptions::unsaid
};

// A segment under way: its buffers, made once.
struct SegmentBuffers {
  std::vector<uint8_t> ballots, received, verdict, verdicts;
  Pending pending;  // what is under way
  bool busy = false;
};

// Checks what a plan is made of, as it comes from outside. Throws std::invalid_argument, naming the
// first argument that does not fit: the tensors must fill the bucket, one after another, and where
// verdicts are means each from a whole chunk on.
void check_plan(const std::vector<Tensor>& tensors, size_t blocks, const PlanSettings& settings);

class Plan {
 public:
  // Arguments that check_plan() lets pass. `ballots` and `verdicts` hold the whole bucket in one
  // message each: the ballots of tensors that were packed elsewhere, and the verdict for those who
  // take it later.
  Plan(std::vector<Tensor> tensors, size_t blocks, const PlanSettings& settings, uint8_t* ballots,
       uint8_t* verdicts);

  const std::vector<Tensor> tensors;
  const PlanSettings settings;
  const Geometry whole;
  uint8_t* const ballots;
  uint8_t* const verdicts;
  std::vector<Segment> segments;
  std::vector<SegmentBuffers> buffers;
  std::vector<float> scales;

  // How messages meet: each shard has one owner, voter by voter; all own the only shard; or else
  // messages go from pair to pair.
  enum class Way { sharded, gathered, delivered };
  const Way way;
  const std::vector<size_t> mine;        // shards that this voter tallies
  const std::vector<uint32_t> speakers;  // of each shard: who tells its verdict

  size_t shards() const { return settings.owners.size(); }
  bool owns(size_t shard, size_t voter) const;
  size_t scales_per_message() const { return scales_per_message_; }

  // Where, in a message's trailer, stand how many coordinates each voter was judged on and in how
  // many it agreed: two times as many numbers as there are voters.
  uint64_t* counts(uint8_t* message, const Geometry& geometry) const;

 private:
  Geometry geometry_of(size_t blocks, size_t scales) const;

  size_t scales_per_message_;
};

}  // namespace hvd_sign
