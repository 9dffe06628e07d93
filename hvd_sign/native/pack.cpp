#include <algorithm>
#include <limits>

#include "coin.h"
#include "implementation.h"

namespace hvd_sign {
namespace {

// Packs one tensor, a chunk at a time.
class Packer {
 public:
  Packer(Dtype dtype, bool with_nonzero, const PackOptions& options)
      : options_(options),
        with_nonzero_(with_nonzero),
        coins_(options.key, options.ordinal),
        parity_(options.parity ? ~0ull : 0),
        scan_(active_implementation().scan[size_t(dtype)]),
        zeros_(active_implementation().zeros[size_t(dtype)]),
        abs_sum_(active_implementation().abs_sum[size_t(dtype)]),
        block_bytes_(kBlock * bytes_of(dtype)) {}

  // Packs `count` <= 4096 coordinates that begin at `block` of the tensor.
  void chunk(const uint8_t* signal, size_t count, size_t block, Blocks& out) {
    const size_t whole = count / kBlock;
    const size_t rest = count % kBlock;
    Scan scan = scan_(signal, whole, out.signs);
    alignas(64) uint8_t tail[kBlock * 8];  // the last block, filled up with zeros
    if (rest) {
      const size_t bytes = rest * (block_bytes_ / kBlock);
      std::memcpy(tail, signal + whole * block_bytes_, bytes);
      std::memset(tail + bytes, 0, block_bytes_ - bytes);
      const Scan last = scan_(tail, 1, out.signs + whole);
      scan.active |= last.active << whole;
      scan.with_zeros |= last.with_zeros << whole;
      scan.finite &= last.finite;
    }
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
          b < whole ? zeros_(signal + b * block_bytes_) : zeros_(tail) & low_bits(rest);
      out.signs[b] &= ~zeros;
      if (with_nonzero_) out.nonzero[b] &= ~zeros;
      if (options_.ties == Ties::coin && (scan.active >> b & 1)) {
        out.signs[b] |= (coins_.word(block + b) ^ parity_) & zeros;
      }
    }
    if (!options_.want_abs) return;
    result_.abs_sum = abs_sum_(signal, whole, result_.abs_sum);
    if (rest) result_.abs_sum = abs_sum_(tail, 1, result_.abs_sum);
  }

  const PackResult& result() const { return result_; }

 private:
  const PackOptions& options_;
  const bool with_nonzero_;
  const Coins coins_;
  const uint64_t parity_;
  Scan (*const scan_)(const void*, size_t, uint64_t*);
  uint64_t (*const zeros_)(const void*);
  double (*const abs_sum_)(const void*, size_t, double);
  const size_t block_bytes_;
  PackResult result_;
};

}  // namespace

float PackResult::mean_abs() const {
  if (finite_coordinates == 0) return 0;
  constexpr double kLargest = std::numeric_limits<float>::max();  // fp64 has larger ones
  return float(std::min(abs_sum / double(finite_coordinates), kLargest));
}

PackResult pack(const void* signal, Dtype dtype, size_t count, uint8_t* messages,
                const Geometry& geometry, size_t first_block, const PackOptions& options) {
  Packer packer(dtype, geometry.nonzero, options);
  const uint8_t* data = static_cast<const uint8_t*>(signal);
  for (size_t done = 0; done < count; done += kChunk) {
    const size_t here = std::min(kChunk, count - done);
    Blocks blocks;
    packer.chunk(data + done * bytes_of(dtype), here, options.block + done / kBlock, blocks);
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
