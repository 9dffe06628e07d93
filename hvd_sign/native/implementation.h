// The seam between the kernels and the instruction sets: one table of functions for each set.
// To add a set: one file that defines such a table, and one line in dispatch.cpp.
#pragma once

#include "kernels.h"

namespace hvd_sign {

// What one pass over up to 64 whole blocks finds beside the signs; bit b of a mask is block b.
struct Scan {
  uint64_t active;      // blocks with a coordinate that is not zero
  uint64_t with_zeros;  // blocks with a zero
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

// How ballots are weighed.
struct Weighing {
  const Weights& weights;
  // Without non-zero planes: the weight of each block's voters, bit-sliced as in majority().
  const uint64_t* voters;
  const uint64_t* exist;  // the bits of each word that are coordinates
  uint64_t* judged;       // as in TallyOptions
  uint64_t* agreed;
};

struct Implementation {
  const char* name;
  bool (*usable)();

  // By Dtype, of data that may be unaligned.
  // The sign bits as they are, those of zeros too, and what else there is to know.
  Scan (*scan[kDtypes])(const void* blocks, size_t count, uint64_t* signs);
  // The zeros of one block.
  uint64_t (*zeros[kDtypes])(const void* block);
  // Adds the blocks' absolute sums to `sum`, one after another.
  double (*abs_sum[kDtypes])(const void* blocks, size_t count, double sum);

  // By Dtype of the gradient: whole blocks of a * state + b * (unscale * gradient), in the
  // arithmetic's type and each operation rounded; what is below the normal numbers becomes 0. Tells
  // whether all of them are finite.
  bool (*blend[kDtypes])(const void* state, const void* gradient, size_t blocks, double a, double b,
                         double unscale, void* to);
  // By Dtype of the gradient: whole blocks of unscale * gradient + (kept - sent * cast), as
  // Feedback says and blend computes; `exact`: a zero has cast nothing. `to` may be `gradient`.
  bool (*feed[kDtypes])(const void* kept, const void* gradient, size_t blocks, double unscale,
                        float sent, bool exact, void* to);

  // above: more than half of a block's voters are negative; equal: just half of them, rounded
  // down. The voters are counted bit-sliced: bit b of voters[k] is bit k of their number in block
  // b.
  void (*majority)(const Ballots& ballots, const uint64_t* voters, uint64_t* above,
                   uint64_t* equal);
  // Of the votes that are not zero: more are negative; either sign has more; there are some, and
  // as many of either sign.
  void (*signed_majority)(const Ballots& ballots, uint64_t* negative, uint64_t* nonzero,
                          uint64_t* tied);
  // The same with weights; `ballots` may have no non-zero planes (null). A tie needs a vote there,
  // of whatever weight; a dead block is tied.
  void (*weighted_majority)(const Ballots& ballots, const Weighing& weighing, uint64_t* negative,
                            uint64_t* nonzero, uint64_t* tied);
  uint64_t (*popcount)(const uint64_t* words, size_t count);

  // By Dtype: whole blocks of scale * V and p - lr * V, where V is 0 at the 0 bits of `keep`.
  // `past_cache`: the output is larger than the cache, so that writing past it is faster; fence()
  // at the end shows such writes to other threads.
  void (*write[kDtypes])(void* out, size_t blocks, const uint64_t* signs, const uint64_t* keep,
                         double scale, bool past_cache);
  void (*fence)();
  void (*apply[kDtypes])(void* p, size_t blocks, const uint64_t* signs, const uint64_t* keep,
                         double lr);
};

const Implementation& active_implementation();

extern const Implementation kScalar;
#if defined(__x86_64__)
extern const Implementation kAvx2;
extern const Implementation kAvx512;
#elif defined(__aarch64__)
extern const Implementation kNeon;
#endif

}  // namespace hvd_sign
