// Compares every implementation with the scalar one, bit for bit, on data that fill their buffers
// to the last byte: what the tests in Python do, for machines without Python (an emulated ARM) and
// for sanitizers, which see each byte that is read or written outside.
//
//   compare [name ...]    implementations that must run here; none: all that do
//
// Prints what was compared, and a digest of the scalar results: it is the same on all machines.
#include <algorithm>
#include <cmath>
#include <exception>

#include "comparison.h"

namespace {

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

// Whole tensors, in place or into another state; and cut into pieces as the engine does it. The
// variants from 12 on have feedback.
void compare_linear(Comparison& comparison) {
  const Linear factors[] = {{0.9, 0.1, 0.9, 0.1, 1},
                            {0.9, 0.1, 0.99, 0.01, 0x1p-10},
                            {0.9, 1, 0.5, 3, 7},
                            {0, 1, 0, 0, 2}};
  for (const Dtype dtype : kTypes) {
    const Dtype of_state = arithmetic_of(dtype);
    const size_t bytes = bytes_of(dtype), state_bytes = bytes_of(of_state);
    for (const size_t count : lengths()) {
      for (size_t variant = 0; variant < 24; ++variant) {
        const Ties ties = Ties(variant % 3);
        const bool nonfinite = variant % 12 >= 9, in_place = variant & 1, absent = variant == 4;
        const bool alone = variant >= 21;  // the gradient is what is fed back to
        const size_t offset = below(65), first = below(3);
        const Geometry geometry(int64_t(blocks_for(count) + first), int64_t(1 + below(3)),
                                ties == Ties::zero, 0);
        Bytes gradient(offset + count * bytes), state(offset + count * state_bytes);
        fill(dtype, gradient.data() + offset, count, variant % 4, nonfinite);
        fill(of_state, state.data() + offset, count, variant % 4, nonfinite && in_place);
        Bytes kept(variant < 12 ? 0 : offset + count * state_bytes);
        if (!kept.empty()) fill(of_state, kept.data() + offset, count, below(9), variant == 20);
        std::vector<float> sent((count + kChunk - 1) / kChunk);
        for (float& scale : sent) scale = float(below(1000)) * 0x1p-9f;
        const PackOptions options{ties,       random_bits(), bool(variant & 1),
                                  below(100), !nonfinite,    kChunkBlocks * below(3)};
        const auto run = [&](size_t piece) {
          Bytes messages(geometry.total_bytes), next = state, next_kept = kept;
          const uint8_t* m = (in_place ? next : state).data() + offset;
          std::vector<float> next_sent = sent;
          PackResult sum;
          for (size_t done = 0; done < count; done += piece) {
            PackOptions here = options;
            here.block += done / kBlock;
            const size_t from = offset + done * state_bytes, chunk = done / kChunk;
            Feedback feedback;
            if (!kept.empty()) {
              feedback = {(in_place ? next_kept : kept).data() + from, next_kept.data() + from,
                          sent.data() + chunk, next_sent.data() + chunk};
            }
            const PackResult seen =
                pack_linear(absent ? nullptr : gradient.data() + offset + done * bytes, dtype,
                            std::min(piece, count - done), alone ? nullptr : m + done * state_bytes,
                            alone ? nullptr : next.data() + from, factors[variant / 3 % 4],
                            feedback, messages.data(), geometry, first + done / kBlock, here);
            sum.nonfinite_chunks += seen.nonfinite_chunks;
            sum.finite_coordinates += seen.finite_coordinates;
            sum.abs_sum += seen.abs_sum;
          }
          uint64_t abs_sum;
          std::memcpy(&abs_sum, &sum.abs_sum, sizeof abs_sum);
          Bytes scales(next_sent.size() * sizeof(float));
          if (!scales.empty()) std::memcpy(scales.data(), next_sent.data(), scales.size());
          return Outcome{{messages, next, next_kept, scales},
                         {sum.nonfinite_chunks, sum.finite_coordinates, abs_sum}};
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

// Ballots with chunk scales, what is told of their mean, and what that leaves, in place or not.
void compare_means(Comparison& comparison) {
  const size_t lengths_of[][2] = {{1, 64}, {65, 4096}, {4097, 0}, {9000, 130}};
  for (const auto& sizes : lengths_of) {
    for (const size_t count : {1u, 2u, 3u, 7u}) {
      for (size_t variant = 0; variant < 12; ++variant) {
        const Ties ties = Ties(variant % 3);
        const bool in_place = variant & 1;
        const uint64_t lengths[] = {sizes[0], sizes[1]}, ordinals[] = {4, 5};
        const size_t chunks[] = {(sizes[0] + kChunk - 1) / kChunk,
                                 (sizes[1] + kChunk - 1) / kChunk};
        const int64_t first_blocks[] = {0, int64_t(chunks[0] * kChunkBlocks)};
        const Geometry geometry(int64_t((chunks[0] + chunks[1]) * kChunkBlocks), 1,
                                ties == Ties::zero, 0, true);
        std::vector<Bytes> signals;
        for (size_t i = 0; i < 2 * count; ++i) {
          signals.emplace_back(sizes[i % 2] * 4);
          fill(Dtype::float32, signals.back().data(), sizes[i % 2], below(9), variant == 7);
        }
        std::vector<float> kept[2], sent[2];
        for (const size_t t : {0u, 1u}) {
          kept[t].resize(sizes[t]);
          for (float& number : kept[t]) number = float(below(3)) - 1;
          sent[t].resize(chunks[t]);
          for (float& scale : sent[t]) scale = float(below(1000)) * 0x1p-9f;
        }
        const uint64_t key = random_bits();
        comparison.compare(
            "mean of " + std::to_string(count) + " ballots of " +
                describe("float32", sizes[0] + sizes[1], 0, variant),
            [&] {
              Bytes ballots(geometry.message_bytes * count), verdict(geometry.message_bytes);
              for (size_t i = 0; i < 2 * count; ++i) {
                pack(signals[i].data(), Dtype::float32, sizes[i % 2],
                     ballots.data() + i / 2 * geometry.message_bytes, geometry,
                     size_t(first_blocks[i % 2]), {ties, key, false, ordinals[i % 2], false});
              }
              std::vector<float> now[2] = {kept[0], kept[1]}, now_sent[2] = {sent[0], sent[1]};
              Feedback unsaid[2];
              for (const size_t t : {0u, 1u}) {
                unsaid[t] = {(in_place ? now : kept)[t].data(), now[t].data(),
                             (in_place ? now_sent : sent)[t].data(), now_sent[t].data()};
              }
              TallyOptions options{0, ties, key, first_blocks, ordinals, 2};
              options.lengths = lengths;
              options.unsaid = unsaid;
              const TallyResult seen =
                  tally(ballots.data(), count, geometry, verdict.data(), options);
              Outcome outcome{{ballots, verdict}, {seen.dead_blocks}};
              for (const size_t t : {0u, 1u}) {
                Bytes out(sizes[t] * 4);
                write_verdict(out.data(), Dtype::float32, sizes[t], verdict.data(), geometry,
                              size_t(first_blocks[t]), 0.5);
                outcome.buffers.push_back(out);
                for (const auto& left : {now[t], now_sent[t]}) {
                  Bytes bytes(left.size() * 4);
                  if (!bytes.empty()) std::memcpy(bytes.data(), left.data(), bytes.size());
                  outcome.buffers.push_back(bytes);
                }
              }
              return outcome;
            });
      }
    }
  }
  comparison.section("means");
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
  compare_means(comparison);
  seal_and_check();
  return comparison.report();
} catch (const std::exception& error) {
  std::printf("%s\n", error.what());
  return 1;
}
