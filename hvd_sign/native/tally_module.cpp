// The tallies of the Python module hvd_sign._kernels.
#include <nanobind/nanobind.h>

#include "arrays.h"
#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hvd_sign {
namespace {

// Checks where the tensors of a shard begin.
void must_ascend(const ItemArray<int64_t>& firsts, const TallyOptions& options,
                 const Geometry& geometry) {
  const int64_t first = int64_t(options.shard * geometry.shard_blocks);
  bool ascending = options.tensors > 0 && options.first_blocks[0] <= first;
  for (size_t tensor = 1; tensor < options.tensors; ++tensor) {
    ascending &= options.first_blocks[tensor - 1] <= options.first_blocks[tensor];
  }
  if (!ascending) {
    firsts.argument().wrong_value(
        "ascending blocks, the first at or before the shard's first block " + std::to_string(first),
        options.tensors == 0 ? "none" : "others");
  }
  if (options.first_blocks[0] < -kMaxBlocks) {
    firsts.argument().wrong_value("blocks from " + std::to_string(-kMaxBlocks) + " on",
                                  std::to_string(options.first_blocks[0]));
  }
}

nb::tuple tally_into(nb::handle ballots, const Geometry& geometry, nb::handle verdict,
                     int64_t shard, int64_t ties, uint64_t key, nb::handle first_blocks,
                     nb::handle ordinals, int64_t parity, nb::handle weights, nb::handle lengths,
                     nb::handle agreed, nb::handle judged) {
  const MessageList from(ballots, {"tally", "ballots"}, Access::read, geometry);
  const ItemArray<uint8_t> to(verdict, {"tally", "verdict"}, Access::write,
                              int64_t(geometry.message_bytes));
  const ItemArray<int64_t> firsts(first_blocks, {"tally", "first_blocks"}, Access::read);
  const ItemArray<uint64_t> names(ordinals, {"tally", "ordinals"}, Access::read,
                                  int64_t(firsts.size()));
  to.must_not_overlap(from);
  to.must_not_overlap(firsts);
  to.must_not_overlap(names);
  if (from.count >= uint64_t(1) << 31) {
    from.argument().wrong_value("fewer than 2^31 messages", std::to_string(from.count));
  }
  TallyOptions options{size_t(shard_of("tally", shard, 0, geometry)),
                       ties_of("tally", ties),
                       key,
                       firsts.items(),
                       names.items(),
                       firsts.size(),
                       (parity & 1) != 0};
  const WeighingArrays weighing(weights, lengths, agreed, judged, from.count, firsts.size());
  weighing.must_be_apart_from({&from, &firsts, &names, &to});
  weighing.put_into(options);
  must_fit("tally", options.ties, geometry);
  must_ascend(firsts, options, geometry);
  TallyResult result;
  {
    nb::gil_scoped_release release;
    result = tally(from.data(), from.count, geometry, to.data(), options);
  }
  return nb::make_tuple(result.ties, result.dead_blocks);
}

nb::tuple tally_means_into(nb::handle ballots, const Geometry& geometry, nb::handle verdict,
                           int64_t shard, int64_t ties, uint64_t key, nb::handle first_blocks,
                           nb::handle ordinals, nb::handle lengths, nb::list unsaid) {
  const char* const function = "tally_means";
  const MessageList from(ballots, {function, "ballots"}, Access::read, geometry);
  const ItemArray<uint8_t> to(verdict, {function, "verdict"}, Access::write,
                              int64_t(geometry.message_bytes));
  const ItemArray<int64_t> firsts(first_blocks, {function, "first_blocks"}, Access::read);
  const int64_t tensors = int64_t(firsts.size());
  const ItemArray<uint64_t> names(ordinals, {function, "ordinals"}, Access::read, tensors);
  const ItemArray<uint64_t> sizes(lengths, {function, "lengths"}, Access::read, tensors);
  for (const Array* input :
       {static_cast<const Array*>(&from), static_cast<const Array*>(&firsts),
        static_cast<const Array*>(&names), static_cast<const Array*>(&sizes)}) {
    to.must_not_overlap(*input);
  }
  if (!geometry.chunk_scales) {
    Argument{function, "geometry"}.wrong_value("one with chunk scales", "one without");
  }
  TallyOptions options{size_t(shard_of(function, shard, 0, geometry)),
                       ties_of(function, ties),
                       key,
                       firsts.items(),
                       names.items(),
                       firsts.size()};
  must_fit(function, options.ties, geometry);
  must_ascend(firsts, options, geometry);
  int64_t end = options.first_blocks[0];
  for (size_t tensor = 0; tensor < options.tensors; ++tensor) {
    const size_t blocks = blocks_of(sizes.items()[tensor]);
    if (options.first_blocks[tensor] != end) {
      firsts.argument().wrong_value("tensors one after another, each from a whole chunk on",
                                    "others");
    }
    end += int64_t((blocks + kChunkBlocks - 1) / kChunkBlocks * kChunkBlocks);
  }
  if (options.first_blocks[0] % int64_t(kChunkBlocks) || end < int64_t(geometry.blocks)) {
    sizes.argument().wrong_value("those of tensors that fill the bucket", "others");
  }
  const FeedbackArrays left({function, "unsaid"}, unsaid,
                            std::vector<uint64_t>(sizes.items(), sizes.items() + tensors));
  options.lengths = sizes.items();
  options.unsaid = left.items();
  TallyResult result;
  {
    nb::gil_scoped_release release;
    result = tally(from.data(), from.count, geometry, to.data(), options);
  }
  return nb::make_tuple(result.ties, result.dead_blocks);
}

}  // namespace

void define_tally(nb::module_& m) {
  m.def("tally", &tally_into, "ballots"_a.none(), "geometry"_a, "verdict"_a.none(), nb::kw_only(),
        "shard"_a, "ties"_a, "key"_a, "first_blocks"_a.none(), "ordinals"_a.none(), "parity"_a = 0,
        "weights"_a = nb::none(), "lengths"_a = nb::none(), "agreed"_a = nb::none(),
        "judged"_a = nb::none());
  m.def("tally_means", &tally_means_into, "ballots"_a.none(), "geometry"_a, "verdict"_a.none(),
        nb::kw_only(), "shard"_a, "ties"_a, "key"_a, "first_blocks"_a.none(), "ordinals"_a.none(),
        "lengths"_a.none(), "unsaid"_a);
}

}  // namespace hvd_sign
