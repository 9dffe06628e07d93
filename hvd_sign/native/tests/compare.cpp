// Compares every implementation with the scalar one, bit for bit, on data that fill their buffers
// to the last byte: what the tests in Python do, for machines without Python (an emulated ARM) and
// for sanitizers, which see each byte that is read or written outside.
//
//   compare [name ...]    implementations that must run here; none: all that do
//
// Prints what was compared, and a digest of the scalar results: it is the same on all machines.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../coin.h"
#include "../kernels.h"

using namespace hvd_sign;

namespace {

using Bytes = std::vector<uint8_t>;

const Dtype kTypes[] = {Dtype::float32, Dtype::float64, Dtype::float16, Dtype::bfloat16};
const char* const kNames[] = {"float32", "float64", "float16", "bfloat16"};

std::mt19937_64 random_bits(1);  // the standard fixes its sequence, not that of distributions

uint64_t below(uint64_t end) { return random_bits() % end; }

void store_number(Dtype dtype, uint8_t* to, uint64_t bits) {
  std::memcpy(to, &bits, bytes_of(dtype));  // little-endian: the low bytes
}

// Numbers of every exponent, with zeros of both signs, subnormals, and at times NaN and infinity.
void fill(Dtype dtype, uint8_t* to, size_t count, unsigned zeros_in_8, bool nonfinite) {
  const size_t bytes = bytes_of(dtype);
  const unsigned fraction[] = {23, 52, 10, 7};
  const unsigned exponent[] = {8, 11, 5, 8};
  const uint64_t sign = 1ull << (bytes * 8 - 1);
  const uint64_t top = 1ull << (fraction[size_t(dtype)] + exponent[size_t(dtype)] - 1);
  for (size_t i = 0; i < count; ++i) {
    uint64_t bits = random_bits() & (sign | (sign - 1));
    if (!nonfinite) bits &= ~top;  // half of all exponents: no sum overflows
    if (below(16) == 0) bits &= sign | ((1ull << fraction[size_t(dtype)]) - 1);
    if (below(8) < zeros_in_8) bits &= sign;
    store_number(dtype, to + i * bytes, bits);
  }
}

// What one call leaves behind: its buffers, and what it returns.
struct Outcome {
  std::vector<Bytes> buffers;
  std::vector<uint64_t> numbers;

  bool operator==(const Outcome& other) const {
    return buffers == other.buffers && numbers == other.numbers;
  }
};

class Comparison {
 public:
  explicit Comparison(std::vector<std::string> names) : names_(std::move(names)) {}

  // Runs `call` on the scalar implementation and on the others.
  void compare(const std::string& what, const std::function<Outcome()>& call) {
    set_implementation("scalar");
    const Outcome expected = call();
    for (const Bytes& buffer : expected.buffers) {
      for (const uint8_t byte : buffer) digest_ = (digest_ ^ byte) * 0x100000001B3;
    }
    for (const uint64_t number : expected.numbers) digest_ = mix64(digest_ ^ number);
    for (const std::string& name : names_) {
      set_implementation(name);
      calls_ += 1;
      if (call() == expected) continue;
      if (++wrong_ <= 10) std::printf("%s differs from scalar: %s\n", name.c_str(), what.c_str());
    }
  }

  // Two ways to one result, on the implementation that ran last. Sums may differ in the last bits.
  void same(const std::string& what, Outcome one, Outcome other) {
    one.numbers.back() = other.numbers.back() = 0;
    calls_ += 1;
    if (!(one == other) && ++wrong_ <= 10) std::printf("not the same: %s\n", what.c_str());
  }

  void section(const char* name) {
    std::printf("%-16s %8zu calls\n", name, calls_);
    total_ += calls_;
    calls_ = 0;
  }

  int report() const {
    std::string all;
    for (const std::string& name : names_) all += " " + name;
    std::printf("digest %016llx\n", static_cast<unsigned long long>(digest_));
    std::printf("%zu calls,%s: %zu differ from scalar\n", total_, all.c_str(), wrong_);
    return wrong_ || !total_;
  }

