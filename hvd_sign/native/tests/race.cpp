// The engine under the thread sanitizer: on each rank several threads, each with a stream of its
// own, submit votes of every way and kind, wait for them in different ways and read what came;
// streams come and go meanwhile, one of them over a relay. Start it with mpirun; every verdict,
// count and state is compared with one that is computed here.
#include <mpi.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "../coin.h"
#include "../engine/engine.h"
#include "../engine/mpi_wire.h"
#include "../engine/relay.h"

using namespace hvd_sign;

namespace {

constexpr int kThreads = 3;
constexpr int kRounds = 4;
// Enough for several threads to share, behind a small tensor that puts it off the bitmaps' bytes.
constexpr size_t kSmall = 3 * kBlock, kCount = 70 * kChunk + 100;

bool negative(uint64_t rank, uint64_t thread, uint64_t step, uint64_t i) {
  return mix64(mix64(mix64(rank + 1) + thread) + (step << 32) + i) & 1;
}

float sign(uint64_t rank, uint64_t thread, uint64_t step, uint64_t i) {
  return negative(rank, thread, step, i) ? -1.0f : 1.0f;
}

int weight(size_t rank) { return 1 + 2 * int(rank % 2); }

// What a bucket's votes are, beside a majority of equals on the gradient.
enum class Kind { plain, counted, fused };

// One bucket of two tensors, and the buffers of a vote on it.
struct Bucket {
  Bucket(size_t rank, size_t ranks, size_t thread, uint32_t number, const Owners& owners, Kind kind)
      : rank(rank),
        ranks(ranks),
        thread(thread),
        number(number),
        kind(kind),
        blocks((kCount + kBlock - 1) / kBlock),
        whole(int64_t(blocks), 1, false, 0),
        ballots(whole.total_bytes),
        verdicts(whole.total_bytes),
        signal(kCount),
        state(kCount),
        out(kCount),
        plan(std::make_shared<Plan>(
            std::vector<Tensor>{{0, kSmall, 1}, {3, kCount - kSmall, 2}}, blocks,
            PlanSettings{Ties::positive, owners, false, rank, ranks, 0, number, 64 * kChunkBlocks,
                         2, kind == Kind::counted},
            ballots.data(), verdicts.data())) {
    for (size_t i = 0; i < kCount; ++i) state[i] = gradient(rank, uint64_t(-1), i);
  }

  float gradient(size_t of, uint64_t step, size_t i) const {
    return sign(of, thread, step + (uint64_t(number) << 16), i);
  }

  std::shared_ptr<Vote> vote(uint64_t step) {
    for (size_t i = 0; i < kCount; ++i) {
      signal[i] = gradient(rank, step, i);
      out[i] = 0;
    }
    auto vote = std::make_shared<Vote>();
    vote->plan = plan;
    vote->begin_anew();
    vote->step = step;
    if (kind == Kind::counted) {
      std::vector<int8_t> weights;
      for (size_t voter = 0; voter < ranks; ++voter) weights.push_back(int8_t(weight(voter)));
      vote->weights.assign(weights.data(), ranks);
      vote->weighted = true;
    }
    for (const size_t first : {size_t(0), kSmall}) {
      Operand operand;
      operand.signal = reinterpret_cast<const uint8_t*>(signal.data() + first);
      operand.out = reinterpret_cast<uint8_t*>(out.data() + first);
      if (kind == Kind::fused) {
        operand.fused = true;
        // The last gradient outweighs this one, and gives way to it.
        operand.linear = {2, 1, 0, 1, 1};
        operand.next = reinterpret_cast<uint8_t*>(state.data() + first);
        operand.state = operand.next;
      }
      vote->operands.push_back(operand);
    }
    return vote;
  }

  // How many numbers of a vote that has ended are wrong.
  size_t wrong(const Vote& ended, uint64_t step) const {
    const bool counted = kind == Kind::counted, fused = kind == Kind::fused;
    std::vector<uint64_t> counts(counted ? 2 * ranks : 0);
    size_t found = 0;
    for (size_t i = 0; i < kCount; ++i) {
      const auto vote_of = [&](size_t voter) {
        return int(gradient(voter, step - fused, i)) * (counted ? weight(voter) : 1);
      };
      int sum = 0;
      for (size_t voter = 0; voter < ranks; ++voter) sum += vote_of(voter);
      found += out[i] != (sum < 0 ? -1.0f : 1.0f);
      found += fused && state[i] != signal[i];
      for (size_t voter = 0; counted && voter < ranks; ++voter) {
        const int others = sum - vote_of(voter);
        counts[voter] += others != 0;
        counts[ranks + voter] += others * vote_of(voter) > 0;
      }
    }
    return found + (ended.counts != counts);
  }

