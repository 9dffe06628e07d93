// Votes that all ranks hold in the same order, segment after segment: while one travels, the next
// is packed and the one before is tallied and applied. Does not depend on Python.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "plan.h"
#include "thread_pool.h"

namespace hvd_sign {

// One tensor in one vote.
struct Operand {
  bool elsewhere = false;           // packed there: the tensor's blocks stand in the plan's ballots
  const uint8_t* signal = nullptr;  // null, and not packed elsewhere: zeros
  Dtype signal_type = Dtype::float32;
  uint8_t* out = nullptr;  // null: the verdict is taken later, from the plan's verdicts
  Dtype out_type = Dtype::float32;
  double factor = 1;
  // Of an algorithm that keeps something, which is of the arithmetic's type.
  bool fused = false;
  Linear linear{};
  const uint8_t* state = nullptr;
  uint8_t* next = nullptr;
  Feedback feedback;
  Feedback unsaid;  // of the shards that this voter tallies, where verdicts are means
  // Of a signal that was packed elsewhere; added to by packing here.
  PackResult packed;
};

struct Totals {
  double pack_seconds = 0, exchange_seconds = 0, tally_seconds = 0, apply_seconds = 0;
  uint64_t payload_bytes = 0, ties = 0, nonfinite_chunks = 0;
};

// Something that was done with a segment, for the timeline; seconds of the steady clock.
struct Span {
  const char* what;
  uint32_t segment;
  double begin, end;
};

// A vote on one bucket; may begin anew once it is done.
struct Vote {
  std::shared_ptr<Plan> plan;
  std::vector<Operand> operands;
  uint64_t step = 0, zero_key = 0, tie_key = 0;
  bool joined = false;
  bool keep = false;  // leave the whole verdict in the plan's verdicts

  Weights weights;  // of the voters
  bool weighted = false;
  std::vector<uint64_t> counts;  // see Plan::counts(); over all segments

  size_t launched = 0, decided = 0;  // segments
  unsigned any_flags = 0, all_flags = kAbstained | kJoined;
  std::chrono::steady_clock::time_point begun;
  Totals totals;
  bool trace = false;
  std::vector<Span> spans;  // if traced
  std::string error;
  std::atomic<bool> done{false};

  void begin_anew();
};

class Stream {
 public:
  // The wire is this stream's own: what is begun on each of its channels is in the order of the
  // segments on every rank, though a segment's verdict may be due before or after the next
  // segment's ballots. The pool is that of the engine's thread.
  Stream(std::shared_ptr<Wire> wire, ThreadPool& pool);

  // The engine's lock is held by those who call these three; accept() takes new votes over.
  void submit(std::shared_ptr<Vote> vote) { incoming_.push_back(std::move(vote)); }
  bool busy() const { return !incoming_.empty() || !active_.empty(); }
  void accept();

  // Moves every segment on as far as it goes; returns whether any moved, and adds finished votes to
  // `ended`. Called by the engine's thread alone.
  bool advance(std::vector<std::shared_ptr<Vote>>& ended);

 private:
  struct Travelling {
    std::shared_ptr<Vote> vote;
    const Segment* segment;
    SegmentBuffers* buffers;
    uint32_t number;
    std::chrono::steady_clock::time_point begun;  // of what is under way
  };

  bool launch_next();
  bool tally_next();
  bool finish_next(std::vector<std::shared_ptr<Vote>>& ended);
  void pack_segment(Vote& vote, const Segment& segment, SegmentBuffers& buffers, uint32_t number);
  void send_ballots(const Travelling& at);
  void tally_segment(Travelling& at, size_t position);
  void send_verdict(Travelling& at);
  void apply_segment(Travelling& at);

  const std::shared_ptr<Wire> wire_;
  ThreadPool& pool_;
  std::vector<std::shared_ptr<Vote>> incoming_;
  std::vector<std::shared_ptr<Vote>> active_;   // in order of submission
  std::vector<Travelling> ballots_under_way_;   // ballots under way, oldest first
  std::vector<Travelling> verdicts_under_way_;  // verdicts under way, oldest first
  std::vector<PackResult> packed_;              // of a segment's parts
  std::vector<Parcel> out_, in_;
  std::vector<uint64_t> counts_;
  std::vector<Feedback> unsaid_;
  std::vector<uint16_t> flags_;
  std::vector<uint32_t> counters_;
  std::string broken_;
};

}  // namespace hvd_sign
