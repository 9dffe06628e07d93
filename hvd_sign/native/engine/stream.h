// Votes that all ranks hold in the same order, chunk after chunk: while one chunk travels, the next
// is packed and the one before is tallied and applied. Depends on MPI, not on Python.
#pragma once

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "crew.h"
#include "plan.h"

namespace hvd_sign {

// One tensor in one vote.
struct Feed {
  const uint8_t* signal = nullptr;  // null: the tensor's blocks stand in the plan's ballots
  Dtype signal_type = Dtype::float32;
  uint8_t* out = nullptr;  // null: the verdict is taken later, from the plan's verdicts
  Dtype out_type = Dtype::float32;
  double factor = 1;
  // Of a signal that was packed elsewhere; added to by packing here.
  PackResult packed;
};

struct Totals {
  double pack_seconds = 0, exchange_seconds = 0, tally_seconds = 0, apply_seconds = 0;
  uint64_t payload_bytes = 0, ties = 0, nonfinite_chunks = 0;
};

// Something that was done with a chunk, for the timeline; seconds of the steady clock.
struct Span {
  const char* what;
  uint32_t chunk;
  double begin, end;
};

// A vote on one bucket; may begin anew once it is done.
struct Vote {
  std::shared_ptr<Plan> plan;
  std::vector<Feed> feeds;
  uint64_t step = 0, zero_key = 0, tie_key = 0;
  bool joined = false;
  bool keep = false;  // leave the whole verdict in the plan's verdicts

  size_t launched = 0, decided = 0;  // chunks
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
  // Two communicators of our own: collectives on each are begun in the order of the chunks on every
  // rank, though a chunk's verdict may be due before or after the next chunk's ballots.
  // The crew is that of the engine's thread.
  Stream(MPI_Comm ballots, MPI_Comm verdicts, Crew& crew);

  // The engine's lock is held by those who call these three; accept() takes new votes over.
  void submit(std::shared_ptr<Vote> vote) { incoming_.push_back(std::move(vote)); }
  bool busy() const { return !incoming_.empty() || !active_.empty(); }
  void accept();

  // Moves every chunk on as far as it goes; returns whether any moved, and adds finished votes to
  // `ended`. Called by the engine's thread alone.
  bool advance(std::vector<std::shared_ptr<Vote>>& ended);

 private:
  struct Travelling {
    std::shared_ptr<Vote> vote;
    const PipelineChunk* chunk;
    PipelineSlot* slot;
    uint32_t number;
    MPI_Request request;
    std::chrono::steady_clock::time_point begun;  // of what is under way
  };

  bool launch_next();
  bool tally_next();
  bool finish_next(std::vector<std::shared_ptr<Vote>>& ended);
  void pack_chunk(Vote& vote, const PipelineChunk& chunk, PipelineSlot& slot, uint32_t number);
  void tally_chunk(Travelling& at);
  void apply_chunk(Travelling& at);

  MPI_Comm ballots_, verdicts_;
  Crew& crew_;
  std::vector<std::shared_ptr<Vote>> incoming_;
  std::vector<std::shared_ptr<Vote>> active_;  // in order of submission
  std::vector<Travelling> cast_;               // ballots under way, oldest first
  std::vector<Travelling> decided_;            // verdicts under way, oldest first
  std::vector<PackResult> packed_;             // of a chunk's parts
  std::vector<uint16_t> flags_;
  std::vector<uint32_t> counters_;
  std::string broken_;
};

}  // namespace hvd_sign
