// The Python module hvd_sign._kernels.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <optional>

#include "arrays.h"
#include "coin.h"
#include "exact_floats.h"
#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hvd_sign {

void define_pack(nb::module_& m);   // in pack_module.cpp
void define_tally(nb::module_& m);  // in tally_module.cpp

namespace {

Kind kind_of(const char* function, int64_t kind) {
  if (kind != int64_t(Kind::ballot) && kind != int64_t(Kind::verdict)) {
    Argument{function, "kind"}.wrong_value("BALLOT (1) or VERDICT (2)", std::to_string(kind));
  }
  return Kind(kind);
}

uint64_t coin_key_of(nb::int_ seed, const std::string& stream, uint64_t step) {
  const uint64_t bits = PyLong_AsUnsignedLongLongMask(seed.ptr());  // modulo 2^64
  if (stream == "zero") return coin_key(bits, CoinStream::zero, step);
  if (stream == "tie") return coin_key(bits, CoinStream::tie, step);
  if (stream == "node") return coin_key(bits, CoinStream::node, step);
  Argument{"coin_key", "stream"}.wrong_value("'zero', 'tie' or 'node'", "'" + stream + "'");
}

void coin_words_into(uint64_t key, uint64_t ordinal, uint64_t first_block, nb::handle out) {
  const ItemArray<uint64_t> words(out, {"coin_words", "out"}, Access::write);
  nb::gil_scoped_release release;
  const Coins coins(key, ordinal);
  for (size_t word = 0; word < words.size(); ++word) {
    words.items()[word] = coins.word(first_block + word);
  }
}

// A yardstick for benchmarks: reads memory as fast as it can be read, in eight lanes that the
// compiler turns into vectors of any machine.
uint64_t xor_of(nb::handle words) {
  const ItemArray<uint64_t> from(words, {"xor_words", "words"}, Access::read);
  nb::gil_scoped_release release;
  uint64_t lanes[8] = {};
  const size_t whole = from.size() / 8 * 8;
  for (size_t word = 0; word < whole; word += 8) {
    for (size_t lane = 0; lane < 8; ++lane) lanes[lane] ^= from.items()[word + lane];
  }
  for (size_t word = whole; word < from.size(); ++word) lanes[0] ^= from.items()[word];
  uint64_t all = 0;
  for (const uint64_t lane : lanes) all ^= lane;
  return all;
}

void abstain_in(nb::handle messages, const Geometry& geometry, int64_t first_block,
                int64_t blocks) {
  const Messages to(messages, "abstain", Access::write, geometry);
  if (blocks < 0) {
    Argument{"abstain", "blocks"}.wrong_value("0 or more", std::to_string(blocks));
  }
  const size_t first = first_of("abstain", first_block, size_t(blocks), geometry);
  nb::gil_scoped_release release;
  abstain(to.data(), geometry, first, size_t(blocks));
}

// The planes of place and fetch: signs, active, and non-zero where the geometry has one.
struct Planes {
  Planes(const char* function, nb::handle signs, nb::handle active, nb::handle nonzero,
         Access access, const Geometry& geometry)
      : signs(signs, {function, "signs"}, access),
        active(active, {function, "active"}, access,
               int64_t((this->signs.size() + kChunkBlocks - 1) / kChunkBlocks)) {
    if (nonzero.is_none() == geometry.nonzero) {
      Argument{function, "nonzero"}.wrong_type(geometry.nonzero
                                                   ? "a contiguous uint64 array"
                                                   : "None, as the geometry has no such plane",
                                               geometry.nonzero ? "None" : "an array");
    }
    if (geometry.nonzero) {
      const ItemArray<uint64_t> plane(nonzero, {function, "nonzero"}, access,
                                      int64_t(this->signs.size()));
      nonzero_words = plane.items();
      nonzero_owner.emplace_back(plane);
    }
  }

  ItemArray<uint64_t> signs;
  ItemArray<uint64_t> active;
  std::vector<ItemArray<uint64_t>> nonzero_owner;  // of one plane or none
  uint64_t* nonzero_words = nullptr;

