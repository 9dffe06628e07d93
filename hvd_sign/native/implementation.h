// The seam between the kernels and the instruction sets: one table of functions for each set.
// To add a set: one file that defines such a table, and one line in dispatch.cpp.
#pragma once

#include "kernels.h"

namespace hvd_sign {

// What one pass over up to 64 whole blocks finds; bit b of a mask is block b.
struct Scan {
  uint64_t signs[kChunkBlocks];  // sign bits as they are, those of zeros too
  uint64_t active;               // blocks with a coordinate that is not zero
  uint64_t with_zeros;           // blocks with a zero; those of an inactive block need not be told
  bool finite;
};

// Planes of votes: ballot m's word b is at first + m * stride + b * 8. The activity words, one for
// 64 blocks, are at active + m * stride; null: all ballots are active in all these blocks.
struct Ballots {
  const uint8_t* signs;
  const uint8_t* nonzero;
  const uint8_t* active;
  size_t stride;
  size_t count;
  size_t words;  // <= 64
};

struct Implementation {
  const char* name;
  bool (*usable)();

  // By Dtype, of data that may be unaligned.
  void (*scan[kDtypes])(const void* blocks, size_t count, Scan* found);
  uint64_t (*zeros[kDtypes])(const void* block);
  double (*abs_sum[kDtypes])(const void* block);

  // above: more than half[b] ballots are negative; equal: just half[b] are.
  void (*majority)(const Ballots& ballots, const uint64_t* half, uint64_t* above, uint64_t* equal);
  // Of the votes that are not zero: more are negative; some exist and balance; the rest decides 0.
  void (*signed_majority)(const Ballots& ballots, uint64_t* negative, uint64_t* nonzero,
                          uint64_t* tied);
  uint64_t (*popcount)(const uint64_t* words, size_t count);

  // By Dtype: whole blocks of scale * V and p - lr * V, where V is 0 at the 0 bits of `keep`.
  void (*write[kDtypes])(void* out, size_t blocks, const uint64_t* signs, const uint64_t* keep,
                         double scale);
  void (*apply[kDtypes])(void* p, size_t blocks, const uint64_t* signs, const uint64_t* keep,
                         double lr);
};

const Implementation& active_implementation();

extern const Implementation kScalar;

}  // namespace hvd_sign
