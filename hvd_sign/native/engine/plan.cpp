#include "plan.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

namespace hvd_sign {
namespace {

// What a thread takes at a time: 131,072 coordinates, whose packing takes longer than a wake-up.
constexpr size_t kPartBlocks = 2048;
constexpr size_t kStripBlocks = kChunkBlocks;
static_assert(kPartBlocks % kChunkBlocks == 0 && kStripBlocks < kPartBlocks);

constexpr size_t kMaxMessage = std::numeric_limits<int>::max();  // MPI counts bytes by int

[[noreturn]] void wrong(const char* argument, const std::string& expected, const std::string& got) {
  throw std::invalid_argument("plan: " + std::string(argument) + ": expected " + expected +
                              ", got " + got);
}

void at_least_one(const char* argument, size_t value) {
  if (value == 0) wrong(argument, "1 or more", "0");
}

void check_owners(const std::vector<size_t>& owners, size_t voters) {
  const bool ascending = std::adjacent_find(owners.begin(), owners.end(),
                                            std::greater_equal<size_t>()) == owners.end();
  if (!owners.empty() && ascending && owners.back() < voters) return;
  std::string got;
  for (const size_t owner : owners) got += (got.empty() ? "" : ", ") + std::to_string(owner);
  wrong("owners", "for each shard some of the " + std::to_string(voters) + " voters, ascending",
        got.empty() ? "none" : got);
}

// Floats in a trailer: scales, then the counts, which are aligned.
size_t trailer_floats(const PlanSettings& settings, size_t scales) {
  return settings.counted ? (scales + 1) / 2 * 2 + 4 * settings.voters : scales;
}

size_t blocks_of(const Tensor& tensor) {
  return tensor.count / kBlock + (tensor.count % kBlock != 0);
}

// What so many blocks take up: whole chunks where verdicts are means.
size_t padded(size_t blocks, const PlanSettings& settings) {
  return settings.averaged ? (blocks + kChunkBlocks - 1) / kChunkBlocks * kChunkBlocks : blocks;
}

Geometry geometry(const PlanSettings& settings, size_t blocks, size_t shards, size_t scales) {
  return Geometry(int64_t(blocks), int64_t(shards), settings.ties == Ties::zero,
                  int64_t(trailer_floats(settings, scales)), settings.averaged);
}

}  // namespace

void check_plan(const std::vector<Tensor>& tensors, size_t blocks, const PlanSettings& settings) {
  if (blocks > size_t(kMaxBlocks)) {
    wrong("blocks", "at most " + std::to_string(kMaxBlocks), std::to_string(blocks));
  }
  size_t end = 0;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const std::string who = "tensor " + std::to_string(t);
    if (tensors[t].first_block != end) {
      wrong("tensors", who + " at block " + std::to_string(end) + ", where the one before it ends",
            "block " + std::to_string(tensors[t].first_block));
    }
    const size_t count = padded(blocks_of(tensors[t]), settings);
    if (count > blocks - end) {
      wrong("tensors", who + " within the bucket's " + std::to_string(blocks) + " blocks",
            std::to_string(count) + " blocks from " + std::to_string(end) + " on");
    }
    end += count;
  }
  if (end != blocks) {
    wrong("blocks", std::to_string(end) + ", the tensors'", std::to_string(blocks));
  }
  if (settings.ties > Ties::positive) {
    wrong("ties", "0 (coin), 1 (zero) or 2 (positive)", std::to_string(unsigned(settings.ties)));
  }
  at_least_one("voters", settings.voters);
  if (settings.voters > kMaxMessage) {
    wrong("voters", "at most " + std::to_string(kMaxMessage), std::to_string(settings.voters));
  }
  if (settings.rank >= settings.voters) {
    wrong("rank", "less than the " + std::to_string(settings.voters) + " voters",
          std::to_string(settings.rank));
  }
  at_least_one("segment_blocks", settings.segment_blocks);
  at_least_one("depth", settings.depth);
  at_least_one("owners", settings.owners.size());
  for (const std::vector<size_t>& owners : settings.owners) check_owners(owners, settings.voters);
  const size_t shards = settings.owners.size();
  const size_t largest = padded(std::min(settings.segment_blocks, blocks), settings);
  const size_t scales = settings.scaled ? (tensors.size() + shards - 1) / shards : 0;
  const Geometry segment = geometry(settings, largest, shards, scales);
  if (segment.message_bytes > kMaxMessage) {
    wrong("segment_blocks", "messages of at most " + std::to_string(kMaxMessage) + " bytes",
          std::to_string(settings.segment_blocks) + ", whose have " +
              std::to_string(segment.message_bytes));
  }
}

