#include "stream.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace hvd_sign {
namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

void trace(Vote& vote, const char* what, uint32_t segment, Clock::time_point begin) {
  if (vote.trace) vote.spans.push_back({what, segment, seconds(begin), seconds(Clock::now())});
}

// Adds the time of a scope to a sum, and to the timeline.
class Timed {
 public:
  Timed(Vote& vote, double& sum, const char* what, uint32_t segment)
      : vote_(vote), sum_(sum), what_(what), segment_(segment), start_(Clock::now()) {}
  ~Timed() {
    sum_ += std::chrono::duration<double>(Clock::now() - start_).count();
    trace(vote_, what_, segment_, start_);
  }

 private:
  Vote& vote_;
  double& sum_;
  const char* const what_;
  const uint32_t segment_;
  const Clock::time_point start_;
};

float* trailer(uint8_t* messages, const Geometry& geometry, size_t message) {
  return reinterpret_cast<float*>(messages + message * geometry.message_bytes +
                                  geometry.trailer_offset);
}

void copy_blocks(const uint8_t* from, const Geometry& from_geometry, size_t from_first, uint8_t* to,
                 const Geometry& to_geometry, size_t to_first, size_t count) {
  for (size_t done = 0; done < count; done += kChunkBlocks) {
    const size_t here = from_geometry.chunk_blocks(count - done);
    Blocks blocks{};
    get_blocks(blocks, from, from_geometry, from_first + done, here);
    put_blocks(blocks, to, to_geometry, to_first + done, here);
  }
}

// Packs a part of what an algorithm that keeps something makes of the gradient.
PackResult pack_kept(const Operand& operand, const Part& part, const uint8_t* signal,
                     uint8_t* ballots, const Geometry& geometry, const PackOptions& options) {
  const size_t offset = part.block * kBlock * bytes_of(arithmetic_of(operand.signal_type));
  const auto at = [offset](auto* array) { return array ? array + offset : nullptr; };
  Feedback feedback;
  if (operand.feedback.kept) {
    const size_t chunk = part.block / kChunkBlocks;
    feedback = {at(static_cast<const uint8_t*>(operand.feedback.kept)),
                at(static_cast<uint8_t*>(operand.feedback.next)), operand.feedback.sent + chunk,
                operand.feedback.next_sent + chunk};
  }
  return pack_linear(signal, operand.signal_type, part.count, at(operand.state), at(operand.next),
                     operand.linear, feedback, ballots, geometry, part.first, options);
}

Labels labels(const Vote& vote, Kind kind, uint32_t segment) {
  const PlanSettings& s = vote.plan->settings;
  return {kind, s.ties, s.stream, s.bucket, segment, vote.step};
}

}  // namespace

void Vote::begin_anew() {
  launched = decided = 0;
  any_flags = 0;
  all_flags = kAbstained | kJoined;
  counts.assign(plan->settings.counted ? 2 * plan->settings.voters : 0, 0);
  totals = {};
  spans.clear();
  error.clear();
  done.store(false, std::memory_order_relaxed);
}

Stream::Stream(std::shared_ptr<Wire> wire, ThreadPool& pool) : wire_(std::move(wire)), pool_(pool) {
  // More than are ever under way, as a rule, so that none of these grows while votes are held.
  incoming_.reserve(256);
  active_.reserve(256);
  ballots_under_way_.reserve(256);
  verdicts_under_way_.reserve(256);
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
    if (vote->launched == plan.segments.size()) continue;
    const uint32_t number = uint32_t(vote->launched);
    SegmentBuffers& buffers = plan.buffers[number % plan.buffers.size()];
    if (buffers.busy) return false;
    buffers.busy = true;
    if (number == 0) vote->begun = Clock::now();
    const Segment& segment = plan.segments[number];
    const size_t most = std::max(plan.settings.voters, plan.shards());
    flags_.resize(std::max(flags_.size(), most));
    counters_.resize(std::max(counters_.size(), most));
    pack_segment(*vote, segment, buffers, number);
    vote->launched += 1;
    Travelling at{vote, &segment, &buffers, number, Clock::now()};
    send_ballots(at);
    ballots_under_way_.push_back(std::move(at));
    return true;
  }
  return false;
}

