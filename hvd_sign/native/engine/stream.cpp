#include "stream.h"

#include <algorithm>
#include <stdexcept>

namespace hvd_sign {
namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

void trace(Vote& vote, const char* what, uint32_t chunk, Clock::time_point begin) {
  if (vote.trace) vote.spans.push_back({what, chunk, seconds(begin), seconds(Clock::now())});
}

// Adds the time of a scope to a sum, and to the timeline.
class Timed {
 public:
  Timed(Vote& vote, double& sum, const char* what, uint32_t chunk)
      : vote_(vote), sum_(sum), what_(what), chunk_(chunk), start_(Clock::now()) {}
  ~Timed() {
    sum_ += std::chrono::duration<double>(Clock::now() - start_).count();
    trace(vote_, what_, chunk_, start_);
  }

 private:
  Vote& vote_;
  double& sum_;
  const char* const what_;
  const uint32_t chunk_;
  const Clock::time_point start_;
};

void must_succeed(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw std::runtime_error(std::string(call) + ": " + std::string(text, size_t(length)));
}

bool has_ended(MPI_Request& request) {
  int flag = 0;
  must_succeed(MPI_Test(&request, &flag, MPI_STATUS_IGNORE), "MPI_Test");
  return flag != 0;
}

float* trailer(uint8_t* messages, const Geometry& geometry, size_t message) {
  return reinterpret_cast<float*>(messages + message * geometry.message_bytes +
                                  geometry.trailer_offset);
}

void copy_blocks(const uint8_t* from, const Geometry& from_geometry, size_t from_first, uint8_t* to,
                 const Geometry& to_geometry, size_t to_first, size_t count) {
  for (size_t done = 0; done < count; done += kChunkBlocks) {
    const size_t here = std::min(kChunkBlocks, count - done);
    Blocks blocks{};
    get_blocks(blocks, from, from_geometry, from_first + done, here);
    put_blocks(blocks, to, to_geometry, to_first + done, here);
  }
}

Labels labels(const Vote& vote, Kind kind, uint32_t chunk) {
  const PlanSettings& s = vote.plan->settings;
  return {kind, s.ties, s.stream, s.bucket, chunk, vote.step};
}

}  // namespace

void Vote::begin_anew() {
  launched = decided = 0;
  any_flags = 0;
  all_flags = kAbstained | kJoined;
  totals = {};
  spans.clear();
  error.clear();
  done.store(false, std::memory_order_relaxed);
}

Stream::Stream(MPI_Comm ballots, MPI_Comm verdicts, Crew& crew)
    : ballots_(ballots), verdicts_(verdicts), crew_(crew) {
  // More than are ever under way, as a rule, so that none of these grows while votes are held.
  incoming_.reserve(256);
  active_.reserve(256);
  cast_.reserve(256);
  decided_.reserve(256);
}

void Stream::accept() {
  active_.insert(active_.end(), incoming_.begin(), incoming_.end());
  incoming_.clear();
}

bool Stream::advance(std::vector<std::shared_ptr<Vote>>& ended) {
  try {
    if (!broken_.empty()) throw std::runtime_error(broken_);
    bool moved = finish_next(ended);
    moved = tally_next() || moved;
    return launch_next() || moved;
  } catch (const std::exception& error) {
    // Buffers of what is under way stay where they are: the plans are kept by their votes.
    broken_ = error.what();
    for (auto& vote : active_) {
      vote->error = broken_;
      ended.push_back(vote);
    }
    active_.clear();
    return true;
  }
}

bool Stream::launch_next() {
  for (auto& vote : active_) {
    Plan& plan = *vote->plan;
    if (vote->launched == plan.chunks.size()) continue;
    const uint32_t number = uint32_t(vote->launched);
    PipelineSlot& slot = plan.slots[number % plan.slots.size()];
    if (slot.busy) return false;
    slot.busy = true;
    if (number == 0) vote->begun = Clock::now();
    const PipelineChunk& chunk = plan.chunks[number];
    const size_t message = chunk.geometry.message_bytes;
    const size_t voters = plan.settings.voters;
    pack_chunk(*vote, chunk, slot, number);
    vote->launched += 1;
    Travelling at{vote, &chunk, &slot, number, MPI_REQUEST_NULL, Clock::now()};
    if (plan.settings.sharded) {
      must_succeed(MPI_Ialltoall(slot.ballots.data(), int(message), MPI_BYTE, slot.received.data(),
                                 int(message), MPI_BYTE, ballots_, &at.request),
                   "MPI_Ialltoall");
    } else {
      must_succeed(MPI_Iallgather(slot.ballots.data(), int(message), MPI_BYTE, slot.received.data(),
                                  int(message), MPI_BYTE, ballots_, &at.request),
                   "MPI_Iallgather");
    }
    vote->totals.payload_bytes += message * (voters - 1);
    cast_.push_back(std::move(at));
    return true;
  }
  return false;
}

