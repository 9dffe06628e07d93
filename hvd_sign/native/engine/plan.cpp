#include "plan.h"

#include <algorithm>
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

size_t blocks_of(const Tensor& tensor) {
  return tensor.count / kBlock + (tensor.count % kBlock != 0);
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
    const size_t count = blocks_of(tensors[t]);
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
  at_least_one("chunk_blocks", settings.chunk_blocks);
  at_least_one("slots", settings.slots);
  const size_t shards = settings.sharded ? settings.voters : 1;
  const size_t largest = std::min(settings.chunk_blocks, blocks);
  const Geometry chunk(int64_t(largest), int64_t(shards), settings.ties == Ties::zero,
                       settings.scaled ? int64_t((tensors.size() + shards - 1) / shards) : 0);
  if (chunk.message_bytes > kMaxMessage) {
    wrong("chunk_blocks", "messages of at most " + std::to_string(kMaxMessage) + " bytes",
          std::to_string(settings.chunk_blocks) + ", whose have " +
              std::to_string(chunk.message_bytes));
  }
}

PipelineChunk::PipelineChunk(size_t first, std::vector<Piece> all,
                             const std::vector<Tensor>& tensors, size_t shards, bool nonzero,
                             size_t trailer_floats)
    : first_block(first),
      pieces(std::move(all)),
      geometry(pieces.empty() ? 0 : int64_t(pieces.back().first + pieces.back().blocks),
               int64_t(shards), nonzero, int64_t(trailer_floats)) {
  for (const Piece& piece : pieces) {
    first_blocks.push_back(int64_t(piece.first) - int64_t(piece.block));
    ordinals.push_back(tensors[piece.tensor].ordinal);
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

Plan::Plan(std::vector<Tensor> all, size_t blocks, const PlanSettings& chosen, uint8_t* full,
           uint8_t* decided)
    : tensors(std::move(all)),
      settings(chosen),
      whole(int64_t(blocks), 1, chosen.ties == Ties::zero, 0),
      ballots(full),
      verdicts(decided),
      scales(tensors.size()),
      scales_per_message_((tensors.size() + shards() - 1) / shards()) {
  const bool nonzero = settings.ties == Ties::zero;
  // Cuts lie between chunks of 4096 coordinates, so that NaN means the same wherever they are.
  const size_t aim = std::max(settings.chunk_blocks / kChunkBlocks, size_t(1)) * kChunkBlocks;
  std::vector<Piece> pieces;
  size_t filled = 0, start = 0;
  const auto close = [&] {
    chunks.emplace_back(start, std::move(pieces), tensors, shards(), nonzero, 0);
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
      filled += take;
      block += take;
    }
  }
  if (filled > 0 || chunks.empty()) close();
  if (settings.scaled) {
    chunks.emplace_back(start, std::vector<Piece>{}, tensors, shards(), nonzero,
                        scales_per_message_);
  }

  size_t message = 0, total = 0;
  for (const PipelineChunk& chunk : chunks) {
    message = std::max(message, chunk.geometry.message_bytes);
    total = std::max(total, chunk.geometry.total_bytes);
  }
  slots.resize(std::min(settings.slots, chunks.size()));
  for (PipelineSlot& slot : slots) {
    slot.ballots.resize(total);
    slot.received.resize(message * settings.voters);
    slot.verdict.resize(message);
    slot.verdicts.resize(total);
  }
}

}  // namespace hvd_sign
