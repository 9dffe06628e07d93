#include "plan.h"

#include <algorithm>

namespace hvd_sign {

PipelineChunk::PipelineChunk(size_t first, std::vector<Piece> parts,
                             const std::vector<Tensor>& tensors, size_t shards, bool nonzero,
                             size_t trailer_floats)
    : first_block(first),
      pieces(std::move(parts)),
      geometry(pieces.empty() ? 0 : int64_t(pieces.back().first + pieces.back().blocks),
               int64_t(shards), nonzero, int64_t(trailer_floats)) {
  for (const Piece& piece : pieces) {
    first_blocks.push_back(int64_t(piece.first) - int64_t(piece.block));
    ordinals.push_back(tensors[piece.tensor].ordinal);
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