Segment::Segment(size_t first, std::vector<Piece> all, const std::vector<Tensor>& tensors,
                 const Geometry& geometry)
    : first_block(first), pieces(std::move(all)), geometry(geometry) {
  for (const Piece& piece : pieces) {
    first_blocks.push_back(int64_t(piece.first) - int64_t(piece.block));
    ordinals.push_back(tensors[piece.tensor].ordinal);
    lengths.push_back(tensors[piece.tensor].count);
  }
  const auto add = [&](std::vector<size_t>& kind, size_t p, size_t begin, size_t end) {
    const Piece& piece = pieces[p];
    kind.push_back(parts.size());
    parts.push_back({p, piece.block + begin, piece.first + begin,
                     std::min(end * kBlock, piece.count) - begin * kBlock});
  };
  for (size_t p = 0; p < pieces.size(); ++p) {
    const size_t blocks = pieces[p].blocks;
    for (size_t begin = 0; begin < blocks; begin += kPartBlocks) {
      const size_t end = std::min(begin + kPartBlocks, blocks);
      const size_t strip = std::min(begin + kStripBlocks, end);
      add(alone, p, begin, strip);
      if (strip < end) add(shared, p, strip, end);
    }
  }
}

namespace {

Plan::Way way_of(const PlanSettings& settings) {
  const Owners& owners = settings.owners;
  if (owners.size() == 1 && owners[0].size() == settings.voters) return Plan::Way::gathered;
  if (owners.size() != settings.voters) return Plan::Way::delivered;
  for (size_t shard = 0; shard < owners.size(); ++shard) {
    if (owners[shard] != std::vector<size_t>{shard}) return Plan::Way::delivered;
  }
  return Plan::Way::sharded;
}

std::vector<size_t> owned_by(const Owners& owners, size_t voter) {
  std::vector<size_t> shards;
  for (size_t shard = 0; shard < owners.size(); ++shard) {
    const auto& all = owners[shard];
    if (std::find(all.begin(), all.end(), voter) != all.end()) shards.push_back(shard);
  }
  return shards;
}

std::vector<uint32_t> speakers_of(const Owners& owners) {
  std::vector<uint32_t> speakers;
  for (const auto& all : owners) speakers.push_back(uint32_t(all.front()));
  return speakers;
}

}  // namespace

Geometry Plan::geometry_of(size_t blocks, size_t scales) const {
  return geometry(settings, blocks, shards(), scales);
}

uint64_t* Plan::counts(uint8_t* message, const Geometry& geometry) const {
  const size_t end = geometry.trailer_offset + geometry.trailer_floats * sizeof(float);
  return reinterpret_cast<uint64_t*>(message + end) - 2 * settings.voters;
}

bool Plan::owns(size_t shard, size_t voter) const {
  const auto& all = settings.owners[shard];
  return std::binary_search(all.begin(), all.end(), voter);
}

Plan::Plan(std::vector<Tensor> all, size_t blocks, const PlanSettings& chosen, uint8_t* full,
           uint8_t* decided)
    : tensors(std::move(all)),
      settings(chosen),
      whole(int64_t(blocks), 1, chosen.ties == Ties::zero, 0, chosen.averaged),
      ballots(full),
      verdicts(decided),
      scales(tensors.size()),
      way(way_of(settings)),
      mine(owned_by(settings.owners, settings.rank)),
      speakers(speakers_of(settings.owners)),
      scales_per_message_((tensors.size() + shards() - 1) / shards()) {
  // Cuts lie between chunks of 4096 coordinates, so that NaN means the same wherever they are.
  const size_t aim = std::max(settings.segment_blocks / kChunkBlocks, size_t(1)) * kChunkBlocks;
  std::vector<Piece> pieces;
  size_t filled = 0, start = 0;
  const auto close = [&] {
    segments.emplace_back(start, std::move(pieces), tensors, geometry_of(filled, 0));
    pieces.clear();
    start += filled;
    filled = 0;
  };
  for (size_t t = 0; t < tensors.size(); ++t) {
    const size_t total = blocks_of(tensors[t]);
    for (size_t block = 0; block < total;) {
      const size_t room = (aim - filled) / kChunkBlocks * kChunkBlocks;
      if (room == 0) {
        close();
        continue;
      }
      const size_t take = std::min(room, total - block);
      const size_t count = std::min(take * kBlock, tensors[t].count - block * kBlock);
      pieces.push_back({t, block, filled, take, count});
      filled += padded(take, settings);
      block += take;
    }
  }
  if (filled > 0 || segments.empty()) close();
  if (settings.scaled) {
    segments.emplace_back(start, std::vector<Piece>{}, tensors,
                          geometry_of(0, scales_per_message_));
  }

  size_t message = 0, total = 0;
  for (const Segment& segment : segments) {
    message = std::max(message, segment.geometry.message_bytes);
    total = std::max(total, segment.geometry.total_bytes);
  }
  buffers.resize(std::min(settings.depth, segments.size()));
  for (SegmentBuffers& each : buffers) {
    each.ballots.resize(total);
    each.received.resize(message * settings.voters * mine.size());
    each.verdict.resize(message * mine.size());
    each.verdicts.resize(total);
  }
}

}  // namespace hvd_sign