void Stream::pack_chunk(Vote& vote, const PipelineChunk& chunk, PipelineSlot& slot,
                        uint32_t number) {
  const Timed timed(vote, vote.totals.pack_seconds, "pack", number);
  Plan& plan = *vote.plan;
  const Geometry& geometry = chunk.geometry;
  uint64_t nonfinite = 0, finite = 0;
  for (const Piece& piece : chunk.pieces) {
    const Feed& feed = vote.feeds[piece.tensor];
    if (feed.signal != nullptr) continue;
    copy_blocks(plan.ballots, plan.whole, chunk.first_block + piece.first, slot.ballots.data(),
                geometry, piece.first, piece.blocks);
    finite += feed.packed.finite_coordinates;
    // Counted with the tensor's first piece.
    if (piece.block == 0) nonfinite += feed.packed.nonfinite_chunks;
  }
  packed_.resize(std::max(packed_.size(), chunk.parts.size()));
  const auto pack_part = [&](size_t i) {
    const Part& part = chunk.parts[i];
    const size_t tensor = chunk.pieces[part.piece].tensor;
    const Feed& feed = vote.feeds[tensor];
    if (feed.signal == nullptr) return;
    const PackOptions options{
        plan.settings.ties,           vote.zero_key,        (plan.settings.rank & 1) != 0,
        plan.tensors[tensor].ordinal, plan.settings.scaled, part.block};
    packed_[i] =
        pack(feed.signal + part.block * kBlock * bytes_of(feed.signal_type), feed.signal_type,
             part.count, slot.ballots.data(), geometry, part.first, options);
  };
  if (crew_.threads() == 1) {
    for (size_t i = 0; i < chunk.parts.size(); ++i) pack_part(i);
  } else {
    crew_.run(chunk.shared.size(), [&](size_t i) { pack_part(chunk.shared[i]); });
    for (const size_t i : chunk.alone) pack_part(i);
  }
  for (size_t i = 0; i < chunk.parts.size(); ++i) {
    Feed& feed = vote.feeds[chunk.pieces[chunk.parts[i].piece].tensor];
    if (feed.signal == nullptr) continue;
    feed.packed.abs_sum += packed_[i].abs_sum;
    feed.packed.finite_coordinates += packed_[i].finite_coordinates;
    nonfinite += packed_[i].nonfinite_chunks;
    finite += packed_[i].finite_coordinates;
  }
  if (geometry.trailer_floats > 0) {
    for (size_t t = 0; t < geometry.shards * geometry.trailer_floats; ++t) {
      trailer(slot.ballots.data(), geometry,
              t / geometry.trailer_floats)[t % geometry.trailer_floats] =
          t < vote.feeds.size() ? vote.feeds[t].packed.mean_abs() : 0;
    }
  }
  vote.totals.nonfinite_chunks += nonfinite;
  const unsigned flags = (nonfinite ? unsigned(kNonfinite) : 0) |
                         (finite ? 0 : unsigned(kAbstained)) |
                         (vote.joined ? unsigned(kJoined) : 0);
  seal(slot.ballots.data(), geometry.shards, geometry, labels(vote, Kind::ballot, number),
       uint16_t(flags), uint32_t(nonfinite), uint32_t(plan.settings.rank), -1);
}

bool Stream::tally_next() {
  if (cast_.empty() || !has_ended(cast_.front().request)) return false;
  Travelling at = std::move(cast_.front());
  cast_.erase(cast_.begin());
  trace(*at.vote, "ballots", at.number, at.begun);
  tally_chunk(at);
  if (at.vote->plan->settings.sharded) {
    const size_t message = at.chunk->geometry.message_bytes;
    must_succeed(
        MPI_Iallgather(at.slot->verdict.data(), int(message), MPI_BYTE, at.slot->verdicts.data(),
                       int(message), MPI_BYTE, verdicts_, &at.request),
        "MPI_Iallgather");
    at.begun = Clock::now();
    at.vote->totals.payload_bytes += message * (at.vote->plan->settings.voters - 1);
  } else {
    at.slot->verdicts.swap(at.slot->verdict);
  }
  decided_.push_back(std::move(at));
  return true;
}