  void must_not_overlap(const Array& input) const {
    signs.must_not_overlap(input);
    active.must_not_overlap(input);
    for (const auto& plane : nonzero_owner) plane.must_not_overlap(input);
  }
  void must_be_apart_from(const Array& output) const {
    output.must_not_overlap(signs);
    output.must_not_overlap(active);
    for (const auto& plane : nonzero_owner) output.must_not_overlap(plane);
  }
};

void place_into(nb::handle signs, nb::handle active, nb::handle nonzero, nb::handle messages,
                const Geometry& geometry, int64_t first_block) {
  const Planes from("place", signs, active, nonzero, Access::read, geometry);
  const Messages to(messages, "place", Access::write, geometry);
  from.must_be_apart_from(to);
  if (geometry.chunk_scales) {
    Argument{"place", "geometry"}.wrong_value("one without chunk scales", "one with them");
  }
  const size_t count = from.signs.size();
  const size_t first = first_of("place", first_block, count, geometry);
  nb::gil_scoped_release release;
  for (size_t done = 0; done < count; done += kChunkBlocks) {
    const size_t here = count - done < kChunkBlocks ? count - done : kChunkBlocks;
    Blocks blocks;
    std::memcpy(blocks.signs, from.signs.items() + done, here * 8);
    if (geometry.nonzero) std::memcpy(blocks.nonzero, from.nonzero_words + done, here * 8);
    blocks.active = from.active.items()[done / kChunkBlocks];
    put_blocks(blocks, to.data(), geometry, first + done, here);
  }
}

void fetch_from(nb::handle messages, const Geometry& geometry, int64_t first_block,
                nb::handle signs, nb::handle active, nb::handle nonzero) {
  const Messages from(messages, "fetch", Access::read, geometry);
  const Planes to("fetch", signs, active, nonzero, Access::write, geometry);
  to.must_not_overlap(from);
  const size_t count = to.signs.size();
  const size_t first = first_of("fetch", first_block, count, geometry);
  nb::gil_scoped_release release;
  for (size_t done = 0; done < count; done += kChunkBlocks) {
    const size_t here = count - done < kChunkBlocks ? count - done : kChunkBlocks;
    Blocks blocks;
    get_blocks(blocks, from.data(), geometry, first + done, here);
    std::memcpy(to.signs.items() + done, blocks.signs, here * 8);
    if (geometry.nonzero) std::memcpy(to.nonzero_words + done, blocks.nonzero, here * 8);
    to.active.items()[done / kChunkBlocks] = blocks.active;
  }
}

void seal_in(nb::handle messages, const Geometry& geometry, int64_t kind, uint16_t flags,
             int64_t ties, uint32_t stream, uint32_t bucket, uint32_t segment, uint32_t counter,
             uint64_t step, uint32_t sender, int64_t shard) {
  const MessageList to(messages, {"seal", "messages"}, Access::write, geometry);
  const Labels labels{kind_of("seal", kind), ties_of("seal", ties), stream, bucket, segment, step};
  shard_of("seal", shard, -1, geometry);
  if (shard < 0 && to.count > geometry.shards) {
    to.argument().wrong_value(
        "no more messages than the geometry's " + std::to_string(geometry.shards) + " shards",
        std::to_string(to.count));
  }
  nb::gil_scoped_release release;
  seal(to.data(), to.count, geometry, labels, flags, counter, sender, shard);
}

nb::tuple check_in(nb::handle messages, const Geometry& geometry, int64_t kind, int64_t ties,
                   uint32_t stream, uint32_t bucket, uint32_t segment, uint64_t step, int64_t shard,
                   const std::optional<std::vector<uint32_t>>& ranks) {
  const MessageList from(messages, {"check", "messages"}, Access::read, geometry);
  const Labels labels{
      kind_of("check", kind), ties_of("check", ties), stream, bucket, segment, step};
  shard_of("check", shard, -1, geometry);
  if (ranks && ranks->size() != from.count) {
    Argument{"check", "ranks"}.wrong_value(std::to_string(from.count) + " items, one a message",
                                           std::to_string(ranks->size()));
  }
  std::vector<uint16_t> flags(from.count);
  std::vector<uint32_t> counters(from.count);
  {
    nb::gil_scoped_release release;
    check(from.data(), from.count, geometry, labels, shard, flags.data(), counters.data(),
          ranks ? ranks->data() : nullptr);
  }
  return nb::make_tuple(flags, counters);
}

// write_verdict and apply_verdict differ in their kernel alone.
template <class Kernel>
void with_verdict(const char* function, const char* name, nb::handle tensor, nb::handle messages,
                  const Geometry& geometry, int64_t first_block, bool bfloat16, double factor,
                  Kernel kernel) {
  const FloatArray to(tensor, {function, name}, Access::write, bfloat16);
  const Messages from(messages, function, Access::read, geometry);
  to.must_not_overlap(from);
  const size_t first = first_of(function, first_block, blocks_of(to.size()), geometry);
  nb::gil_scoped_release release;
  kernel(to.data(), to.type, to.size(), from.data(), geometry, first, factor);
}

void write_into(nb::handle out, nb::handle messages, const Geometry& geometry, int64_t first_block,
                double scale, bool bfloat16) {
  with_verdict("write_verdict", "out", out, messages, geometry, first_block, bfloat16, scale,
               write_verdict);
}

void apply_to(nb::handle p, nb::handle messages, const Geometry& geometry, int64_t first_block,
              double lr, bool bfloat16) {
  with_verdict("apply_verdict", "p", p, messages, geometry, first_block, bfloat16, lr,
               apply_verdict);
}

std::string describe(const Geometry& geometry) {
  return "Geometry(blocks=" + std::to_string(geometry.blocks) +
         ", shards=" + std::to_string(geometry.shards) +
         ", nonzero=" + (geometry.nonzero ? "True" : "False") +
         ", trailer_floats=" + std::to_string(geometry.trailer_floats) +
         ", chunk_scales=" + (geometry.chunk_scales ? "True" : "False") + ")";
}

void choose_from_environment() {
  const char* name = std::getenv("HVD_SIGN_KERNELS");
  if (!name || !*name) return;
  try {
    set_implementation(name);
  } catch (const std::exception& error) {
    throw nb::import_error((std::string("HVD_SIGN_KERNELS: ") + error.what()).c_str());
  }
}

}  // namespace
}  // namespace hvd_sign

