#include "plan.h"

#include <algorithm>

namespace hvd_sign {
namespace {

// What a thread takes at a time: 131,072 coordinates, whose packing takes longer than a wake-up.
constexpr size_t kPartBlocks = 2048;
constexpr size_t kStripBlocks = kChunkBlocks;
static_assert(kPartBlocks % kChunkBlocks == 0 && kStripBlocks < kPartBlocks);

}  // namespace

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
    const size_t total = (tensors[t].count + kBlock - 1) / kBlock;
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
  slots.resize(std::min(std::max(settings.slots, size_t(1)), chunks.size()));
  for (PipelineSlot& slot : slots) {
    slot.ballots.resize(total);
    slot.received.resize(message * settings.voters);
    slot.verdict.resize(message);
    slot.verdicts.resize(total);
  }
}

}  // namespace hvd_sign
