#include <algorithm>
#include <stdexcept>

#include "coin.h"
#include "implementation.h"

namespace hvd_sign {
namespace {

// The last block of a tensor, filled up with zeros to a whole one.
struct Tail {
  alignas(64) uint8_t block[kBlock * 8];

  Tail(const uint8_t* from, size_t bytes, size_t block_bytes) {
    std::memcpy(block, from, bytes);
    std::memset(block + bytes, 0, block_bytes - bytes);
  }
};

class Packer {
 public:
  Packer(Dtype dtype, const PackOptions& options)
      : options_(options),
        coins_(options.key, options.ordinal),
        parity_(options.parity ? ~0ull : 0),
        scan_(active_implementation().scan[size_t(dtype)]),
        zeros_(active_implementation().zeros[size_t(dtype)]),
        abs_sum_(active_implementation().abs_sum[size_t(dtype)]),
        block_bytes_(kBlock * bytes_of(dtype)) {}

  // Packs `whole` blocks and, if `rest` > 0, one with `rest` coordinates, from `block` of the
  // tensor.
  void chunk(const uint8_t* signal, size_t whole, size_t rest, size_t block, Blocks& out) {
    Scan scan;
    scan_(signal, whole, &scan);
    const uint8_t* last = signal + whole * block_bytes_;
    const Tail tail(last, rest * (block_bytes_ / kBlock), rest ? block_bytes_ : 0);
    if (rest) add_tail(scan, tail, whole);
    const size_t count = whole + (rest > 0);
    if (!scan.finite) {
      result_.nonfinite_chunks += 1;
      std::memset(out.signs, 0, count * 8);
      std::memset(out.nonzero, 0, count * 8);
      out.active = 0;
      return;
    }
    result_.finite_coordinates += whole * kBlock + rest;
    out.active = scan.active;
    for (size_t b = 0; b < count; ++b) {
      const uint8_t* data = b < whole ? signal + b * block_bytes_ : tail.block;
      const uint64_t exist = b < whole ? ~0ull : low_bits(rest);
      out.signs[b] = scan.signs[b];
      out.nonzero[b] = exist;
      if (!(scan.active >> b & 1)) {
        out.signs[b] = out.nonzero[b] = 0;
      } else if (scan.with_zeros >> b & 1) {
        cast_zeros(zeros_(data) & exist, block + b, out.signs[b], out.nonzero[b]);
      }
      if (options_.want_abs) result_.abs_sum += abs_sum_(data);
    }
  }

  const PackResult& result() const { return result_; }

 private:
  void add_tail(Scan& scan, const Tail& tail, size_t block) {
    Scan last;
    scan_(tail.block, 1, &last);
    scan.signs[block] = last.signs[0];
    scan.active |= last.active << block;
    scan.with_zeros |= last.with_zeros << block;
    scan.finite &= last.finite;
  }

  void cast_zeros(uint64_t zeros, size_t block, uint64_t& signs, uint64_t& nonzero) const {
    signs &= ~zeros;
    nonzero &= ~zeros;
    if (options_.ties == Ties::coin) signs |= (coins_.word(block) ^ parity_) & zeros;
  }

  const PackOptions& options_;
  const Coins coins_;
  const uint64_t parity_;
  void (*const scan_)(const void*, size_t, Scan*);
  uint64_t (*const zeros_)(const void*);
  double (*const abs_sum_)(const void*);
  const size_t block_bytes_;
  PackResult result_;
};

}  // namespace

PackResult pack(const void* signal, Dtype dtype, size_t count, uint8_t* messages,
                const Geometry& geometry, size_t first_block, const PackOptions& options) {
  Packer packer(dtype, options);
  const uint8_t* data = static_cast<const uint8_t*>(signal);
  for (size_t done = 0; done < count; done += kChunk) {
    const size_t here = std::min(kChunk, count - done);
    Blocks blocks;
    packer.chunk(data + done * bytes_of(dtype), here / kBlock, here % kBlock, done / kBlock,
                 blocks);
    put_blocks(blocks, messages, geometry, first_block + done / kBlock,
               (here + kBlock - 1) / kBlock);
  }
  return packer.result();
}

void abstain(uint8_t* messages, const Geometry& geometry, size_t first_block, size_t count) {
  const Blocks none{};
  for (size_t done = 0; done < count; done += kChunkBlocks) {
    put_blocks(none, messages, geometry, first_block + done, std::min(kChunkBlocks, count - done));
  }
}

}  // namespace hvd_sign
