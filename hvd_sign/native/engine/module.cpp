// The Python module hvd_sign._engine: the pipeline, fed with mpi4py's communicators.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "../arrays.h"
#include "engine.h"
#include "mpi_wire.h"
#include "relay.h"

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
  nb::object plan, operands, unsaid;
};

PyPlan make_plan(const std::vector<std::tuple<size_t, size_t, uint64_t>>& tensors, size_t blocks,
                 uint16_t ties, Owners owners, bool scaled, size_t rank, size_t voters,
                 uint32_t stream, uint32_t bucket, size_t segment_blocks, size_t depth,
                 bool counted, bool averaged, nb::object ballots, nb::object verdicts) {
  std::vector<Tensor> all;
  for (const auto& [first, count, ordinal] : tensors) all.push_back({first, count, ordinal});
  const PlanSettings settings{Ties(ties), std::move(owners), scaled, rank,    voters,  stream,
                              bucket,     segment_blocks,    depth,  counted, averaged};
  check_plan(all, blocks, settings);
  const Geometry whole(int64_t(blocks), 1, settings.ties == Ties::zero, 0, averaged);
  const ItemArray<uint8_t> full(ballots, {"plan", "ballots"}, Access::write,
                                int64_t(whole.total_bytes));
  const ItemArray<uint8_t> decided(verdicts, {"plan", "verdicts"}, Access::write,
                                   int64_t(whole.total_bytes));
  decided.must_not_overlap(full);
  return {std::make_shared<Plan>(std::move(all), blocks, settings, full.data(), decided.data()),
          std::move(ballots), std::move(verdicts)};
}

Operand make_operand(nb::handle item, size_t count) {
  const auto [signal, out, factor, bfloat16, nonfinite, finite, abs_sum, fused] = nb::cast<
      std::tuple<nb::object, nb::object, double, bool, uint64_t, uint64_t, double, nb::object>>(
      item);
  Operand operand;
  operand.factor = factor;
  operand.packed = {nonfinite, finite, abs_sum};
  if (!fused.is_none()) {
    const auto [a, b, c, d, unscale, state, next, feedback] = nb::cast<
        std::tuple<double, double, double, double, double, nb::object, nb::object, nb::object>>(
        fused);
    const LinearArrays arrays("vote", signal, state, next, feedback, bfloat16);
    if (arrays.size != count) {
      const Argument argument{"vote", "signal"};
      argument.wrong_value(std::to_string(count) + " items", std::to_string(arrays.size));
    }
    operand.fused = true;
    operand.linear = {a, b, c, d, unscale};
    operand.signal_type = arrays.type;
    if (arrays.gradient) operand.signal = arrays.gradient->data();
    if (arrays.state) operand.state = arrays.state->data();
    if (arrays.next) operand.next = arrays.next->data();
    operand.feedback = arrays.feedback();
  } else if (!signal.is_none()) {
    const FloatArray from(signal, {"vote", "signal"}, Access::read, bfloat16);
    if (from.size() != count) {
      from.argument().wrong_value(std::to_string(count) + " items", std::to_string(from.size()));
    }
    operand.signal = from.data();
    operand.signal_type = from.type;
  } else {
    operand.elsewhere = true;
  }
  if (!out.is_none()) {
    const FloatArray to(out, {"vote", "out"}, Access::write, bfloat16);
    if (to.size() != count) {
      to.argument().wrong_value(std::to_string(count) + " items", std::to_string(to.size()));
    }
    operand.out = to.data();
    operand.out_type = to.type;
  }
  return operand;
}

PyVote make_vote(nb::object plan) {
  auto vote = std::make_shared<Vote>();
  vote->plan = nb::cast<PyPlan&>(plan).plan;
  vote->operands.resize(vote->plan->tensors.size());
  vote->done = true;
  return {std::move(vote), std::move(plan), nb::none(), nb::none()};
}