 private:
  const std::vector<std::string> names_;
  size_t calls_ = 0, total_ = 0, wrong_ = 0;
  uint64_t digest_ = 0xCBF29CE484222325;
};

// Every length up to two blocks and a bit, then around the ends of blocks and of chunks.
std::vector<size_t> lengths() {
  std::vector<size_t> found;
  for (size_t count = 0; count <= 140; ++count) found.push_back(count);
  for (const size_t near : {192u, 320u, 512u, 4096u, 8192u}) {
    for (const size_t count : {near - 1, near, near + 1}) found.push_back(count);
  }
  return found;
}

std::string describe(const char* type, size_t count, size_t offset, size_t variant) {
  return std::string(type) + ", " + std::to_string(count) + " coordinates at byte " +
         std::to_string(offset) + ", variant " + std::to_string(variant);
}

size_t blocks_for(size_t count) { return (count + kBlock - 1) / kBlock; }

void compare_pack(Comparison& comparison) {
  for (const Dtype dtype : kTypes) {
    for (const size_t count : lengths()) {
      for (size_t variant = 0; variant < 12; ++variant) {
        const Ties ties = Ties(variant % 3);
        const bool nonfinite = variant >= 9;
        const size_t offset = below(65), first = below(3);
        const Geometry geometry(int64_t(blocks_for(count) + first), int64_t(1 + below(3)),
                                ties == Ties::zero, 0);
        Bytes signal(offset + count * bytes_of(dtype));
        const unsigned zeros[] = {0, 1, 8, 1};
        fill(dtype, signal.data() + offset, count, zeros[variant / 3], nonfinite);
        const PackOptions options{ties,       random_bits(), bool(variant & 1),
                                  below(100), !nonfinite,    kChunkBlocks * below(3)};
        comparison.compare("pack " + describe(kNames[size_t(dtype)], count, offset, variant), [&] {
          Bytes messages(geometry.total_bytes);
          const PackResult seen =
              pack(signal.data() + offset, dtype, count, messages.data(), geometry, first, options);
          uint64_t sum;
          std::memcpy(&sum, &seen.abs_sum, sizeof sum);
          return Outcome{{messages}, {seen.nonfinite_chunks, seen.finite_coordinates, sum}};
        });
      }
    }
  }
  comparison.section("pack");
}

// Whole tensors, in place or into another state; and cut into pieces as the engine does it.
void compare_linear(Comparison& comparison) {
  const Linear factors[] = {{0.9, 0.1, 0.9, 0.1, 1},
                            {0.9, 0.1, 0.99, 0.01, 0x1p-10},
                            {0.9, 1, 0.5, 3, 7},
                            {0, 1, 0, 0, 2}};
  for (const Dtype dtype : kTypes) {
    const Dtype of_state = arithmetic_of(dtype);
    const size_t bytes = bytes_of(dtype), state_bytes = bytes_of(of_state);
    for (const size_t count : lengths()) {
      for (size_t variant = 0; variant < 12; ++variant) {
        const Ties ties = Ties(variant % 3);
        const bool nonfinite = variant >= 9, in_place = variant & 1, absent = variant == 4;
        const size_t offset = below(65), first = below(3);
        const Geometry geometry(int64_t(blocks_for(count) + first), int64_t(1 + below(3)),
                                ties == Ties::zero, 0);
        Bytes gradient(offset + count * bytes), state(offset + count * state_bytes);
        fill(dtype, gradient.data() + offset, count, variant % 4, nonfinite);
        fill(of_state, state.data() + offset, count, variant % 4, nonfinite && in_place);
        const PackOptions options{ties,       random_bits(), bool(variant & 1),
                                  below(100), !nonfinite,    kChunkBlocks * below(3)};
        const auto run = [&](size_t piece) {
          Bytes messages(geometry.total_bytes), next = state;
          const uint8_t* m = (in_place ? next : state).data() + offset;
          PackResult sum;
          for (size_t done = 0; done < count; done += piece) {
            PackOptions here = options;
            here.block += done / kBlock;
            const PackResult seen =
                pack_linear(absent ? nullptr : gradient.data() + offset + done * bytes, dtype,
                            std::min(piece, count - done), m + done * state_bytes,
                            next.data() + offset + done * state_bytes, factors[variant / 3],
                            messages.data(), geometry, first + done / kBlock, here);
            sum.nonfinite_chunks += seen.nonfinite_chunks;
            sum.finite_coordinates += seen.finite_coordinates;
            sum.abs_sum += seen.abs_sum;
          }
          uint64_t abs_sum;
          std::memcpy(&abs_sum, &sum.abs_sum, sizeof abs_sum);
          return Outcome{{messages, next}, {sum.nonfinite_chunks, sum.finite_coordinates, abs_sum}};
        };
        const std::string what = describe(kNames[size_t(dtype)], count, offset, variant);
        comparison.compare("pack_linear " + what, [&] { return run(count + 1); });
        comparison.same("pack_linear in pieces " + what, run(count + 1), run(kChunk));
      }
    }
  }
  comparison.section("pack_linear");
}

// A verdict of random bits, some of its blocks dead.
Bytes random_verdict(const Geometry& geometry) {
  Bytes messages(geometry.total_bytes);
  for (uint8_t& byte : messages) byte = uint8_t(random_bits());
  for (size_t block = 0; block + 2 < geometry.blocks; block += 5) {
    abstain(messages.data(), geometry, block, 2);
  }
  return messages;
}

void compare_verdicts(Comparison& comparison) {
  for (const Dtype dtype : kTypes) {
    for (const size_t count : lengths()) {
      for (size_t variant = 0; variant < 8; ++variant) {
        const size_t offset = below(65), first = below(3);
        const Geometry geometry(int64_t(blocks_for(count) + first), int64_t(1 + below(3)),
                                variant & 1, 0);
        const Bytes verdict = random_verdict(geometry);
        Bytes tensor(offset + count * bytes_of(dtype));
        fill(dtype, tensor.data() + offset, count, 1, variant >= 4);
        const double factor[] = {1.0, 0.3, 1e-7, -60000.0};
        const double by = factor[variant / 2];
        const std::string what = describe(kNames[size_t(dtype)], count, offset, variant);
        comparison.compare("write_verdict " + what, [&] {
          Bytes out = tensor;
          write_verdict(out.data() + offset, dtype, count, verdict.data(), geometry, first, by);
          return Outcome{{out}, {}};
        });
        comparison.compare("apply_verdict " + what, [&] {
          Bytes p = tensor;
          apply_verdict(p.data() + offset, dtype, count, verdict.data(), geometry, first, by);
          return Outcome{{p}, {}};
        });
      }
    }
  }
  comparison.section("verdicts");
}

// Large enough to be written past the cache, at addresses of every alignment that matters.
void compare_large(Comparison& comparison) {
  const size_t bytes = (size_t(32) << 20) + 4096;
  for (const Dtype dtype : kTypes) {
    const size_t count = bytes / bytes_of(dtype) - 17;
    const Geometry geometry(int64_t(blocks_for(count)), 2, false, 0);
    const Bytes verdict = random_verdict(geometry);
    for (const size_t offset : {0u, 48u, 3u}) {
      comparison.compare(std::string("write_verdict past the cache, ") + kNames[size_t(dtype)],
                         [&] {
                           Bytes out(64 + offset + count * bytes_of(dtype));
                           const size_t odd = reinterpret_cast<uintptr_t>(out.data()) % 64;
                           uint8_t* at = out.data() + (64 - odd) % 64 + offset;
                           write_verdict(at, dtype, count, verdict.data(), geometry, 0, 0.5);
                           uint64_t sum = 0;
                           for (size_t i = 0; i + 8 <= count * bytes_of(dtype); i += 8) {
                             sum = (sum ^ load_word(at + i)) * kGolden;
                           }
                           return Outcome{{}, {sum}};
                         });
    }
  }
  comparison.section("past the cache");
}

// Ballots of `count` ranks: all active, some blocks asleep here and there, or nobody in a few.
Bytes random_ballots(const Geometry& geometry, size_t count, size_t variant) {
  Bytes ballots(geometry.message_bytes * count);
  for (uint8_t& byte : ballots) byte = uint8_t(random_bits());
  for (size_t ballot = 0; ballot < count; ++ballot) {
    uint8_t* message = ballots.data() + ballot * geometry.message_bytes;
    uint8_t* active = message + geometry.active_offset;
    const size_t bitmap = (geometry.shard_blocks + 63) / 64 * 8;
    if (variant == 0) std::memset(active, 255, bitmap);
    if (variant == 2) active[below(bitmap)] = active[0] = 0;
    for (size_t i = 0; i < geometry.trailer_floats; ++i) {
      const float value = below(4) ? float(below(1000)) : std::nanf("");
      std::memcpy(message + geometry.trailer_offset + i * 4, &value, sizeof value);
    }
  }
  return ballots;
}

void compare_tally(Comparison& comparison) {
  std::vector<size_t> voters;
  for (size_t count = 1; count <= 34; ++count) voters.push_back(count);
  for (const size_t count : {63u, 64u, 65u, 127u, 128u, 255u, 256u, 1000u}) voters.push_back(count);
  for (const size_t count : voters) {
    for (const size_t blocks : {1u, 2u, 3u, 5u, 7u, 8u, 9u, 15u, 31u, 63u, 64u, 65u, 150u}) {
      if (count > 64 && blocks > 16 && blocks != 64) continue;
      for (size_t variant = 0; variant < 9; ++variant) {
        const Ties ties = Ties(variant % 3);
        const Geometry geometry(int64_t(blocks), 1, ties == Ties::zero, 3);
        const Bytes ballots = random_ballots(geometry, count, variant / 3);
        const int64_t first_blocks[] = {-2, 4, 40};
        const uint64_t ordinals[] = {7, 8, 9};
        const TallyOptions options{0, ties, random_bits(), first_blocks, ordinals, 3};
        comparison.compare("tally of " + std::to_string(count) + " ballots of " +
                               std::to_string(blocks) + " blocks, variant " +
                               std::to_string(variant),
                           [&] {
                             Bytes verdict(geometry.message_bytes);
                             const TallyResult seen =
                                 tally(ballots.data(), count, geometry, verdict.data(), options);
                             return Outcome{{verdict}, {seen.ties, seen.dead_blocks}};
                           });
      }
    }
  }
  comparison.section("tally");
}

void compare_weighted(Comparison& comparison) {
  for (const size_t count : {1u, 2u, 3u, 7u, 8u, 9u, 16u, 17u, 64u, 300u}) {
    for (const size_t blocks : {1u, 3u, 8u, 15u, 64u, 81u}) {
      for (size_t variant = 0; variant < 9; ++variant) {
        const Ties ties = Ties(variant % 3);
        const Geometry geometry(int64_t(blocks), 1, ties == Ties::zero, 0);
        const Bytes ballots = random_ballots(geometry, count, variant / 3);
        std::vector<int8_t> values(count);
        for (int8_t& value : values) value = int8_t(int(below(31)) - Weights::kMost);
        Weights weights;
        weights.assign(values.data(), count);
        const int64_t first_blocks[] = {-2, 4, 40};
        const uint64_t ordinals[] = {7, 8, 9}, lengths[] = {300, 36 * kBlock - 1, 41 * kBlock};
        const uint64_t key = random_bits();
        comparison.compare("weighted tally of " + std::to_string(count) + " ballots of " +
                               std::to_string(blocks) + " blocks, variant " +
                               std::to_string(variant),
                           [&] {
                             Bytes verdict(geometry.message_bytes);
                             std::vector<uint64_t> numbers(2 * count);
                             TallyOptions options{0, ties, key, first_blocks, ordinals, 3};
                             options.weights = &weights;
                             options.lengths = lengths;
                             options.judged = numbers.data();
                             options.agreed = numbers.data() + count;
                             const TallyResult seen =
                                 tally(ballots.data(), count, geometry, verdict.data(), options);
                             numbers.push_back(seen.ties);
                             numbers.push_back(seen.dead_blocks);
                             return Outcome{{verdict}, numbers};
                           });
      }
    }
  }
  comparison.section("weighted tally");
}

// The same code for all implementations, here for the sanitizers: what is sealed is accepted.
void seal_and_check() {
  size_t accepted = 0;
  for (int64_t blocks = 0; blocks < 200; ++blocks) {
    const Geometry geometry(blocks, 1 + blocks % 5, blocks & 1, blocks % 4);
    Bytes messages = random_verdict(geometry);
    for (size_t rank = 0; rank < geometry.shards; ++rank) {
      const Labels labels{Kind::verdict, Ties::coin, 1, 2, 3, 4};
      seal(messages.data() + rank * geometry.message_bytes, 1, geometry, labels, 0, 5,
           uint32_t(rank), int64_t(rank));
    }
    std::vector<uint16_t> flags(geometry.shards);
    std::vector<uint32_t> counters(geometry.shards);
    check(messages.data(), geometry.shards, geometry, {Kind::verdict, Ties::coin, 1, 2, 3, 4}, -1,
          flags.data(), counters.data());
    accepted += geometry.shards;
  }
  std::printf("%-16s %8zu messages\n", "seal and check", accepted);
}

}  // namespace

int main(int count, char** arguments) try {
  std::vector<std::string> names(arguments + 1, arguments + count);
  if (names.empty()) names = implementations();
  for (const std::string& name : names) set_implementation(name);  // throws where it cannot run
  Comparison comparison(names);
  compare_pack(comparison);
  compare_verdicts(comparison);
  compare_large(comparison);
  compare_tally(comparison);
  compare_linear(comparison);
  compare_weighted(comparison);
  seal_and_check();
  return comparison.report();
} catch (const std::exception& error) {
  std::printf("%s\n", error.what());
  return 1;
}
