// What the engine's threads allocate: nothing, once each kind of vote has been held twice. Start it
// with mpirun; memory that MPI takes for itself is not counted.
#include <mpi.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "../engine/engine.h"
#include "../engine/mpi_wire.h"

using namespace hvd_sign;

namespace {

std::atomic<size_t> allocations{0};
thread_local bool own = false;  // the test's thread, which prepares the votes

}  // namespace

[[gnu::noinline]] void* operator new(size_t size) {
  if (!own) ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
// Not inlined, lest the compiler take free() for a mistake.
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

int main(int count, char** arguments) {
  own = true;
  int provided, rank, ranks;
  MPI_Init_thread(&count, &arguments, MPI_THREAD_MULTIPLE, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  MPI_Comm comms[2];
  for (MPI_Comm& comm : comms) MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  constexpr size_t kCount = 3'000'000, kChunks = (kCount + kChunk - 1) / kChunk;
  constexpr size_t kBlocks = (kCount + kBlock - 1) / kBlock;
  const Geometry whole(int64_t(kChunks * kChunkBlocks), 1, false, 0, true);
  std::vector<uint8_t> ballots(whole.total_bytes), verdicts(whole.total_bytes);
  std::vector<float> signal(kCount, 1.0f), state(signal), out(kCount);
  std::vector<float> unsaid(kCount), sent(kChunks);
  const std::vector<int8_t> weights(size_t(ranks), 3);
  size_t first = 0, later = 0;
  {
    Engine engine(2);
    const auto stream = engine.open(std::make_shared<MpiWire>(comms[0], comms[1]));
    std::vector<std::shared_ptr<Vote>> votes;
    Owners one_each, everyone(1), server{{0}};
    for (size_t voter = 0; voter < size_t(ranks); ++voter) {
      one_each.push_back({voter});
      everyone[0].push_back(voter);
    }
    for (const Owners& owners : {one_each, everyone, server}) {
      // The second is all that a vote can be.
      for (const bool full : {false, true}) {
        const PlanSettings settings{Ties::coin, owners, full, size_t(rank), size_t(ranks), 0,
                                    0,          4000,   6,    full};
        votes.push_back(std::make_shared<Vote>());
        votes.back()->plan = std::make_shared<Plan>(std::vector<Tensor>{{0, kCount, 0}}, kBlocks,
                                                    settings, ballots.data(), verdicts.data());
        votes.back()->weighted = full;
        votes.back()->weights.assign(weights.data(), weights.size());
        Operand operand;
        operand.signal = reinterpret_cast<const uint8_t*>(signal.data());
        operand.out = reinterpret_cast<uint8_t*>(out.data());
        operand.fused = full;
        operand.linear = {0.5, 0.5, 0.5, 0.5, 1};
        operand.next = reinterpret_cast<uint8_t*>(state.data());
        operand.state = operand.next;
        votes.back()->operands = {operand};
      }
      PlanSettings settings{Ties::coin, owners, false, size_t(rank), size_t(ranks), 0, 0, 4000, 6};
      settings.averaged = true;
      votes.push_back(std::make_shared<Vote>());
      votes.back()->plan =
          std::make_shared<Plan>(std::vector<Tensor>{{0, kCount, 0}}, kChunks * kChunkBlocks,
                                 settings, ballots.data(), verdicts.data());
      Operand operand;
      operand.signal = reinterpret_cast<const uint8_t*>(signal.data());
      operand.out = reinterpret_cast<uint8_t*>(out.data());
      operand.unsaid = {unsaid.data(), unsaid.data(), sent.data(), sent.data()};
      votes.back()->operands = {operand};
    }
    for (int round = 0; round < 6; ++round) {
      if (round == 2) first = allocations;
      for (const auto& vote : votes) {
        vote->begin_anew();
        vote->step = uint64_t(round);
        vote->operands[0].packed = {};
        engine.submit(stream, vote);
      }
      for (const auto& vote : votes) {
        while (!vote->done.load(std::memory_order_acquire)) engine.nap(0.01);
      }
    }
    later = allocations - first;
    engine.close(stream);
  }
  size_t wrong = 0;
  for (const float value : out) wrong += value != 1.0f;
  std::printf("%zu allocations while beginning, %zu later, %zu wrong\n", first, later, wrong);
  for (MPI_Comm& comm : comms) MPI_Comm_free(&comm);
  MPI_Finalize();
  // Without any at the beginning, nothing would have been counted.
  return first == 0 || later != 0 || wrong != 0;
}