void Stream::send_ballots(const Travelling& at) {
  Plan& plan = *at.vote->plan;
  SegmentBuffers& buffers = *at.buffers;
  const size_t message = at.segment->geometry.message_bytes, voters = plan.settings.voters;
  uint8_t *ballots = buffers.ballots.data(), *received = buffers.received.data();
  size_t sent = voters - 1;
  if (plan.way == Plan::Way::sharded) {
    wire_->all_to_all(Channel::ballots, ballots, received, message, buffers.pending);
  } else if (plan.way == Plan::Way::gathered) {
    wire_->all_gather(Channel::ballots, ballots, received, message, buffers.pending);
  } else {
    out_.clear();
    in_.clear();
    for (size_t shard = 0; shard < plan.shards(); ++shard) {
      for (const size_t owner : plan.settings.owners[shard]) {
        if (owner != plan.settings.rank)
          out_.push_back({owner, ballots + shard * message, message});
      }
    }
    for (size_t i = 0; i < plan.mine.size(); ++i) {
      uint8_t* all = received + i * voters * message;
      std::memcpy(all + plan.settings.rank * message, ballots + plan.mine[i] * message, message);
      for (size_t voter = 0; voter < voters; ++voter) {
        if (voter != plan.settings.rank) in_.push_back({voter, all + voter * message, message});
      }
    }
    wire_->deliver(Channel::ballots, out_, in_, buffers.pending);
    sent = out_.size();
  }
  at.vote->totals.payload_bytes += message * sent;
}

void Stream::pack_segment(Vote& vote, const Segment& segment, SegmentBuffers& buffers,
                          uint32_t number) {
  const Timed timed(vote, vote.totals.pack_seconds, "pack", number);
  Plan& plan = *vote.plan;
  const Geometry& geometry = segment.geometry;
  uint64_t nonfinite = 0, finite = 0;
  for (const Piece& piece : segment.pieces) {
    const Operand& operand = vote.operands[piece.tensor];
    if (!operand.elsewhere) continue;
    copy_blocks(plan.ballots, plan.whole, segment.first_block + piece.first, buffers.ballots.data(),
                geometry, piece.first, piece.blocks);
    finite += operand.packed.finite_coordinates;
    // Counted with the tensor's first piece.
    if (piece.block == 0) nonfinite += operand.packed.nonfinite_chunks;
  }
  packed_.resize(std::max(packed_.size(), segment.parts.size()));
  const auto pack_part = [&](size_t i) {
    const Part& part = segment.parts[i];
    const size_t tensor = segment.pieces[part.piece].tensor;
    const Operand& operand = vote.operands[tensor];
    if (operand.elsewhere) return;
    const PackOptions options{
        plan.settings.ties,           vote.zero_key,        (plan.settings.rank & 1) != 0,
        plan.tensors[tensor].ordinal, plan.settings.scaled, part.block};
    const uint8_t* signal = operand.signal;
    if (signal != nullptr) signal += part.block * kBlock * bytes_of(operand.signal_type);
    if (!operand.fused) {
      packed_[i] = pack(signal, operand.signal_type, part.count, buffers.ballots.data(), geometry,
                        part.first, options);
      return;
    }
    packed_[i] = pack_kept(operand, part, signal, buffers.ballots.data(), geometry, options);
  };
  if (pool_.threads() == 1) {
    for (size_t i = 0; i < segment.parts.size(); ++i) pack_part(i);
  } else {
    pool_.run(segment.shared.size(), [&](size_t i) { pack_part(segment.shared[i]); });
    for (const size_t i : segment.alone) pack_part(i);
  }
  for (size_t i = 0; i < segment.parts.size(); ++i) {
    Operand& operand = vote.operands[segment.pieces[segment.parts[i].piece].tensor];
    if (operand.elsewhere) continue;
    operand.packed.abs_sum += packed_[i].abs_sum;
    operand.packed.finite_coordinates += packed_[i].finite_coordinates;
    nonfinite += packed_[i].nonfinite_chunks;
    finite += packed_[i].finite_coordinates;
  }
  if (number + 1 == plan.segments.size() && plan.settings.scaled) {
    const size_t scales = plan.scales_per_message();
    for (size_t t = 0; t < geometry.shards * scales; ++t) {
      trailer(buffers.ballots.data(), geometry, t / scales)[t % scales] =
          t < vote.operands.size() ? vote.operands[t].packed.mean_abs() : 0;
    }
  }
  vote.totals.nonfinite_chunks += nonfinite;
  const unsigned flags = (nonfinite ? unsigned(kNonfinite) : 0) |
                         (finite ? 0 : unsigned(kAbstained)) |
                         (vote.joined ? unsigned(kJoined) : 0);
  seal(buffers.ballots.data(), geometry.shards, geometry, labels(vote, Kind::ballot, number),
       uint16_t(flags), uint32_t(nonfinite), uint32_t(plan.settings.rank), -1);
}

