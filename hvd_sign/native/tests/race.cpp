// The engine under the thread sanitizer: on each rank several threads, each with a stream of its
// own, submit votes, wait for them in different ways and read what came; streams come and go
// meanwhile. Start it with mpirun; every verdict is compared with one that is computed here.
#include <mpi.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "../coin.h"
#include "../engine/engine.h"

using namespace hvd_sign;

namespace {

constexpr int kThreads = 3;
constexpr int kRounds = 8;
// Enough for a crew to share, behind a small tensor that puts it off the bitmaps' bytes.
constexpr size_t kSmall = 3 * kBlock, kCount = 70 * kChunk + 100;

bool negative(uint64_t rank, uint64_t thread, uint64_t step, uint64_t i) {
  return mix64(mix64(mix64(rank + 1) + thread) + (step << 32) + i) & 1;
}

// One bucket of one tensor, and the buffers of a vote on it.
struct Bucket {
  Bucket(int rank, int ranks, uint32_t number, bool sharded)
      : blocks((kCount + kBlock - 1) / kBlock),
        whole(int64_t(blocks), 1, false, 0),
        ballots(whole.total_bytes),
        verdicts(whole.total_bytes),
        signal(kCount),
        out(kCount),
        plan(std::make_shared<Plan>(std::vector<Tensor>{{0, kSmall, 1}, {3, kCount - kSmall, 2}},
                                    blocks,
                                    PlanSettings{Ties::positive, sharded, false, size_t(rank),
                                                 size_t(ranks), 0, number, 64 * kChunkBlocks, 2},
                                    ballots.data(), verdicts.data())) {}

  std::shared_ptr<Vote> vote(int rank, int thread, uint64_t step) {
    for (size_t i = 0; i < kCount; ++i) {
      signal[i] = negative(uint64_t(rank), uint64_t(thread), step, i) ? -1.0f : 1.0f;
      out[i] = 0;
    }
    auto cast = std::make_shared<Vote>();
    cast->plan = plan;
    cast->step = step;
    for (const size_t first : {size_t(0), kSmall}) {
      Feed feed;
      feed.signal = reinterpret_cast<const uint8_t*>(signal.data() + first);
      feed.out = reinterpret_cast<uint8_t*>(out.data() + first);
      cast->feeds.push_back(feed);
    }
    return cast;
  }

  size_t wrong(int ranks, int thread, uint64_t step) const {
    size_t found = 0;
    for (size_t i = 0; i < kCount; ++i) {
      int votes = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        votes += negative(uint64_t(rank), uint64_t(thread), step, i);
      }
      found += out[i] != (2 * votes > ranks ? -1.0f : 1.0f);
    }
    return found;
  }

  size_t blocks;
  Geometry whole;
  std::vector<uint8_t> ballots, verdicts;
  std::vector<float> signal, out;
  std::shared_ptr<Plan> plan;
};

// Two buckets in flight on one stream, round after round. Returns how many numbers were wrong.
size_t vote_on(Engine& engine, MPI_Comm ballots, MPI_Comm verdicts, int thread) {
  int rank, ranks;
  MPI_Comm_rank(ballots, &rank);
  MPI_Comm_size(ballots, &ranks);
  const auto stream = engine.open(ballots, verdicts);
  Bucket first(rank, ranks, 0, true), second(rank, ranks, 1, false);
  size_t wrong = 0;
  for (uint64_t step = 0; step < kRounds; ++step) {
    const std::shared_ptr<Vote> votes[] = {first.vote(rank, thread, step),
                                           second.vote(rank, thread, step + 1000)};
    for (const auto& vote : votes) engine.submit(stream, vote);
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
    wrong += first.wrong(ranks, thread, step) + second.wrong(ranks, thread, step + 1000);
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
  std::atomic<size_t> wrong{0};
  {
    Engine engine(3);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] { wrong += vote_on(engine, comms[2 * t], comms[2 * t + 1], t); });
    }
    for (std::thread& thread : threads) thread.join();
  }
  std::printf("%d votes, %zu wrong coordinates\n", 2 * kThreads * kRounds, wrong.load());
  for (MPI_Comm& comm : comms) MPI_Comm_free(&comm);
  MPI_Finalize();
  return wrong != 0;
}