  const size_t rank, ranks, thread;
  const uint32_t number;
  const Kind kind;
  size_t blocks;
  Geometry whole;
  std::vector<uint8_t> ballots, verdicts;
  std::vector<float> signal, state, out;
  std::shared_ptr<Plan> plan;
};

// Serves a relay over MPI, on a thread of its own, for as long as it lives.
class Server {
 public:
  Server(std::shared_ptr<Relay> relay, MPI_Comm ballots, MPI_Comm verdicts, size_t ranks)
      : relay_(std::move(relay)), wire_(ballots, verdicts), ranks_(ranks), thread_([this] {
          while (!stopping_) serve();
        }) {}
  ~Server() {
    stopping_ = true;
    thread_.join();
  }

 private:
  void serve() {
    for (const Errand& errand : relay_->take()) {
      Pending pending;
      pending.ticket = errand.ticket;
      if (errand.kind == Errand::Kind::deliver) {
        wire_.deliver(errand.channel, errand.out, errand.in, pending);
      } else {
        const Parcel &out = errand.out[0], &in = errand.in[0];
        const size_t each = in.bytes / ranks_;
        if (errand.kind == Errand::Kind::all_to_all) {
          wire_.all_to_all(errand.channel, out.data, in.data, each, pending);
        } else {
          wire_.all_gather(errand.channel, out.data, in.data, each, pending);
        }
      }
      begun_.push_back(std::move(pending));
    }
    for (size_t i = 0; i < begun_.size();) {
      if (wire_.ended(begun_[i])) {
        relay_->finish(begun_[i].ticket);
        begun_.erase(begun_.begin() + long(i));
      } else {
        ++i;
      }
    }
    std::this_thread::yield();
  }

  const std::shared_ptr<Relay> relay_;
  MpiWire wire_;
  const size_t ranks_;
  std::vector<Pending> begun_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

// A bucket of each way and kind in flight on one stream, round after round. Returns how many
// numbers were wrong.
size_t vote_on(Engine& engine, std::shared_ptr<Wire> wire, size_t rank, size_t ranks,
               size_t thread) {
  const auto stream = engine.open(std::move(wire));
  Owners one_each, everyone(1);
  for (size_t voter = 0; voter < ranks; ++voter) {
    one_each.push_back({voter});
    everyone[0].push_back(voter);
  }
  const Owners table{{0}, {0, ranks - 1}, {1}};
  std::vector<Bucket> buckets;
  for (const Owners& owners : {one_each, everyone, table}) {
    for (const Kind kind : {Kind::plain, Kind::counted, Kind::fused}) {
      buckets.emplace_back(rank, ranks, thread, uint32_t(buckets.size()), owners, kind);
    }
  }
  size_t wrong = 0;
  for (uint64_t step = 0; step < kRounds; ++step) {
    std::vector<std::shared_ptr<Vote>> votes;
    for (Bucket& bucket : buckets) {
      votes.push_back(bucket.vote(step));
      engine.submit(stream, votes.back());
    }
    for (const auto& vote : votes) {
      while (!vote->done.load(std::memory_order_acquire)) {
        if (thread % 2) {
          std::this_thread::yield();
        } else {
          engine.nap(0.01);
        }
      }
      if (vote->error.empty()) continue;
      std::printf("%s\n", vote->error.c_str());
      std::exit(1);
    }
    for (size_t b = 0; b < buckets.size(); ++b) wrong += buckets[b].wrong(*votes[b], step);
  }
  engine.close(stream);
  return wrong;
}

}  // namespace

int main(int count, char** arguments) {
  int provided;
  MPI_Init_thread(&count, &arguments, MPI_THREAD_MULTIPLE, &provided);
  if (provided < MPI_THREAD_MULTIPLE) {
    std::printf("this MPI has no threads\n");
    return 1;
  }
  MPI_Comm comms[2 * kThreads];
  for (MPI_Comm& comm : comms) MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  int rank, ranks;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  std::atomic<size_t> wrong{0};
  {
    const auto relay = std::make_shared<Relay>(size_t(ranks));
    const Server server(relay, comms[0], comms[1], size_t(ranks));
    Engine engine(3);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      std::shared_ptr<Wire> wire = relay;
      if (t > 0) wire = std::make_shared<MpiWire>(comms[2 * t], comms[2 * t + 1]);
      threads.emplace_back(
          [&, wire, t] { wrong += vote_on(engine, wire, size_t(rank), size_t(ranks), size_t(t)); });
    }
    for (std::thread& thread : threads) thread.join();
  }
  std::printf("%d rounds on %d streams, %zu wrong numbers\n", kRounds, kThreads, wrong.load());
  for (MPI_Comm& comm : comms) MPI_Comm_free(&comm);
  MPI_Finalize();
  return wrong != 0;
}
