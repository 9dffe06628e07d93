#include "message.h"

#include <algorithm>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "coin.h"

namespace hvd_sign {
namespace {

constexpr int64_t kMaxCount = int64_t(1) << 31;
constexpr size_t kMaxBytes = std::numeric_limits<int64_t>::max();

size_t in_range(int64_t value, int64_t low, int64_t high, const char* argument) {
  if (value < low || value > high) {
    std::ostringstream text;
    text << "Geometry: " << argument << ": expected " << low << " to " << high << ", got " << value;
    throw std::invalid_argument(text.str());
  }
  return size_t(value);
}

constexpr size_t round_up_8(size_t bytes) { return (bytes + 7) / 8 * 8; }

// `count` <= 64 bits at any bit of a bitmap whose size is a multiple of 8 bytes.
void put_bits(uint8_t* bitmap, size_t first, size_t count, uint64_t bits) {
  uint8_t* word = bitmap + first / 64 * 8;
  const size_t shift = first % 64;
  const uint64_t mask = low_bits(count);
  store_word(word, (load_word(word) & ~(mask << shift)) | (bits & mask) << shift);
  if (shift + count > 64) {
    const uint64_t high = mask >> (64 - shift);
    store_word(word + 8, (load_word(word + 8) & ~high) | (bits & mask) >> (64 - shift));
  }
}

uint64_t get_bits(const uint8_t* bitmap, size_t first, size_t count) {
  const uint8_t* word = bitmap + first / 64 * 8;
  const size_t shift = first % 64;
  uint64_t bits = load_word(word) >> shift;
  if (shift + count > 64) bits |= load_word(word + 8) << (64 - shift);
  return bits & low_bits(count);
}

// Calls visit(message, block in it, blocks done, blocks here) for each message that blocks touch.
template <class Byte, class Visit>
void for_each_message(Byte* messages, const Geometry& geometry, size_t first, size_t count,
                      Visit visit) {
  for (size_t done = 0; done < count;) {
    const size_t block = (first + done) % geometry.shard_blocks;
    const size_t here = std::min(count - done, geometry.shard_blocks - block);
    const size_t message = (first + done) / geometry.shard_blocks;
    visit(messages + message * geometry.message_bytes, block, done, here);
    done += here;
  }
}

void clear_unused(uint8_t* message, const Geometry& geometry, size_t used) {
  const size_t blank = (geometry.shard_blocks - used) * 8;
  std::memset(message + geometry.signs_offset + used * 8, 0, blank);
  uint8_t* active = message + geometry.active_offset;
  const size_t words = (geometry.shard_blocks + 63) / 64;
  for (size_t word = used / 64; word < words; ++word) {
    const size_t kept = word == used / 64 ? used % 64 : 0;
    store_word(active + word * 8, load_word(active + word * 8) & low_bits(kept));
  }
  if (geometry.nonzero) std::memset(message + geometry.nonzero_offset + used * 8, 0, blank);
  if (geometry.chunk_scales) {
    const size_t scales = geometry.scales_offset + (used + kChunkBlocks - 1) / kChunkBlocks * 4;
    std::memset(message + scales, 0, geometry.trailer_offset - scales);
  }
  const size_t trailer = geometry.trailer_offset + geometry.trailer_floats * 4;
  std::memset(message + trailer, 0, geometry.message_bytes - trailer);
}

[[noreturn]] void mismatch(size_t rank, const char* field, const std::string& expected,
                           const std::string& got) {
  throw std::invalid_argument("check: " + std::string(field) + " of the message from rank " +
                              std::to_string(rank) + ": expected " + expected + ", got " + got);
}

void same(size_t rank, const char* field, uint64_t expected, uint64_t got) {
  if (expected != got) mismatch(rank, field, std::to_string(expected), std::to_string(got));
}

std::string hex(uint64_t value) {
  std::ostringstream text;
  text << "0x" << std::hex << value;
  return text.str();
}

std::string name(Kind kind) {
  if (kind == Kind::ballot) return "ballot";
  if (kind == Kind::verdict) return "verdict";
  return "unknown kind " + std::to_string(unsigned(kind));
}

std::string name(Ties ties) {
  if (ties == Ties::coin) return "coin";
  if (ties == Ties::zero) return "zero";
  if (ties == Ties::positive) return "positive";
  return "unknown policy " + std::to_string(unsigned(ties));
}

}  // namespace

Geometry::Geometry(int64_t blocks_, int64_t shards_, bool nonzero_, int64_t trailer_floats_,
                   bool chunk_scales_)
    : blocks(in_range(blocks_, 0, kMaxBlocks, "blocks")),
      shards(in_range(shards_, 1, kMaxCount, "shards")),
      nonzero(nonzero_),
      trailer_floats(in_range(trailer_floats_, 0, kMaxCount, "trailer_floats")),
      chunk_scales(chunk_scales_) {
  shard_blocks = std::max<size_t>(1, (blocks + shards - 1) / shards);
  if (chunk_scales && blocks % kChunkBlocks) {
    throw std::invalid_argument(
        "Geometry: blocks: expected a multiple of 64, as there are chunk scales, got " +
        std::to_string(blocks));
  }
  if (chunk_scales) shard_blocks = (shard_blocks + kChunkBlocks - 1) / kChunkBlocks * kChunkBlocks;
  signs_offset = sizeof(Header);
  active_offset = signs_offset + shard_blocks * 8;
  const size_t active_end = active_offset + round_up_8((shard_blocks + 7) / 8);
  nonzero_offset = nonzero ? active_end : 0;
  const size_t planes_end = active_end + (nonzero ? shard_blocks * 8 : 0);
  scales_offset = chunk_scales ? planes_end : 0;
  trailer_offset =
      planes_end + (chunk_scales ? round_up_8(shard_blocks / kChunkBlocks * sizeof(float)) : 0);
  message_bytes = trailer_offset + round_up_8(trailer_floats * 4);
  if (message_bytes > kMaxBytes / shards) {
    std::ostringstream text;
    text << "Geometry: blocks, shards, trailer_floats: expected at most " << kMaxBytes
         << " bytes in all messages, got " << shards << " messages of " << message_bytes;
    throw std::invalid_argument(text.str());
  }
  total_bytes = shards * message_bytes;
}

void put_blocks(const Blocks& from, uint8_t* messages, const Geometry& geometry, size_t first,
                size_t count) {
  for_each_message(messages, geometry, first, count,
                   [&](uint8_t* message, size_t block, size_t done, size_t here) {
                     uint8_t* signs = message + geometry.signs_offset + block * 8;
                     std::memcpy(signs, from.signs + done, here * 8);
                     put_bits(message + geometry.active_offset, block, here, from.active >> done);
                     if (geometry.chunk_scales) {
                       uint8_t* scales = message + geometry.scales_offset;
                       std::memcpy(scales + block / kChunkBlocks * 4, &from.scale, 4);
                     }
                     if (!geometry.nonzero) return;
                     uint8_t* nonzero = message + geometry.nonzero_offset + block * 8;
                     std::memcpy(nonzero, from.nonzero + done, here * 8);
                   });
}

void get_blocks(Blocks& to, const uint8_t* messages, const Geometry& geometry, size_t first,
                size_t count) {
  to.active = 0;
  to.scale = 1;
  for_each_message(messages, geometry, first, count,
                   [&](const uint8_t* message, size_t block, size_t done, size_t here) {
                     const uint8_t* signs = message + geometry.signs_offset + block * 8;
                     std::memcpy(to.signs + done, signs, here * 8);
                     to.active |= get_bits(message + geometry.active_offset, block, here) << done;
                     if (geometry.chunk_scales) {
                       const uint8_t* scales = message + geometry.scales_offset;
                       std::memcpy(&to.scale, scales + block / kChunkBlocks * 4, 4);
                     }
                     if (!geometry.nonzero) return;
                     const uint8_t* nonzero = message + geometry.nonzero_offset + block * 8;
                     std::memcpy(to.nonzero + done, nonzero, here * 8);
                   });
}

// Eight independent lanes of multiply and rotate hide the multiplier's latency. Each step is a
// bijection of its lane, so a change of one word always changes the lane; the rotation lets high
// bits reach low ones.
uint32_t checksum(const uint8_t* message, size_t bytes) {
  constexpr size_t kLanes = 8;
  constexpr uint64_t kPrime = 0x9FB21C651E98DF25;
  uint64_t lanes[kLanes];
  for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = mix64(lane);
  const auto absorb = [&](size_t lane, uint64_t word) {
    const uint64_t product = (lanes[lane] ^ word) * kPrime;
    lanes[lane] = product << 29 | product >> 35;
  };

  Header header;
  std::memcpy(&header, message, sizeof header);
  header.checksum = 0;
  uint64_t head[sizeof header / 8];
  std::memcpy(head, &header, sizeof header);
  for (size_t word = 0; word < sizeof header / 8; ++word) absorb(word, head[word]);

  const uint8_t* at = message + sizeof header;
  size_t words = (bytes - sizeof header) / 8;
  for (; words >= kLanes; words -= kLanes, at += kLanes * 8) {
    for (size_t lane = 0; lane < kLanes; ++lane) absorb(lane, load_word(at + lane * 8));
  }
  for (size_t lane = 0; lane < words; ++lane) absorb(lane, load_word(at + lane * 8));

  uint64_t sum = bytes;
  for (const uint64_t lane : lanes) sum = mix64(sum ^ lane);
  return uint32_t(sum >> 32) ^ uint32_t(sum);
}

void seal(uint8_t* messages, size_t count, const Geometry& geometry, const Labels& labels,
          uint16_t flags, uint32_t counter, uint32_t sender, int64_t shard) {
  for (size_t index = 0; index < count; ++index) {
    uint8_t* message = messages + index * geometry.message_bytes;
    const size_t its_shard = shard < 0 ? index : size_t(shard);
    clear_unused(message, geometry, geometry.blocks_in(its_shard));
    Header header{kMagic,
                  kMessageVersion,
                  flags,
                  0,
                  uint16_t(labels.kind),
                  uint16_t(labels.ties),
                  labels.stream,
                  labels.bucket,
                  labels.segment,
                  counter,
                  labels.step,
                  sender,
                  uint32_t(its_shard)};
    std::memcpy(message, &header, sizeof header);
    header.checksum = checksum(message, geometry.message_bytes);
    std::memcpy(message, &header, sizeof header);
  }
}

void check(const uint8_t* messages, size_t count, const Geometry& geometry, const Labels& labels,
           int64_t shard, uint16_t* flags, uint32_t* counters, const uint32_t* ranks) {
  for (size_t sender = 0; sender < count; ++sender) {
    const size_t rank = ranks ? ranks[sender] : sender;
    const uint8_t* message = messages + sender * geometry.message_bytes;
    Header header;
    std::memcpy(&header, message, sizeof header);
    if (header.magic != kMagic) mismatch(rank, "magic", hex(kMagic), hex(header.magic));
    same(rank, "version", kMessageVersion, header.version);
    // Before the labels: a flipped bit in a label is corruption, not another rank's mistake.
    const uint32_t sum = checksum(message, geometry.message_bytes);
    if (header.checksum != sum) mismatch(rank, "checksum", hex(header.checksum), hex(sum));
    if (header.kind != uint16_t(labels.kind))
      mismatch(rank, "kind", name(labels.kind), name(Kind(header.kind)));
    if (header.ties != uint16_t(labels.ties))
      mismatch(rank, "ties", name(labels.ties), name(Ties(header.ties)));
    same(rank, "stream", labels.stream, header.stream);
    same(rank, "bucket", labels.bucket, header.bucket);
    same(rank, "segment", labels.segment, header.segment);
    same(rank, "step", labels.step, header.step);
    same(rank, "sender", sender, header.sender);
    same(rank, "shard", shard < 0 ? sender : size_t(shard), header.shard);
    flags[sender] = header.flags;
    counters[sender] = header.counter;
  }
}

}  // namespace hvd_sign
