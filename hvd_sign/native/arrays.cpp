#include "arrays.h"

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

size_t first_of(const char* function, int64_t first_block, size_t blocks,
                const Geometry& geometry) {
  if (first_block < 0 || size_t(first_block) > geometry.blocks ||
      blocks > geometry.blocks - size_t(first_block)) {
    Argument{function, "first_block"}.wrong_value(
        std::to_string(blocks) + " blocks inside the bucket's " + std::to_string(geometry.blocks),
        "blocks from " + std::to_string(first_block) + " on");
  }
  return size_t(first_block);
}

}  // namespace hvd_sign
