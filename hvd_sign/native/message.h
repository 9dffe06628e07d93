// The one layout of a message, and the wire convention. Depends on neither Python nor MPI.
//
// WIRE CONVENTION (version 1, everything little-endian)
//  * A block is 64 consecutive coordinates of one tensor, aligned to the tensor's start: one uint64
//    word, bit i = coordinate i of the block, 1 = negative. Bits past the tensor's end are 0.
//  * +0 and -0 are zero. Subnormals are numbers with a sign.
//  * A block whose coordinates are all zero is inactive: word 0, activity bit 0. The rank abstains.
//  * A zero inside an active block is decided by the tie policy: a coin (coin), a 0 bit in the sign
//  and
//    in the non-zero plane (zero), or a 0 bit, that is positive (positive).
//  * A chunk is 64 blocks (4096 coordinates), aligned to the tensor's start. A NaN or an infinity
//    anywhere in it makes the whole chunk abstain: words 0, activity bits 0.
//  * A bucket is its tensors' blocks one after another; it is cut into equal shards, one message
//    each. Block g is in message g / shard_blocks at g % shard_blocks. Blocks past the bucket's end
//    are inactive.
//  * With chunk scales every tensor begins at a multiple of 64 blocks and shards are cut there, so
//    that a chunk lies in one message, whole: a float32 by which its signs count travels with it.
//    Blocks between two tensors are inactive.
//  * A verdict has the same form: sign 1 = negative; activity is the union of the voters'; the
//    non-zero plane (zero only) has a 0 where the verdict is 0.
//
// MESSAGE   header 48 | sign plane 8 x shard_blocks | activity bitmap (bit b of the bitmap = block
//           b), padded to 8 | [non-zero plane 8 x shard_blocks] | [chunk scales float32 x
//           shard_blocks / 64, padded to 8] | trailer float32[], padded to 8
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "hvd_sign's messages are little-endian, and this machine is not"
#endif

namespace hvd_sign {

constexpr size_t kBlock = 64;        // coordinates in a block, bits in a word
constexpr size_t kChunkBlocks = 64;  // blocks in a chunk, bits in a word of the activity bitmap
constexpr size_t kChunk = kBlock * kChunkBlocks;
constexpr int64_t kMaxBlocks = int64_t(1) << 48;  // of a bucket, so that no sum of them overflows

constexpr uint32_t kMagic = 0x47535648;  // the bytes 'HVSG'
constexpr uint16_t kMessageVersion = 1;

enum Flags : uint16_t { kAbstained = 1, kNonfinite = 2, kJoined = 4 };
enum class Kind : uint16_t { ballot = 1, verdict = 2 };
enum class Ties : uint16_t { coin = 0, zero = 1, positive = 2 };

struct Header {
  uint32_t magic;
  uint16_t version;
  uint16_t flags;
  uint32_t checksum;  // of the header with this field 0, and of everything after the header
  uint16_t kind;
  uint16_t ties;
  uint32_t stream;
  uint32_t bucket;
  uint32_t segment;
  uint32_t counter;
  uint64_t step;
  uint32_t sender;
  uint32_t shard;
};
static_assert(sizeof(Header) == 48 && offsetof(Header, step) == 32, "the header has no padding");

// How a bucket of `blocks` blocks lies in `shards` messages. Sizes and offsets in bytes.
struct Geometry {
  size_t blocks;
  size_t shards;
  bool nonzero;
  size_t trailer_floats;
  bool chunk_scales;

  size_t shard_blocks;
  size_t signs_offset;
  size_t active_offset;
  size_t nonzero_offset;  // 0: the messages have no non-zero plane
  size_t scales_offset;   // 0: they have no chunk scales
  size_t trailer_offset;
  size_t message_bytes;
  size_t total_bytes;

  // Throws std::invalid_argument on a negative or absurd size, and where all messages together have
  // more bytes than memory can.
  Geometry(int64_t blocks, int64_t shards, bool nonzero, int64_t trailer_floats,
           bool chunk_scales = false);

  // How many blocks of the bucket lie in this shard (fewer in the last ones).
  size_t blocks_in(size_t shard) const {
    const size_t first = shard * shard_blocks;
    if (first >= blocks) return 0;
    return blocks - first < shard_blocks ? blocks - first : shard_blocks;
  }

  // Of the `left` blocks that a tensor has from a chunk's start on: how many of the chunk's are
  // its own, with those that no other tensor has.
  size_t chunk_blocks(size_t left) const {
    return chunk_scales || left > kChunkBlocks ? kChunkBlocks : left;
  }
};

inline uint64_t load_word(const uint8_t* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

inline void store_word(uint8_t* to, uint64_t word) { std::memcpy(to, &word, sizeof word); }

// The lowest `count` bits, count <= 64.
inline uint64_t low_bits(size_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

// Up to 64 blocks on their way into messages or out of them; bit b of `active` is block b.
struct Blocks {
  uint64_t signs[kChunkBlocks];
  uint64_t nonzero[kChunkBlocks];
  uint64_t active;
  float scale;  // of the chunk, where messages have chunk scales
};

// Copies `count` <= 64 blocks, from block `first` of the bucket, to and from its messages; with
// chunk scales they are a chunk, whole.
void put_blocks(const Blocks& from, uint8_t* messages, const Geometry& geometry, size_t first,
                size_t count);
void get_blocks(Blocks& to, const uint8_t* messages, const Geometry& geometry, size_t first,
                size_t count);

// Checksum of a whole message, as it stands in the header.
uint32_t checksum(const uint8_t* message, size_t bytes);

// What all messages of one collective share; check() compares it field by field.
struct Labels {
  Kind kind;
  Ties ties;
  uint32_t stream;
  uint32_t bucket;
  uint32_t segment;
  uint64_t step;
};

// Clears what no block uses, then writes header and checksum of each of `count` messages.
// `shard` < 0: message j has shard j.
void seal(uint8_t* messages, size_t count, const Geometry& geometry, const Labels& labels,
          uint16_t flags, uint32_t counter, uint32_t sender, int64_t shard);

// Checks that message i came whole from sender i, with these labels, and reads its flags and
// counter. Throws std::invalid_argument naming the first field that differs, and the sender's rank:
// ranks[i], or i where that is null. `shard` < 0: message i has shard i.
void check(const uint8_t* messages, size_t count, const Geometry& geometry, const Labels& labels,
           int64_t shard, uint16_t* flags, uint32_t* counters, const uint32_t* ranks = nullptr);

}  // namespace hvd_sign
