#include <algorithm>
#include <limits>

#include "implementation.h"

namespace hvd_sign {
namespace {

// Outputs above this size are written past the cache, where they could not stay. A constant, for
// what the system tells of the last-level cache is often that of all sockets, or of the host.
constexpr size_t kPastCache = size_t(32) << 20;

// Fetches the signs of a chunk's blocks: among the stores to memory a read that begins only when it
// is needed waits long (25 GB/s without, 33 GB/s with, on one core that copies at 31).
void prefetch_signs(const uint8_t* messages, const Geometry& geometry, size_t first) {
  const uint8_t* message = messages + first / geometry.shard_blocks * geometry.message_bytes;
  const uint8_t* at = message + geometry.signs_offset + first % geometry.shard_blocks * 8;
  for (size_t line = 0; line < kChunkBlocks * 8; line += 64) __builtin_prefetch(at + line);
}

// Reads the verdict of `count` coordinates block by block, and calls whole(data, blocks, signs,
// keep, chunk scale) on the tensor itself, or on a copy of its last block where that is not a whole
// one.
template <class Whole>
void for_each_chunk(uint8_t* data, size_t item, size_t count, const uint8_t* messages,
                    const Geometry& geometry, size_t first_block, Whole whole) {
  for (size_t done = 0; done < count; done += kChunk) {
    const size_t here = std::min(kChunk, count - done);
    const size_t blocks = (here + kBlock - 1) / kBlock;
    const size_t first = first_block + done / kBlock;
    Blocks verdict;
    get_blocks(verdict, messages, geometry, first, blocks);
    if (done + kChunk < count) prefetch_signs(messages, geometry, first + kChunkBlocks);
    uint64_t keep[kChunkBlocks];
    for (size_t b = 0; b < blocks; ++b) {
      const uint64_t active = verdict.active >> b & 1 ? ~0ull : 0;
      keep[b] = geometry.nonzero ? verdict.nonzero[b] & active : active;
    }
    const size_t full = here / kBlock;
    uint8_t* at = data + done * item;
    whole(at, full, verdict.signs, keep, verdict.scale);
    if (here % kBlock) {
      alignas(64) uint8_t tail[kBlock * 8] = {};
      uint8_t* last = at + full * kBlock * item;
      std::memcpy(tail, last, here % kBlock * item);
      whole(tail, 1, verdict.signs + full, keep + full, verdict.scale);
      std::memcpy(last, tail, here % kBlock * item);
    }
  }
}

double largest(Dtype dtype) {
  switch (dtype) {
    case Dtype::float16:
      return 65504;
    case Dtype::bfloat16:
      return 0x1.FEp127;
    case Dtype::float32:
      return std::numeric_limits<float>::max();
    default:
      return std::numeric_limits<double>::max();
  }
}

}  // namespace

void write_verdict(void* out, Dtype dtype, size_t count, const uint8_t* messages,
                   const Geometry& geometry, size_t first_block, double scale) {
  const auto write = active_implementation().write[size_t(dtype)];
  const bool past_cache = count * bytes_of(dtype) > kPastCache;
  const double most = largest(dtype);
  for_each_chunk(
      static_cast<uint8_t*>(out), bytes_of(dtype), count, messages, geometry, first_block,
      [=](void* at, size_t blocks, const uint64_t* signs, const uint64_t* keep, float chunk) {
        const double factor = std::min(std::max(scale * chunk, -most), most);
        write(at, blocks, signs, keep, factor, past_cache);
      });
  if (past_cache) active_implementation().fence();
}

void apply_verdict(void* p, Dtype dtype, size_t count, const uint8_t* messages,
                   const Geometry& geometry, size_t first_block, double lr) {
  const auto apply = active_implementation().apply[size_t(dtype)];
  for_each_chunk(static_cast<uint8_t*>(p), bytes_of(dtype), count, messages, geometry, first_block,
                 [=](void* at, size_t blocks, const uint64_t* signs, const uint64_t* keep,
                     float chunk) { apply(at, blocks, signs, keep, lr * chunk); });
}

}  // namespace hvd_sign