bool Stream::tally_next() {
  if (ballots_under_way_.empty() || !wire_->ended(ballots_under_way_.front().buffers->pending))
    return false;
  Travelling at = std::move(ballots_under_way_.front());
  ballots_under_way_.erase(ballots_under_way_.begin());
  trace(*at.vote, "ballots", at.number, at.begun);
  for (size_t i = 0; i < at.vote->plan->mine.size(); ++i) tally_segment(at, i);
  send_verdict(at);
  verdicts_under_way_.push_back(std::move(at));
  return true;
}

void Stream::send_verdict(Travelling& at) {
  const Plan& plan = *at.vote->plan;
  SegmentBuffers& buffers = *at.buffers;
  const size_t message = at.segment->geometry.message_bytes;
  uint8_t *verdict = buffers.verdict.data(), *verdicts = buffers.verdicts.data();
  size_t sent = plan.settings.voters - 1;
  if (plan.way == Plan::Way::sharded) {
    wire_->all_gather(Channel::verdicts, verdict, verdicts, message, buffers.pending);
  } else if (plan.way == Plan::Way::gathered) {
    buffers.verdicts.swap(buffers.verdict);
    return;
  } else {
    out_.clear();
    in_.clear();
    for (size_t i = 0; i < plan.mine.size(); ++i) {
      const size_t shard = plan.mine[i];
      std::memcpy(verdicts + shard * message, verdict + i * message, message);
      if (plan.speakers[shard] != plan.settings.rank) continue;
      for (size_t voter = 0; voter < plan.settings.voters; ++voter) {
        if (!plan.owns(shard, voter)) out_.push_back({voter, verdict + i * message, message});
      }
    }
    for (size_t shard = 0; shard < plan.shards(); ++shard) {
      if (plan.owns(shard, plan.settings.rank)) continue;
      in_.push_back({plan.speakers[shard], verdicts + shard * message, message});
    }
    wire_->deliver(Channel::verdicts, out_, in_, buffers.pending);
    sent = out_.size();
  }
  at.begun = Clock::now();
  at.vote->totals.payload_bytes += message * sent;
}

void Stream::tally_segment(Travelling& at, size_t position) {
  Vote& vote = *at.vote;
  const Timed timed(vote, vote.totals.tally_seconds, "tally", at.number);
  const Plan& plan = *vote.plan;
  const Geometry& geometry = at.segment->geometry;
  const size_t shard = plan.mine[position];
  const uint8_t* received =
      at.buffers->received.data() + position * plan.settings.voters * geometry.message_bytes;
  uint8_t* verdict = at.buffers->verdict.data() + position * geometry.message_bytes;
  check(received, plan.settings.voters, geometry, labels(vote, Kind::ballot, at.number),
        int64_t(shard), flags_.data(), counters_.data());
  TallyOptions options{shard,
                       plan.settings.ties,
                       vote.tie_key,
                       at.segment->first_blocks.data(),
                       at.segment->ordinals.data(),
                       at.segment->ordinals.size()};
  if (vote.weighted || plan.settings.counted) {
    options.weights = &vote.weights;
    options.lengths = at.segment->lengths.data();
  }
  if (plan.settings.counted) {
    counts_.assign(2 * plan.settings.voters, 0);
    options.judged = counts_.data();
    options.agreed = counts_.data() + plan.settings.voters;
  }
  if (plan.settings.averaged) {
    unsaid_.clear();
    for (const Piece& piece : at.segment->pieces) {
      unsaid_.push_back(vote.operands[piece.tensor].unsaid);
    }
    options.lengths = at.segment->lengths.data();
    options.unsaid = unsaid_.data();
  }
  vote.totals.ties += tally(received, plan.settings.voters, geometry, verdict, options).ties;
  if (plan.settings.counted) {
    std::copy(counts_.begin(), counts_.end(), plan.counts(verdict, geometry));
  }
  unsigned any = 0, every = kAbstained | kJoined;
  uint32_t counter = 0;
  for (size_t i = 0; i < plan.settings.voters; ++i) {
    any |= flags_[i];
    every &= flags_[i];
    counter += counters_[i];
  }
  seal(verdict, 1, geometry, labels(vote, Kind::verdict, at.number),
       uint16_t((any & kNonfinite) | every), counter, uint32_t(shard), int64_t(shard));
  if (plan.way == Plan::Way::gathered) {
    vote.any_flags |= any;
    vote.all_flags &= every;
  }
}

