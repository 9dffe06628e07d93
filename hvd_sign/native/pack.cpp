#include <algorithm>
#include <limits>

#include "coin.h"
#include "implementation.h"

namespace hvd_sign {
namespace {

// The mean of `count` absolute values as it travels; 0 where there are none.
float mean_of(double sum, uint64_t count) {
  if (count == 0) return 0;
  constexpr double kLargest = std::numeric_limits<float>::max();  // fp64 has larger ones
  return float(std::min(sum / double(count), kLargest));
}

// Packs one tensor, a chunk at a time.
class Packer {
 public:
  Packer(Dtype dtype, const Geometry& geometry, const PackOptions& options)
      : options_(options),
        with_nonzero_(geometry.nonzero),
        chunk_scales_(geometry.chunk_scales),
        coins_(options.key, options.ordinal),
        parity_(options.parity ? ~0ull : 0),
        scan_(active_implementation().scan[size_t(dtype)]),
        zeros_(active_implementation().zeros[size_t(dtype)]),
        abs_sum_(active_implementation().abs_sum[size_t(dtype)]),
        block_bytes_(kBlock * bytes_of(dtype)) {}

  // Packs `count` <= 4096 coordinates that begin at `block` of the tensor.
  void chunk(const uint8_t* signal, size_t count, size_t block, Blocks& out) {
    Scan found{0, 0, true};
    look(signal, 0, count, out, found);
    settle(found, signal, count, block, out, nullptr);
  }

  // The signs of the coordinates from block `first` of the chunk to `count`, zeros as they come.
  void look(const uint8_t* signal, size_t first, size_t count, Blocks& out, Scan& found) {
    const size_t whole = count / kBlock;
    const size_t rest = count % kBlock;
    const auto scan = [&](const uint8_t* from, size_t at, size_t blocks) {
      const Scan here = scan_(from, blocks, out.signs + at);
      found.active |= here.active << at;
      found.with_zeros |= here.with_zeros << at;
      found.finite &= here.finite;
    };
    if (first < whole) scan(signal + first * block_bytes_, first, whole - first);
    if (rest) {
      const size_t bytes = rest * (block_bytes_ / kBlock);
      std::memcpy(tail_, signal + whole * block_bytes_, bytes);
      std::memset(tail_ + bytes, 0, block_bytes_ - bytes);
      scan(tail_, whole, 1);
    }
  }

  // Decides the zeros, and sums: what is left to do when the whole chunk was looked at. `marked`:
  // null, or the signal, whose zeros get the signs that are cast for them.
  void settle(const Scan& scan, const uint8_t* signal, size_t count, size_t block, Blocks& out,
              uint8_t* marked) {
    const size_t whole = count / kBlock;
    const size_t rest = count % kBlock;
    if (!scan.finite) {
      result_.nonfinite_chunks += 1;
      out = Blocks{};
      return;
    }
    result_.finite_coordinates += count;
    out.active = scan.active;
    if (with_nonzero_) {
      std::fill_n(out.nonzero, whole, ~0ull);
      if (rest) out.nonzero[whole] = low_bits(rest);
    }
    for (uint64_t left = scan.with_zeros; left; left &= left - 1) {
      const size_t b = size_t(__builtin_ctzll(left));
      const uint64_t zeros =
          b < whole ? zeros_(signal + b * block_bytes_) : zeros_(tail_) & low_bits(rest);
      out.signs[b] &= ~zeros;
      if (with_nonzero_) out.nonzero[b] &= ~zeros;
      if (options_.ties == Ties::coin && (scan.active >> b & 1)) {
        const uint64_t cast = (coins_.word(block + b) ^ parity_) & zeros;
        out.signs[b] |= cast;
        if (marked) mark_negative(marked + b * block_bytes_, cast);
      }
    }
    if (options_.want_abs) result_.abs_sum = sum_from(result_.abs_sum, signal, whole, rest);
    if (chunk_scales_) {
      uint64_t voting = uint64_t(__builtin_popcountll(scan.active)) * kBlock;
      if (rest && (scan.active >> whole & 1)) voting -= kBlock - rest;
      out.scale = mean_of(sum_from(0, signal, whole, rest), voting);
    }
  }

  const PackResult& result() const { return result_; }

 private:
  // `sum`, and the absolute values of so many whole blocks and of the tail, if there is one.
  double sum_from(double sum, const uint8_t* signal, size_t whole, size_t rest) const {
    sum = abs_sum_(signal, whole, sum);
    return rest ? abs_sum_(tail_, 1, sum) : sum;
  }

