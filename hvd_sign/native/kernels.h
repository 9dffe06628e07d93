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

struct PackOptions {
  Ties ties;
  uint64_t key;      // of the coins that are cast for zeros
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

// Packs one tensor of `count` coordinates into the blocks from `first_block` of the bucket.
PackResult pack(const void* signal, Dtype dtype, size_t count, uint8_t* messages,
                const Geometry& geometry, size_t first_block, const PackOptions& options);

// Clears the words and activity bits of `count` blocks.
void abstain(uint8_t* messages, const Geometry& geometry, size_t first_block, size_t count);

struct TallyOptions {
  size_t shard;
  Ties ties;
  uint64_t key;  // of the coins that decide ties
  // Tensor t begins at block first_blocks[t] of the bucket; ascending, the first may be negative.
  const int64_t* first_blocks;
  const uint64_t* ordinals;
  size_t tensors;
  bool parity = false;  // inverts those coins, so that ties of two nodes cancel
};

struct TallyResult {
  uint64_t ties = 0;         // coordinates with as many votes for either sign, and at least one
  uint64_t dead_blocks = 0;  // blocks in which nobody was active
};

// Tallies `count` ballots, one after another, of one shard into its verdict. Writes no header.
TallyResult tally(const uint8_t* ballots, size_t count, const Geometry& geometry, uint8_t* verdict,
                  const TallyOptions& options);

// out = scale * V and p -= lr * V, for the verdict V of `count` coordinates from `first_block`. A
// scale beyond the numbers of the output's type becomes the largest of them: never an infinity.
void write_verdict(void* out, Dtype dtype, size_t count, const uint8_t* messages,
                   const Geometry& geometry, size_t first_block, double scale);
void apply_verdict(void* p, Dtype dtype, size_t count, const uint8_t* messages,
                   const Geometry& geometry, size_t first_block, double lr);

// Names of the implementations that this machine can run, best first.
std::vector<std::string> implementations();
std::string implementation();
void set_implementation(const std::string& name);

}  // namespace hvd_sign