bool Stream::finish_next(std::vector<std::shared_ptr<Vote>>& ended) {
  if (verdicts_under_way_.empty()) return false;
  Travelling& next = verdicts_under_way_.front();
  const bool travelled = next.vote->plan->way != Plan::Way::gathered;
  if (travelled && !wire_->ended(next.buffers->pending)) return false;
  Travelling at = std::move(next);
  verdicts_under_way_.erase(verdicts_under_way_.begin());
  if (travelled) trace(*at.vote, "verdict", at.number, at.begun);
  apply_segment(at);
  at.buffers->busy = false;
  Vote& vote = *at.vote;
  if (++vote.decided < vote.plan->segments.size()) return true;
  const double wall = std::chrono::duration<double>(Clock::now() - vote.begun).count();
  const Totals& t = vote.totals;
  vote.totals.exchange_seconds =
      std::max(0.0, wall - t.pack_seconds - t.tally_seconds - t.apply_seconds);
  active_.erase(std::find(active_.begin(), active_.end(), at.vote));
  ended.push_back(at.vote);
  return true;
}

void Stream::apply_segment(Travelling& at) {
  Vote& vote = *at.vote;
  const Timed timed(vote, vote.totals.apply_seconds, "apply", at.number);
  Plan& plan = *vote.plan;
  const Geometry& geometry = at.segment->geometry;
  uint8_t* verdicts = at.buffers->verdicts.data();
  if (plan.way != Plan::Way::gathered) {
    check(verdicts, plan.shards(), geometry, labels(vote, Kind::verdict, at.number), -1,
          flags_.data(), counters_.data(), plan.speakers.data());
    for (size_t i = 0; i < plan.shards(); ++i) {
      vote.any_flags |= flags_[i];
      vote.all_flags &= flags_[i];
    }
  }
  if (vote.keep) {
    for (const Piece& piece : at.segment->pieces) {
      copy_blocks(verdicts, geometry, piece.first, plan.verdicts, plan.whole,
                  at.segment->first_block + piece.first, piece.blocks);
    }
  }
  pool_.run(at.segment->parts.size(), [&](size_t i) {
    const Part& part = at.segment->parts[i];
    const Operand& operand = vote.operands[at.segment->pieces[part.piece].tensor];
    if (operand.out == nullptr) return;
    write_verdict(operand.out + part.block * kBlock * bytes_of(operand.out_type), operand.out_type,
                  part.count, verdicts, geometry, part.first, operand.factor);
  });
  if (plan.settings.counted) {
    for (size_t shard = 0; shard < plan.shards(); ++shard) {
      const uint64_t* counts = plan.counts(verdicts + shard * geometry.message_bytes, geometry);
      for (size_t i = 0; i < vote.counts.size(); ++i) vote.counts[i] += counts[i];
    }
  }
  if (at.number + 1 < plan.segments.size() || !plan.settings.scaled) return;
  const size_t scales = plan.scales_per_message();
  for (size_t t = 0; t < plan.scales.size(); ++t) {
    plan.scales[t] = trailer(verdicts, geometry, t / scales)[t % scales];
  }
}

}  // namespace hvd_sign