void begin_vote(PyVote& self, nb::list operands, uint64_t step, uint64_t zero_key, uint64_t tie_key,
                bool joined, bool keep, bool trace,
                const std::optional<std::vector<int8_t>>& weights, nb::object unsaid) {
  Vote& vote = *self.vote;
  if (!vote.done.load(std::memory_order_acquire)) {
    throw std::runtime_error("Vote.begin: it is under way");
  }
  if (operands.size() != vote.operands.size()) {
    throw std::invalid_argument("Vote.begin: expected " + std::to_string(vote.operands.size()) +
                                " operands, got " + std::to_string(operands.size()));
  }
  for (size_t t = 0; t < operands.size(); ++t) {
    vote.operands[t] = make_operand(operands[t], vote.plan->tensors[t].count);
  }
  vote.begin_anew();
  vote.step = step;
  vote.zero_key = zero_key;
  vote.tie_key = tie_key;
  vote.joined = joined;
  vote.keep = keep;
  vote.trace = trace;
  vote.weighted = weights.has_value();
  const size_t voters = vote.plan->settings.voters;
  if (weights && weights->size() != voters) {
    throw std::invalid_argument("Vote.begin: weights: expected " + std::to_string(voters) +
                                ", one a voter, got " + std::to_string(weights->size()));
  }
  if (weights || vote.plan->settings.counted) {
    const std::vector<int8_t> given = weights.value_or(std::vector<int8_t>(voters, 1));
    vote.weights.assign(given.data(), given.size());
  }
  if (vote.plan->settings.averaged) {
    std::vector<uint64_t> counts;
    for (const Tensor& tensor : vote.plan->tensors) counts.push_back(tensor.count);
    const FeedbackArrays arrays({"vote", "unsaid"}, unsaid, counts);
    for (size_t t = 0; t < counts.size(); ++t) vote.operands[t].unsaid = arrays.items()[t];
  }
  self.operands = std::move(operands);
  self.unsaid = std::move(unsaid);
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
    all.emplace_back(span.what, span.segment, span.begin, span.end);
  }
  return all;
}

using View = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

// The buffers of parcels as arrays that own nothing: the votes under way keep them.
nb::list views(const std::vector<Parcel>& parcels) {
  nb::list all;
  for (const Parcel& parcel : parcels) {
    const size_t shape[] = {parcel.bytes};
    View view(parcel.data, 1, shape, nb::none());
    all.append(nb::make_tuple(parcel.voter, view.cast(nb::rv_policy::reference)));
  }
  return all;
}

nb::list take(Relay& self) {
  nb::list all;
  for (const Errand& errand : self.take()) {
    const char* const kinds[] = {"alltoall", "allgather", "deliver"};
    all.append(nb::make_tuple(errand.ticket, kinds[size_t(errand.kind)], int(errand.channel),
                              views(errand.out), views(errand.in)));
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
      .def_prop_ro("segments", [](const PyPlan& self) { return self.plan->segments.size(); })
      .def_prop_ro("scales", [](const PyPlan& self) { return self.plan->scales; });
  m.def("plan", &make_plan, nb::kw_only(), "tensors"_a, "blocks"_a, "ties"_a, "owners"_a,
        "scaled"_a, "rank"_a, "voters"_a, "stream"_a, "bucket"_a, "segment_blocks"_a, "depth"_a,
        "counted"_a, "averaged"_a = false, "ballots"_a, "verdicts"_a);

  nb::class_<PyVote>(m, "Vote")
      .def("begin", &begin_vote, nb::kw_only(), "operands"_a, "step"_a, "zero_key"_a, "tie_key"_a,
           "joined"_a, "keep"_a, "trace"_a, "weights"_a = nb::none(), "unsaid"_a = nb::none())
      .def("test",
           [](const PyVote& self) { return self.vote->done.load(std::memory_order_acquire); })
      .def_prop_ro("error", [](const PyVote& self) { return self.vote->error; })
      .def_prop_ro("flags",
                   [](const PyVote& self) {
                     return (self.vote->any_flags & kNonfinite) | self.vote->all_flags;
                   })
      .def_prop_ro("counts", [](const PyVote& self) { return self.vote->counts; })
      .def_prop_ro("means",
                   [](const PyVote& self) {
                     std::vector<float> means;
                     for (const Operand& operand : self.vote->operands) {
                       means.push_back(operand.packed.mean_abs());
                     }
                     return means;
                   })
      .def("totals", &totals)
      .def("spans", &spans);
  m.def("vote", &make_vote, "plan"_a);

  nb::class_<Relay>(m, "Relay")
      .def(nb::init<size_t>(), "voters"_a)
      .def("take", &take)
      .def("finish", &Relay::finish)
      .def("fail", &Relay::fail);
  nb::class_<Stream>(m, "Stream");
  nb::class_<Engine>(m, "Engine")
      .def(nb::init<size_t>(), "threads"_a)
      .def("open",
           [](Engine& self, uintptr_t ballot_comm, uintptr_t verdict_comm) {
             return self.open(std::make_shared<MpiWire>(communicator_at(ballot_comm),
                                                        communicator_at(verdict_comm)));
           })
      .def("open_relay",
           [](Engine& self, const std::shared_ptr<Relay>& relay) { return self.open(relay); })
      .def("close", &Engine::close)
      .def("submit", [](Engine& self, const std::shared_ptr<Stream>& stream,
                        const PyVote& vote) { self.submit(stream, vote.vote); })
      .def("nap", &Engine::nap, nb::call_guard<nb::gil_scoped_release>())
      .def("stop", &Engine::stop, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace hvd_sign