NB_MODULE(_kernels, m) {
  using namespace hvd_sign;
  choose_from_environment();
  // Vote streams live as long as the process and hold geometries: no leak.
  nb::set_leak_warnings(false);

  m.doc() = "Packs signs, tallies ballots and applies verdicts, on the words as they travel.";
  m.attr("__version__") = HVD_SIGN_VERSION;
  m.attr("MESSAGE_VERSION") = int(kMessageVersion);
  m.attr("HEADER_BYTES") = sizeof(Header);
  m.attr("BLOCK") = kBlock;
  m.attr("CHUNK_BLOCKS") = kChunkBlocks;
  m.attr("ABSTAINED") = int(kAbstained);
  m.attr("NONFINITE") = int(kNonfinite);
  m.attr("JOINED") = int(kJoined);
  m.attr("BALLOT") = int(Kind::ballot);
  m.attr("VERDICT") = int(Kind::verdict);

  nb::class_<Geometry>(m, "Geometry")
      .def(nb::init<int64_t, int64_t, bool, int64_t, bool>(), "blocks"_a, "shards"_a,
           "nonzero"_a = false, "trailer_floats"_a = 0, "chunk_scales"_a = false)
      .def_ro("blocks", &Geometry::blocks)
      .def_ro("shards", &Geometry::shards)
      .def_ro("nonzero", &Geometry::nonzero)
      .def_ro("trailer_floats", &Geometry::trailer_floats)
      .def_ro("chunk_scales", &Geometry::chunk_scales)
      .def_ro("shard_blocks", &Geometry::shard_blocks)
      .def_ro("signs_offset", &Geometry::signs_offset)
      .def_ro("active_offset", &Geometry::active_offset)
      .def_ro("nonzero_offset", &Geometry::nonzero_offset)
      .def_ro("scales_offset", &Geometry::scales_offset)
      .def_ro("trailer_offset", &Geometry::trailer_offset)
      .def_ro("message_bytes", &Geometry::message_bytes)
      .def_ro("total_bytes", &Geometry::total_bytes)
      .def("__repr__", &describe);

  nb::class_<ExactFloats>(m, "ExactFloats")
      .def(nb::init<>())
      .def("__enter__", &ExactFloats::enter)
      .def("__exit__", [](const ExactFloats& floats, nb::args) { floats.leave(); });
  m.def("implementations", &implementations);
  m.def("implementation", &implementation);
  m.def("set_implementation", &set_implementation, "name"_a);
  m.def("coin_key", &coin_key_of, "seed"_a, "stream"_a, "step"_a);
  m.def("coin_words", &coin_words_into, "key"_a, "ordinal"_a, "first_block"_a, "out"_a.none());
  m.def("xor_words", &xor_of, "words"_a.none());
  define_pack(m);
  m.def("abstain", &abstain_in, "messages"_a.none(), "geometry"_a, "first_block"_a, "blocks"_a);
  m.def("place", &place_into, "signs"_a.none(), "active"_a.none(), "nonzero"_a.none(),
        "messages"_a.none(), "geometry"_a, "first_block"_a);
  m.def("fetch", &fetch_from, "messages"_a.none(), "geometry"_a, "first_block"_a, "signs"_a.none(),
        "active"_a.none(), "nonzero"_a.none());
  m.def("seal", &seal_in, "messages"_a.none(), "geometry"_a, nb::kw_only(), "kind"_a, "flags"_a,
        "ties"_a, "stream"_a, "bucket"_a, "segment"_a, "counter"_a, "step"_a, "sender"_a,
        "shard"_a = -1);
  m.def("check", &check_in, "messages"_a.none(), "geometry"_a, nb::kw_only(), "kind"_a, "ties"_a,
        "stream"_a, "bucket"_a, "segment"_a, "step"_a, "shard"_a = -1, "ranks"_a = nb::none());
  define_tally(m);
  m.def("write_verdict", &write_into, "out"_a.none(), "messages"_a.none(), "geometry"_a,
        "first_block"_a, nb::kw_only(), "scale"_a = 1.0, "bfloat16"_a = false);
  m.def("apply_verdict", &apply_to, "p"_a.none(), "messages"_a.none(), "geometry"_a,
        "first_block"_a, nb::kw_only(), "lr"_a, "bfloat16"_a = false);
}