  // Sets the sign bits of some of a block's numbers, which are little-endian.
  void mark_negative(uint8_t* block, uint64_t which) const {
    const size_t bytes = block_bytes_ / kBlock;
    for (; which; which &= which - 1) {
      block[(size_t(__builtin_ctzll(which)) + 1) * bytes - 1] |= 0x80;
    }
  }

  const PackOptions& options_;
  const bool with_nonzero_;
  const bool chunk_scales_;
  const Coins coins_;
  const uint64_t parity_;
  Scan (*const scan_)(const void*, size_t, uint64_t*);
  uint64_t (*const zeros_)(const void*);
  double (*const abs_sum_)(const void*, size_t, double);
  const size_t block_bytes_;
  PackResult result_;
  alignas(64) uint8_t tail_[kBlock * 8];  // a chunk's last block, filled up with zeros
};

// So many coordinates are computed and then packed, in turns: memory is read while they are packed.
// By 2 blocks one core that copies at 40 GB/s reaches 38, by 8 blocks 31.
constexpr size_t kBatch = 2 * kBlock;

// The scale of a chunk that is its tensor's, of which the rest is yet to be seen.
constexpr float kUnknown = std::numeric_limits<float>::quiet_NaN();

// Computes the signal and what is kept next of a chunk beside what was kept, in whose place it
// comes when the chunk has turned out finite.
class LinearUpdate {
 public:
  LinearUpdate(const void* gradient, Dtype dtype, const void* state, void* next,
               const Linear& linear, const Feedback& feedback, Ties ties)
      : gradient_(static_cast<const uint8_t*>(gradient)),
        state_(static_cast<const uint8_t*>(state)),
        next_(static_cast<uint8_t*>(next)),
        linear_(linear),
        feedback_(feedback),
        exact_(ties == Ties::zero),
        blends_(!feedback.kept || state || linear.b != 1),
        signal_is_next_(linear.a == linear.c && linear.b == linear.d),
        blend_(active_implementation().blend[size_t(dtype)]),
        feed_(active_implementation().feed[size_t(blends_ ? arithmetic_of(dtype) : dtype)]),
        gradient_bytes_(bytes_of(dtype)),
        state_bytes_(bytes_of(arithmetic_of(dtype))) {}

  // Computes the coordinates from `first` to `end` of the chunk that begins at `start`, at most a
  // batch; tells whether they are finite.
  bool compute(size_t start, size_t first, size_t end) {
    const size_t whole = (end - first) / kBlock, rest = (end - first) % kBlock;
    const auto* kept = static_cast<const uint8_t*>(feedback_.kept);
    const uint8_t* m = state_ ? state_ + (start + first) * state_bytes_ : kZeros;
    const uint8_t* p = kept ? kept + (start + first) * state_bytes_ : kZeros;
    const uint8_t* g = gradient_ ? gradient_ + (start + first) * gradient_bytes_ : kZeros;
    const float sent = kept ? feedback_.sent[start / kChunk] : 0;
    bool finite = blocks(m, g, p, sent, whole, first);
    if (rest) {
      alignas(64) uint8_t last_m[kBlock * 8] = {}, last_g[kBlock * 8] = {}, last_p[kBlock * 8] = {};
      std::memcpy(last_m, m + whole * kBlock * state_bytes_, rest * state_bytes_);
      std::memcpy(last_p, p + whole * kBlock * state_bytes_, rest * state_bytes_);
      std::memcpy(last_g, g + whole * kBlock * gradient_bytes_, rest * gradient_bytes_);
      finite &= blocks(last_m, last_g, last_p, sent, 1, first + whole * kBlock);
    }
    return finite;
  }

  const uint8_t* signal() const { return computed_signal_; }
  // The signal as it is to be kept, or null.
  uint8_t* kept_signal() { return feedback_.kept ? computed_signal_ : nullptr; }

  // Ends the chunk of `count` coordinates that begins at `start`; `sent` is its scale.
  void keep(size_t start, size_t count, bool finite, float sent) const {
    const bool apart = !signal_is_next_ || feedback_.kept;
    put(next_, state_, apart ? computed_next_ : computed_signal_, start, count, finite);
    if (!feedback_.kept) return;
    put(feedback_.next, feedback_.kept, computed_signal_, start, count, finite);
    const size_t chunk = start / kChunk;
    feedback_.next_sent[chunk] = finite ? sent : feedback_.sent[chunk];
  }