void Stream::tally_chunk(Travelling& at) {
  Vote& vote = *at.vote;
  const Timed timed(vote, vote.totals.tally_seconds, "tally", at.number);
  const Plan& plan = *vote.plan;
  const Geometry& geometry = at.chunk->geometry;
  const size_t shard = plan.settings.sharded ? plan.settings.rank : 0;
  flags_.resize(plan.settings.voters);
  counters_.resize(plan.settings.voters);
  check(at.slot->received.data(), plan.settings.voters, geometry,
        labels(vote, Kind::ballot, at.number), int64_t(shard), flags_.data(), counters_.data());
  const TallyOptions options{shard,
                             plan.settings.ties,
                             vote.tie_key,
                             at.chunk->first_blocks.data(),
                             at.chunk->ordinals.data(),
                             at.chunk->ordinals.size()};
  vote.totals.ties += tally(at.slot->received.data(), plan.settings.voters, geometry,
                            at.slot->verdict.data(), options)
                          .ties;
  unsigned any = 0, every = kAbstained | kJoined;
  uint32_t counter = 0;
  for (size_t i = 0; i < plan.settings.voters; ++i) {
    any |= flags_[i];
    every &= flags_[i];
    counter += counters_[i];
  }
  seal(at.slot->verdict.data(), 1, geometry, labels(vote, Kind::verdict, at.number),
       uint16_t((any & kNonfinite) | every), counter, uint32_t(plan.settings.rank), int64_t(shard));
  if (!plan.settings.sharded) {
    vote.any_flags |= any;
    vote.all_flags &= every;
  }
}

bool Stream::finish_next(std::vector<std::shared_ptr<Vote>>& ended) {
  if (decided_.empty()) return false;
  Travelling& next = decided_.front();
  if (next.vote->plan->settings.sharded && !has_ended(next.request)) return false;
  Travelling at = std::move(next);
  decided_.erase(decided_.begin());
  if (at.vote->plan->settings.sharded) trace(*at.vote, "verdict", at.number, at.begun);
  apply_chunk(at);
  at.slot->busy = false;
  Vote& vote = *at.vote;
  if (++vote.decided < vote.plan->chunks.size()) return true;
  const double wall = std::chrono::duration<double>(Clock::now() - vote.begun).count();
  const Totals& t = vote.totals;
  vote.totals.exchange_seconds =
      std::max(0.0, wall - t.pack_seconds - t.tally_seconds - t.apply_seconds);
  active_.erase(std::find(active_.begin(), active_.end(), at.vote));
  ended.push_back(at.vote);
  return true;
}

void Stream::apply_chunk(Travelling& at) {
  Vote& vote = *at.vote;
  const Timed timed(vote, vote.totals.apply_seconds, "apply", at.number);
  Plan& plan = *vote.plan;
  const Geometry& geometry = at.chunk->geometry;
  uint8_t* verdicts = at.slot->verdicts.data();
  if (plan.settings.sharded) {
    check(verdicts, plan.settings.voters, geometry, labels(vote, Kind::verdict, at.number), -1,
          flags_.data(), counters_.data());
    for (size_t i = 0; i < plan.settings.voters; ++i) {
      vote.any_flags |= flags_[i];
      vote.all_flags &= flags_[i];
    }
  }
  if (vote.keep) {
    for (const Piece& piece : at.chunk->pieces) {
      copy_blocks(verdicts, geometry, piece.first, plan.verdicts, plan.whole,
                  at.chunk->first_block + piece.first, piece.blocks);
    }
  }
  crew_.run(at.chunk->parts.size(), [&](size_t i) {
    const Part& part = at.chunk->parts[i];
    const Feed& feed = vote.feeds[at.chunk->pieces[part.piece].tensor];
    if (feed.out == nullptr) return;
    write_verdict(feed.out + part.block * kBlock * bytes_of(feed.out_type), feed.out_type,
                  part.count, verdicts, geometry, part.first, feed.factor);
  });
  for (size_t t = 0; t < plan.scales.size() && geometry.trailer_floats > 0; ++t) {
    plan.scales[t] =
        trailer(verdicts, geometry, t / geometry.trailer_floats)[t % geometry.trailer_floats];
  }
}

}  // namespace hvd_sign
