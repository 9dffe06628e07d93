// The Python module hvd_sign._engine: the pipeline, fed with mpi4py's communicators.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "../arrays.h"
#include "engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hvd_sign {
namespace {

MPI_Comm communicator_at(uintptr_t address) {
  if (address == 0) throw std::invalid_argument("open: expected a communicator's address, got 0");
  return *reinterpret_cast<MPI_Comm*>(address);
}

std::string library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  return std::string(text, size_t(length));
}

// The arrays of a plan or a vote, kept alive as long as Python keeps what uses them.
struct PyPlan {
  std::shared_ptr<Plan> plan;
  nb::object ballots, verdicts;
};

struct PyVote {
  std::shared_ptr<Vote> vote;
  nb::object plan, feeds;
};

PyPlan make_plan(const std::vector<std::tuple<size_t, size_t, uint64_t>>& tensors, size_t blocks,
                 uint16_t ties, bool sharded, bool scaled, size_t rank, size_t voters,
                 uint32_t stream, uint32_t bucket, size_t chunk_blocks, size_t slots,
                 nb::object ballots, nb::object verdicts) {
  std::vector<Tensor> all;
  for (const auto& [first, count, ordinal] : tensors) all.push_back({first, count, ordinal});
  const PlanSettings settings{Ties(ties), sharded, scaled,       rank, voters,
                              stream,     bucket,  chunk_blocks, slots};
  check_plan(all, blocks, settings);
  const Geometry whole(int64_t(blocks), 1, settings.ties == Ties::zero, 0);
  const ItemArray<uint8_t> full(ballots, {"plan", "ballots"}, Access::write,
                                int64_t(whole.total_bytes));
  const ItemArray<uint8_t> decided(verdicts, {"plan", "verdicts"}, Access::write,
                                   int64_t(whole.total_bytes));
  decided.must_not_overlap(full);
  return {std::make_shared<Plan>(std::move(all), blocks, settings, full.data(), decided.data()),
          std::move(ballots), std::move(verdicts)};
}

Feed make_feed(nb::handle item, size_t count) {
  const auto [signal, out, factor, bfloat16, nonfinite, finite, abs_sum] =
      nb::cast<std::tuple<nb::object, nb::object, double, bool, uint64_t, uint64_t, double>>(item);
  Feed feed;
  feed.factor = factor;
  feed.packed = {nonfinite, finite, abs_sum};
  if (!signal.is_none()) {
    const FloatArray from(signal, {"vote", "signal"}, Access::read, bfloat16);
    if (from.size() != count) {
      from.argument().wrong_value(std::to_string(count) + " items", std::to_string(from.size()));
    }
    feed.signal = from.data();
    feed.signal_type = from.type;
  }
  if (!out.is_none()) {
    const FloatArray to(out, {"vote", "out"}, Access::write, bfloat16);
    if (to.size() != count) {
      to.argument().wrong_value(std::to_string(count) + " items", std::to_string(to.size()));
    }
    feed.out = to.data();
    feed.out_type = to.type;
  }
  return feed;
}

PyVote make_vote(nb::object plan) {
  auto vote = std::make_shared<Vote>();
  vote->plan = nb::cast<PyPlan&>(plan).plan;
  vote->feeds.resize(vote->plan->tensors.size());
  vote->done = true;
  return {std::move(vote), std::move(plan), nb::none()};
}

void begin_vote(PyVote& self, nb::list feeds, uint64_t step, uint64_t zero_key, uint64_t tie_key,
                bool joined, bool keep, bool trace) {
  Vote& vote = *self.vote;
  if (!vote.done.load(std::memory_order_acquire)) {
    throw std::runtime_error("Vote.begin: it is under way");
  }
  if (feeds.size() != vote.feeds.size()) {
    throw std::invalid_argument("Vote.begin: expected " + std::to_string(vote.feeds.size()) +
                                " feeds, got " + std::to_string(feeds.size()));
  }
  for (size_t t = 0; t < feeds.size(); ++t) {
    vote.feeds[t] = make_feed(feeds[t], vote.plan->tensors[t].count);
  }
  vote.begin_anew();
  vote.step = step;
  vote.zero_key = zero_key;
  vote.tie_key = tie_key;
  vote.joined = joined;
  vote.keep = keep;
  vote.trace = trace;
  self.feeds = std::move(feeds);
}

nb::dict totals(const PyVote& self) {
  const Totals& t = self.vote->totals;
  nb::dict sums;
  sums["pack_seconds"] = t.pack_seconds;
  sums["exchange_seconds"] = t.exchange_seconds;
  sums["tally_seconds"] = t.tally_seconds;
  sums["apply_seconds"] = t.apply_seconds;
  sums["payload_bytes"] = t.payload_bytes;
  sums["ties"] = t.ties;
  sums["nonfinite_chunks"] = t.nonfinite_chunks;
  return sums;
}

std::vector<std::tuple<std::string, uint32_t, double, double>> spans(const PyVote& self) {
  std::vector<std::tuple<std::string, uint32_t, double, double>> all;
  for (const Span& span : self.vote->spans) {
    all.emplace_back(span.what, span.chunk, span.begin, span.end);
  }
  return all;
}

}  // namespace

NB_MODULE(_engine, m) {
  nb::set_leak_warnings(false);  // streams live as long as the process
  m.doc() = "Votes in a pipeline of native code, on MPI's non-blocking collectives.";
  m.attr("__version__") = HVD_SIGN_VERSION;
  m.def("library_version", &library_version, "The MPI library that this module runs on.");

  nb::class_<PyPlan>(m, "Plan")
      .def_prop_ro("chunks", [](const PyPlan& self) { return self.plan->chunks.size(); })
      .def_prop_ro("scales", [](const PyPlan& self) { return self.plan->scales; });
  m.def("plan", &make_plan, nb::kw_only(), "tensors"_a, "blocks"_a, "ties"_a, "sharded"_a,
        "scaled"_a, "rank"_a, "voters"_a, "stream"_a, "bucket"_a, "chunk_blocks"_a, "slots"_a,
        "ballots"_a, "verdicts"_a);

  nb::class_<PyVote>(m, "Vote")
      .def("begin", &begin_vote, nb::kw_only(), "feeds"_a, "step"_a, "zero_key"_a, "tie_key"_a,
           "joined"_a, "keep"_a, "trace"_a)
      .def("test",
           [](const PyVote& self) { return self.vote->done.load(std::memory_order_acquire); })
      .def_prop_ro("error", [](const PyVote& self) { return self.vote->error; })
      .def_prop_ro("flags",
                   [](const PyVote& self) {
                     return (self.vote->any_flags & kNonfinite) | self.vote->all_flags;
                   })
      .def("totals", &totals)
      .def("spans", &spans);
  m.def("vote", &make_vote, "plan"_a);

  nb::class_<Stream>(m, "Stream");
  nb::class_<Engine>(m, "Engine")
      .def(nb::init<size_t>(), "threads"_a)
      .def("open",
           [](Engine& self, uintptr_t ballots, uintptr_t verdicts) {
             return self.open(communicator_at(ballots), communicator_at(verdicts));
           })
      .def("close", &Engine::close)
      .def("submit", [](Engine& self, const std::shared_ptr<Stream>& stream,
                        const PyVote& vote) { self.submit(stream, vote.vote); })
      .def("nap", &Engine::nap, nb::call_guard<nb::gil_scoped_release>())
      .def("stop", &Engine::stop, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace hvd_sign
