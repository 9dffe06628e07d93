#include "arrays.h"

#include <nanobind/stl/tuple.h>

namespace nb = nanobind;

namespace hvd_sign {
namespace {

std::string sentence(const Argument& argument, const std::string& expected,
                     const std::string& got) {
  return std::string(argument.function) + ": " + argument.name + ": expected " + expected +
         ", got " + got;
}

std::string type_of(nb::handle object) {
  return nb::borrow<nb::str>(object.type().attr("__name__")).c_str();
}

bool contiguous(const nb::ndarray<nb::ro>& array) {
  if (array.size() < 2) return true;
  int64_t stride = 1;
  for (size_t axis = array.ndim(); axis-- > 0;) {
    if (array.shape(axis) != 1 && array.stride(axis) != stride) return false;
    stride *= int64_t(array.shape(axis));
  }
  return true;
}

const std::string kFloats = "a contiguous float32, float64, float16 or bfloat16 array";

}  // namespace

void Argument::wrong_type(const std::string& expected, const std::string& got) const {
  throw nb::type_error(sentence(*this, expected, got).c_str());
}

void Argument::wrong_value(const std::string& expected, const std::string& got) const {
  throw nb::value_error(sentence(*this, expected, got).c_str());
}

std::string name_of(nb::dlpack::dtype dtype) {
  using Code = nb::dlpack::dtype_code;
  const std::string bits = std::to_string(dtype.bits);
  switch (Code(dtype.code)) {
    case Code::Int:
      return "int" + bits;
    case Code::UInt:
      return "uint" + bits;
    case Code::Float:
      return "float" + bits;
    case Code::Bfloat:
      return "bfloat" + bits;
    case Code::Complex:
      return "complex" + bits;
    case Code::Bool:
      return "bool";
    default:
      return "DLPack type " + std::to_string(dtype.code) + " of " + bits + " bits";
  }
}

Array::Array(nb::handle from, Argument argument, Access access, const std::string& expected)
    : argument_(argument) {
  if (!nb::try_cast(from, array_, false)) argument.wrong_type(expected, type_of(from));
  if (array_.device_type() != nb::device::cpu::value &&
      array_.device_type() != nb::device::cuda_host::value) {
    argument.wrong_type("an array in the memory of the CPU",
                        "one on DLPack device type " + std::to_string(array_.device_type()));
  }
  nb::ndarray<> writable;
  if (access == Access::write && !nb::try_cast(from, writable, false)) {
    argument.wrong_value("a writable array", "a read-only one");
  }
  if (!contiguous(array_)) argument.wrong_value(expected, "one with gaps or another order");
}

void Array::must_not_overlap(const Array& input) const {
  const bool apart = data() + bytes() <= input.data() || input.data() + input.bytes() <= data();
  if (apart || !bytes() || !input.bytes()) return;
  argument_.wrong_value(std::string("memory apart from ") + input.argument_.name,
                        "an overlap with it");
}

FloatArray::FloatArray(nb::handle from, Argument argument, Access access, bool bfloat16)
    : Array(from, argument, access, kFloats) {
  using Code = nb::dlpack::dtype_code;
  const nb::dlpack::dtype is = dtype();
  const bool floating = is.code == uint8_t(Code::Float) && is.lanes == 1;
  if (bfloat16) {
    const bool brain = is.code == uint8_t(Code::Bfloat) && is.bits == 16;
    if (!brain && is != nb::dtype<uint16_t>()) {
      argument.wrong_type("a bfloat16 array, or its bits as uint16", name_of(is));
    }
    type = Dtype::bfloat16;
  } else if (floating && is.bits == 32) {
    type = Dtype::float32;
  } else if (floating && is.bits == 64) {
    type = Dtype::float64;
  } else if (floating && is.bits == 16) {
    type = Dtype::float16;
  } else if (is.code == uint8_t(Code::Bfloat) && is.bits == 16 && is.lanes == 1) {
    type = Dtype::bfloat16;
  } else {
    argument.wrong_type(kFloats, name_of(is));
  }
}

LinearArrays::LinearArrays(const char* function, nb::handle gradient_from, nb::handle state_from,
                           nb::handle next_from, nb::handle feedback_from, bool bfloat16) {
  const Argument of_gradient{function, "gradient"}, of_state{function, "state"},
      of_next{function, "next_state"}, of_kept{function, "feedback: kept"},
      of_next_kept{function, "feedback: next"}, of_sent{function, "feedback: sent"},
      of_next_sent{function, "feedback: next_sent"};
  nb::object kept_from = nb::none(), next_kept_from, sent_from, next_sent_from;
  if (!feedback_from.is_none()) {
    std::tie(kept_from, next_kept_from, sent_from, next_sent_from) =
        nb::cast<std::tuple<nb::object, nb::object, nb::object, nb::object>>(feedback_from);
  }
  if (gradient_from.is_none() && state_from.is_none() && kept_from.is_none()) {
    of_gradient.wrong_type("an array, as there is no state", type_of(gradient_from));
  }
  if (next_from.is_none() != state_from.is_none()) {
    of_next.wrong_type(
        state_from.is_none() ? "None, as there is no state" : "an array, as there is a state",
        type_of(next_from));
  }
  if (!gradient_from.is_none()) {
    gradient.emplace(gradient_from, of_gradient, Access::read, bfloat16);
    type = gradient->type;
    size = gradient->size();
  }
  if (!state_from.is_none()) {
    state.emplace(state_from, of_state, Access::read, false);
    next.emplace(next_from, of_next, Access::write, false);
  }
  if (!kept_from.is_none()) {
    kept_.emplace(kept_from, of_kept, Access::read, false);
    next_kept_.emplace(next_kept_from, of_next_kept, Access::write, false);
  }
  if (!gradient && (state || kept_)) {
    const FloatArray& first = state ? *state : *kept_;
    type = arithmetic_of(first.type);
    size = first.size();
  }
  for (const auto* pair : {&state, &next, &kept_, &next_kept_}) {
    if (*pair) must_fit(**pair);
  }
  if (state) {
    if (next->data() != state->data()) next->must_not_overlap(*state);
    if (gradient) next->must_not_overlap(*gradient);
  }
  if (!kept_) return;
  const int64_t chunks = int64_t((blocks_of(size) + kChunkBlocks - 1) / kChunkBlocks);
  sent_.emplace(sent_from, of_sent, Access::read, chunks);
  next_sent_.emplace(next_sent_from, of_next_sent, Access::write, chunks);
  if (next_kept_->data() != kept_->data()) next_kept_->must_not_overlap(*kept_);
  if (next_sent_->data() != sent_->data()) next_sent_->must_not_overlap(*sent_);
  for (const auto* one : {&gradient, &state, &next}) {
    if (*one) next_kept_->must_not_overlap(**one);
  }
}

void LinearArrays::must_fit(const FloatArray& one) const {
  if (one.type != arithmetic_of(type)) {
    one.argument().wrong_type(arithmetic_of(type) == Dtype::float64 ? "a contiguous float64 array"
                                                                    : "a contiguous float32 array",
                              name_of(one.dtype()));
  }
  if (one.size() != size) {
    one.argument().wrong_value(std::to_string(size) + " items", std::to_string(one.size()));
  }
}

Feedback LinearArrays::feedback() const {
  if (!kept_) return {};
  return {kept_->data(), next_kept_->data(), sent_->items(), next_sent_->items()};
}

void LinearArrays::must_be_apart_from(const Array& output) const {
  for (const auto* one : {&gradient, &state, &next, &kept_, &next_kept_}) {
    if (*one) output.must_not_overlap(**one);
  }
}

WeighingArrays::WeighingArrays(nb::handle weights, nb::handle lengths, nb::handle agreed,
                               nb::handle judged, size_t ballots, size_t tensors) {
  const Argument of_lengths{"tally", "lengths"}, of_judged{"tally", "judged"};
  if (agreed.is_none() != judged.is_none()) {
    of_judged.wrong_type(
        agreed.is_none() ? "None, as there is no agreed" : "an array, as agreed is",
        type_of(judged));
  }
  const bool needed = !weights.is_none() || !agreed.is_none();
  if (lengths.is_none() == needed) {
    of_lengths.wrong_type(needed ? "an array, beside weights or counts"
                                 : "None, as there are no weights and no counts",
                          type_of(lengths));
  }
  if (!needed) return;
  lengths_.emplace(lengths, of_lengths, Access::read, int64_t(tensors));
  if (!weights.is_none()) {
    const Argument of_weights{"tally", "weights"};
    weights_.emplace(weights, of_weights, Access::read, int64_t(ballots));
  }
  if (!agreed.is_none()) {
    const Argument of_agreed{"tally", "agreed"};
    agreed_.emplace(agreed, of_agreed, Access::write, int64_t(ballots));
    judged_.emplace(judged, of_judged, Access::write, int64_t(ballots));
  }
  const std::vector<int8_t> ones(weights_ ? 0 : ballots, 1);
  weights_by_bits_.assign(weights_ ? weights_->items() : ones.data(), ballots);
}

void WeighingArrays::must_be_apart_from(std::initializer_list<const Array*> others) const {
  const Array* const inputs[] = {weights_ ? &*weights_ : nullptr, lengths_ ? &*lengths_ : nullptr};
  const Array* const verdict = *(others.end() - 1);
  for (const Array* input : inputs) {
    if (input) verdict->must_not_overlap(*input);
  }
  if (!agreed_) return;
  judged_->must_not_overlap(*agreed_);
  for (const Array* output :
       {static_cast<const Array*>(&*agreed_), static_cast<const Array*>(&*judged_)}) {
    for (const Array* other : others) output->must_not_overlap(*other);
    for (const Array* input : inputs) {
      if (input) output->must_not_overlap(*input);
    }
  }
}

void WeighingArrays::put_into(TallyOptions& options) const {
  if (!lengths_) return;
  options.weights = &weights_by_bits_;
  options.lengths = lengths_->items();
  if (!agreed_) return;
  options.agreed = agreed_->items();
  options.judged = judged_->items();
}

Messages::Messages(nb::handle from, const char* function, Access access, const Geometry& geometry)
    : ItemArray(from, {function, "messages"}, access) {
  if (size() != geometry.total_bytes) {
    argument().wrong_value(std::to_string(geometry.total_bytes) + " bytes, the geometry's",
                           std::to_string(size()));
  }
}

MessageList::MessageList(nb::handle from, Argument argument, Access access,
                         const Geometry& geometry)
    : ItemArray(from, argument, access), count(size() / geometry.message_bytes) {
  if (count == 0 || size() % geometry.message_bytes) {
    argument.wrong_value(
        "a whole number of messages of " + std::to_string(geometry.message_bytes) + " bytes",
        std::to_string(size()) + " bytes");
  }
}

FeedbackArrays::FeedbackArrays(Argument argument, nb::handle from,
                               const std::vector<uint64_t>& lengths) {
  const size_t tensors = nb::len(from);
  if (tensors != lengths.size()) {
    argument.wrong_value(std::to_string(lengths.size()) + " items, one a tensor",
                         std::to_string(tensors));
  }
  arrays_.reserve(4 * tensors);
  for (size_t tensor = 0; tensor < tensors; ++tensor) {
    add(argument, from[tensor], lengths[tensor]);
  }
}

void FeedbackArrays::add(Argument argument, nb::handle item, size_t coordinates) {
  const auto [kept, next, sent, next_sent] =
      nb::cast<std::tuple<nb::object, nb::object, nb::object, nb::object>>(item);
  const int64_t count = int64_t(coordinates);
  const int64_t chunks = int64_t((blocks_of(coordinates) + kChunkBlocks - 1) / kChunkBlocks);
  const size_t at = arrays_.size();
  arrays_.emplace_back(kept, argument, Access::read, count);
  arrays_.emplace_back(next, argument, Access::write, count);
  arrays_.emplace_back(sent, argument, Access::read, chunks);
  arrays_.emplace_back(next_sent, argument, Access::write, chunks);
  for (const size_t pair : {at, at + 2}) {
    if (arrays_[pair].data() != arrays_[pair + 1].data()) {
      arrays_[pair + 1].must_not_overlap(arrays_[pair]);
    }
  }
  items_.push_back({arrays_[at].items(), arrays_[at + 1].items(), arrays_[at + 2].items(),
                    arrays_[at + 3].items()});
}

int64_t shard_of(const char* function, int64_t shard, int64_t lowest, const Geometry& geometry) {
  if (shard < lowest || shard >= int64_t(geometry.shards)) {
    Argument{function, "shard"}.wrong_value(
        std::to_string(lowest) + " to " + std::to_string(geometry.shards - 1),
        std::to_string(shard));
  }
  return shard;
}

size_t first_of(const char* function, int64_t first_block, size_t blocks,
                const Geometry& geometry) {
  if (geometry.chunk_scales && first_block % int64_t(kChunkBlocks)) {
    Argument{function, "first_block"}.wrong_value(
        "a multiple of 64, as the geometry has chunk scales", std::to_string(first_block));
  }
  if (first_block < 0 || size_t(first_block) > geometry.blocks ||
      blocks > geometry.blocks - size_t(first_block)) {
    Argument{function, "first_block"}.wrong_value(
        std::to_string(blocks) + " blocks inside the bucket's " + std::to_string(geometry.blocks),
        "blocks from " + std::to_string(first_block) + " on");
  }
  return size_t(first_block);
}

Ties ties_of(const char* function, int64_t ties) {
  if (ties < int64_t(Ties::coin) || ties > int64_t(Ties::positive)) {
    Argument{function, "ties"}.wrong_value("0 (coin), 1 (zero) or 2 (positive)",
                                           std::to_string(ties));
  }
  return Ties(ties);
}

void must_fit(const char* function, Ties ties, const Geometry& geometry) {
  if ((ties == Ties::zero) == geometry.nonzero) return;
  Argument{function, "geometry"}.wrong_value(
      ties == Ties::zero ? "one with a non-zero plane, as ties 'zero' needs it"
                         : "one without a non-zero plane, as only ties 'zero' has it",
      geometry.nonzero ? "one with it" : "one without");
}

}  // namespace hvd_sign