 private:
  void put(void* next, const void* before, const uint8_t* made, size_t start, size_t count,
           bool finite) const {
    if (!next || (!finite && next == before)) return;
    const size_t offset = start * state_bytes_, bytes = count * state_bytes_;
    uint8_t* to = static_cast<uint8_t*>(next) + offset;
    if (finite) {
      std::memcpy(to, made, bytes);
    } else if (before) {
      std::memcpy(to, static_cast<const uint8_t*>(before) + offset, bytes);
    } else {
      std::memset(to, 0, bytes);
    }
  }

  bool blocks(const uint8_t* m, const uint8_t* g, const uint8_t* p, float sent, size_t count,
              size_t at) {
    const auto& [a, b, c, d, u] = linear_;
    const size_t offset = at * state_bytes_;
    uint8_t *signal = computed_signal_ + offset, *next = computed_next_ + offset;
    if (!blends_) return feed_(p, g, count, u, sent, exact_, signal);
    const bool apart = next_ && (!signal_is_next_ || feedback_.kept);
    bool finite = !apart || blend_(m, g, count, c, d, u, next);
    if (!apart || !signal_is_next_) finite &= blend_(m, g, count, a, b, u, signal);
    if (!feedback_.kept) return finite;
    return feed_(p, apart && signal_is_next_ ? next : signal, count, 1, sent, exact_, signal) &
           finite;
  }

  static constexpr uint8_t kZeros[kBatch * 8] = {};

  const uint8_t* const gradient_;
  const uint8_t* const state_;
  uint8_t* const next_;
  const Linear& linear_;
  const Feedback& feedback_;
  const bool exact_;
  const bool blends_;  // else the gradient is what is fed back to
  const bool signal_is_next_;
  bool (*const blend_)(const void*, const void*, size_t, double, double, double, void*);
  bool (*const feed_)(const void*, const void*, size_t, double, float, bool, void*);
  const size_t gradient_bytes_;
  const size_t state_bytes_;
  alignas(64) uint8_t computed_signal_[kChunk * 8];
  alignas(64) uint8_t computed_next_[kChunk * 8];
};

}  // namespace

float PackResult::mean_abs() const { return mean_of(abs_sum, finite_coordinates); }

PackResult pack(const void* signal, Dtype dtype, size_t count, uint8_t* messages,
                const Geometry& geometry, size_t first_block, const PackOptions& options) {
  Packer packer(dtype, geometry, options);
  const uint8_t* data = static_cast<const uint8_t*>(signal);
  for (size_t done = 0; done < count; done += kChunk) {
    const size_t here = std::min(kChunk, count - done);
    Blocks blocks;
    if (geometry.chunk_scales) blocks = Blocks{};  // those past the tensor's end too
    packer.chunk(data + done * bytes_of(dtype), here, options.block + done / kBlock, blocks);
    put_blocks(blocks, messages, geometry, first_block + done / kBlock,
               geometry.chunk_blocks((here + kBlock - 1) / kBlock));
  }
  return packer.result();
}

PackResult pack_linear(const void* gradient, Dtype dtype, size_t count, const void* state,
                       void* next, const Linear& linear, const Feedback& feedback,
                       uint8_t* messages, const Geometry& geometry, size_t first_block,
                       const PackOptions& options) {
  const bool is_gradient = !state && !next && linear.b == 1 && linear.unscale == 1;
  if (is_gradient && gradient && !feedback.kept) {
    return pack(gradient, dtype, count, messages, geometry, first_block, options);
  }
  Packer packer(arithmetic_of(dtype), geometry, options);
  LinearUpdate update(gradient, dtype, state, next, linear, feedback, options.ties);
  for (size_t done = 0; done < count; done += kChunk) {
    const size_t here = std::min(kChunk, count - done);
    Blocks blocks;
    if (geometry.chunk_scales) blocks = Blocks{};
    Scan found{0, 0, true};
    for (size_t first = 0; first < here; first += kBatch) {
      const size_t end = std::min(first + kBatch, here);
      found.finite &= update.compute(done, first, end);
      packer.look(update.signal(), first / kBlock, end, blocks, found);
    }
    packer.settle(found, update.signal(), here, options.block + done / kBlock, blocks,
                  update.kept_signal());
    update.keep(done, here, found.finite, geometry.chunk_scales ? blocks.scale : kUnknown);
    put_blocks(blocks, messages, geometry, first_block + done / kBlock,
               geometry.chunk_blocks((here + kBlock - 1) / kBlock));
  }
  return packer.result();
}

void abstain(uint8_t* messages, const Geometry& geometry, size_t first_block, size_t count) {
  const Blocks none{};
  for (size_t done = 0; done < count; done += kChunkBlocks) {
    put_blocks(none, messages, geometry, first_block + done, geometry.chunk_blocks(count - done));
  }
}

}  // namespace hvd_sign
