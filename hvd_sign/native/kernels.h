// What the kernels do, whatever the instruction set. Depends on neither Python nor MPI. Layout and
// meaning of the bits are at the top of message.h. Throws std::invalid_argument.
#pragma once

#include <string>
#include <vector>

#include "message.h"

namespace hvd_sign {

enum class Dtype { float32, float64, float16, bfloat16 };
constexpr size_t kDtypes = 4;

inline size_t bytes_of(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

// The type of a state beside a gradient of this type.
inline Dtype arithmetic_of(Dtype dtype) {
  return dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32;
}

struct PackOptions {
  Ties ties;
  uint64_t key;      // of the coins that decide zeros
  bool parity;       // inverts those coins, so that zeros of two ranks cancel
  uint64_t ordinal;  // of the tensor
  bool want_abs;
  uint64_t block = 0;  // of the tensor, at which the signal begins: a multiple of a chunk's
};

struct PackResult {
  uint64_t nonfinite_chunks = 0;
  uint64_t finite_coordinates = 0;  // in chunks without NaN and infinity
  double abs_sum = 0;               // over those coordinates

  // The mean of the absolute values as it travels in a trailer; 0 where there are none.
  float mean_abs() const;
};

// Packs one tensor of `count` coordinates into the blocks from `first_block` of the bucket. A chunk
// scale is the mean absolute value over the coordinates of the chunk's active blocks.
PackResult pack(const void* signal, Dtype dtype, size_t count, uint8_t* messages,
                const Geometry& geometry, size_t first_block, const PackOptions& options);

// A signal and a next state that are linear in the state m and the gradient g:
// s = a m + b (u g) and m' = c m + d (u g). All is rounded to the type of the arithmetic, each
// factor and after each operation: float64 beside a float64 gradient, else float32. An s or m'
// below the normal numbers is 0, so that a state that nothing feeds comes to rest.
struct Linear {
  double a, b, c, d;
  double unscale;  // u
};

// Error feedback (Karimireddy et al. 2019, arXiv 1901.09847): what is packed is p = s + e, where
// the residual e = p' - sent * cast is what the ballot of the step before, of p', left unsaid. cast
// is the sign bit of p', of a zero too; 0 in a block of zeros alone, and of a zero under
// Ties::zero. p, of the arithmetic's type and 0 below the normal numbers, is kept with what was
// cast for a zero as its sign.
struct Feedback {
  const void* kept = nullptr;  // p'; null: there is no feedback
  void* next = nullptr;        // p; may be `kept`, else it is memory apart
  // By the tensor's chunks: the scale that they were sent with; then, in those that voted, the
  // chunk scale, or NaN where messages have none, for it is not known yet, and in others what it
  // was. May be the same memory.
  const float* sent = nullptr;
  float* next_sent = nullptr;
};

// Packs such a signal, in the same pass in which the state, of the arithmetic's type, becomes the
// next one. A chunk with a NaN or an infinity in s, m' or p abstains, and its state stays.
// `gradient` null: zeros. `state` null: zeros; `next` null: it is not kept. `next` may be `state`,
// else it is memory apart.
PackResult pack_linear(const void* gradient, Dtype dtype, size_t count, const void* state,
                       void* next, const Linear& linear, const Feedback& feedback,
                       uint8_t* messages, const Geometry& geometry, size_t first_block,
                       const PackOptions& options);

// Clears the words and activity bits of `count` blocks.
void abstain(uint8_t* messages, const Geometry& geometry, size_t first_block, size_t count);

// The weights of ballots, small whole numbers, by their bits: what they cost is their 1 bits.
class Weights {
 public:
  static constexpr int kMost = 15;
  static constexpr size_t kBits = 4;

  // Throws std::invalid_argument on a weight beyond -kMost to kMost.
  void assign(const int8_t* weights, size_t count);

  size_t count() const { return values_.size(); }
  int value(size_t ballot) const { return values_[ballot]; }
  uint64_t total() const { return total_; }  // of their sizes
  // The ballots whose weight's size has bit k.
  const std::vector<uint32_t>& with_bit(size_t k) const { return with_bit_[k]; }
  // Each weight that occurs, and its negative.
  const std::vector<int>& distinct() const { return distinct_; }

 private:
  std::vector<int8_t> values_;
  std::vector<uint32_t> with_bit_[kBits];
  std::vector<int> distinct_;
  uint64_t total_ = 0;
};

struct TallyOptions {
  size_t shard;
  Ties ties;
  uint64_t key;  // of the coins that decide ties
  // Tensor t begins at block first_blocks[t] of the bucket; ascending, the first may be negative.
  const int64_t* first_blocks;
  const uint64_t* ordinals;
  size_t tensors;
  bool parity = false;  // inverts those coins, so that ties of two nodes cancel

  // Null: each ballot has one vote. With weights, V = sign(sum of weight * vote), and a block whose
  // voters all weigh 0 is tied.
  const Weights* weights = nullptr;
  // With weights: the tensors' coordinates. Bits past a tensor's end are no votes.
  const uint64_t* lengths = nullptr;
  // With weights, for each ballot, null or both: adds the coordinates that it voted on and the
  // others decided, and those of them in which it voted as they did. The others' ties judge nobody.
  uint64_t* judged = nullptr;
  uint64_t* agreed = nullptr;

  // Null: ballots are counted. Else, by tensor, with their coordinates in `lengths`, and chunk
  // scales: the verdict is the signs and scales of p = s + e, where s is the mean over all ballots
  // of scale * vote, 0 of those who abstained, and e what the verdict of the step before left
  // unsaid; float32. A chunk in which nobody voted has no verdict, and its e stays. A scale that is
  // no number above 0 counts as 0, a sum beyond the numbers as the largest, and what is below the
  // normal numbers as 0, sum by sum.
  const Feedback* unsaid = nullptr;
};

struct TallyResult {
  uint64_t ties = 0;         // coordinates with as many votes for either sign, and at least one
  uint64_t dead_blocks = 0;  // blocks in which nobody was active
};

// Tallies `count` ballots, one after another, of one shard into its verdict. Writes no header.
TallyResult tally(const uint8_t* ballots, size_t count, const Geometry& geometry, uint8_t* verdict,
                  const TallyOptions& options);

// out = scale * V and p -= lr * V, for the verdict V of `count` coordinates from `first_block`,
// times its chunk's scale where messages have those. A scale beyond the numbers of the output's
// type becomes the largest of them: never an infinity.
void write_verdict(void* out, Dtype dtype, size_t count, const uint8_t* messages,
                   const Geometry& geometry, size_t first_block, double scale);
void apply_verdict(void* p, Dtype dtype, size_t count, const uint8_t* messages,
                   const Geometry& geometry, size_t first_block, double lr);

// Names of the implementations that this machine can run, best first.
std::vector<std::string> implementations();
std::string implementation();
void set_implementation(const std::string& name);

}  // namespace hvd_sign
