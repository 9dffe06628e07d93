// The part of the Python module hvd_sign._kernels that packs.
#include <nanobind/nanobind.h>

#include <cmath>
#include <cstdio>
#include <initializer_list>

#include "arrays.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hvd_sign {
namespace {

nb::tuple pack_into(nb::handle signal, nb::handle messages, const Geometry& geometry,
                    int64_t first_block, int64_t ties, uint64_t key, int64_t parity,
                    uint64_t ordinal, bool bfloat16, bool want_abs) {
  const FloatArray from(signal, {"pack", "signal"}, Access::read, bfloat16);
  const Messages to(messages, "pack", Access::write, geometry);
  to.must_not_overlap(from);
  const size_t first = first_of("pack", first_block, blocks_of(from.size()), geometry);
  const PackOptions options{ties_of("pack", ties), key, (parity & 1) != 0, ordinal, want_abs};
  must_fit("pack", options.ties, geometry);
  PackResult result;
  {
    nb::gil_scoped_release release;
    result = pack(from.data(), from.type, from.size(), to.data(), geometry, first, options);
  }
  return nb::make_tuple(result.nonfinite_chunks, result.finite_coordinates, result.abs_sum);
}

// Factors of `argument`, rounded to the arithmetic's type.
void must_be_finite(const Argument& argument, Dtype arithmetic,
                    std::initializer_list<double> factors) {
  const bool wide = arithmetic == Dtype::float64;
  for (const double factor : factors) {
    if (std::isfinite(wide ? factor : float(factor))) continue;
    char got[32];
    std::snprintf(got, sizeof got, "%g", factor);
    argument.wrong_value(wide ? "finite float64 numbers" : "finite float32 numbers", got);
  }
}

nb::tuple pack_linear_into(nb::handle gradient, nb::handle state, nb::handle next_state,
                           nb::handle messages, const Geometry& geometry, int64_t first_block,
                           double a, double b, double c, double d, double unscale,
                           nb::handle feedback, int64_t ties, uint64_t key, int64_t parity,
                           uint64_t ordinal, bool bfloat16, bool want_abs) {
  const char* function = "pack_linear";
  const LinearArrays from(function, gradient, state, next_state, feedback, bfloat16);
  const Messages to(messages, function, Access::write, geometry);
  from.must_be_apart_from(to);
  const size_t first = first_of(function, first_block, blocks_of(from.size), geometry);
  must_be_finite({function, "linear"}, arithmetic_of(from.type), {a, b, c, d});
  must_be_finite({function, "unscale"}, arithmetic_of(from.type), {unscale});
  const PackOptions options{ties_of(function, ties), key, (parity & 1) != 0, ordinal, want_abs};
  must_fit(function, options.ties, geometry);
  PackResult result;
  {
    nb::gil_scoped_release release;
    result = pack_linear(from.gradient ? from.gradient->data() : nullptr, from.type, from.size,
                         from.state ? from.state->data() : nullptr,
                         from.next ? from.next->data() : nullptr, {a, b, c, d, unscale},
                         from.feedback(), to.data(), geometry, first, options);
  }
  return nb::make_tuple(result.nonfinite_chunks, result.finite_coordinates, result.abs_sum);
}

}  // namespace

void define_pack(nb::module_& m) {
  m.def("pack", &pack_into, "signal"_a.none(), "messages"_a.none(), "geometry"_a, "first_block"_a,
        nb::kw_only(), "ties"_a, "key"_a, "parity"_a, "ordinal"_a, "bfloat16"_a = false,
        "want_abs"_a = false);
  m.def("pack_linear", &pack_linear_into, "gradient"_a.none(), "state"_a.none(),
        "next_state"_a.none(), "messages"_a.none(), "geometry"_a, "first_block"_a, nb::kw_only(),
        "a"_a, "b"_a, "c"_a, "d"_a, "unscale"_a, "feedback"_a.none(), "ties"_a, "key"_a, "parity"_a,
        "ordinal"_a, "bfloat16"_a = false, "want_abs"_a = false);
}

}  // namespace hvd_sign
