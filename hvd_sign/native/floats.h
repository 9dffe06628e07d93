// The float types by their bits. Everything has internal linkage: each instruction set's file gets
// its own copy, so that the linker never hands one set's code to another.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace hvd_sign {
namespace {

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

struct Float32 {
  using Bits = uint32_t;
  using Arithmetic = float;
  static constexpr Bits kSign = 0x80000000, kInfinity = 0x7F800000, kLeastNormal = 0x00800000;
  static float value(Bits bits) { return bits_as<float>(bits); }
  static Bits bits(float value) { return bits_as<Bits>(value); }
};

struct Float64 {
  using Bits = uint64_t;
  using Arithmetic = double;
  static constexpr Bits kSign = 0x8000000000000000, kInfinity = 0x7FF0000000000000;
  static constexpr Bits kLeastNormal = 0x0010000000000000;
  static double value(Bits bits) { return bits_as<double>(bits); }
  static Bits bits(double value) { return bits_as<Bits>(value); }
};

struct BFloat16 {
  using Bits = uint16_t;
  using Arithmetic = float;
  static constexpr Bits kSign = 0x8000, kInfinity = 0x7F80;
  static float value(Bits bits) { return bits_as<float>(uint32_t(bits) << 16); }
  static Bits bits(float value) {  // to nearest, ties to even; a NaN keeps its upper bits, quiet
    const uint32_t wide = bits_as<uint32_t>(value);
    if ((wide & 0x7FFFFFFF) > 0x7F800000) return Bits(wide >> 16 | 0x40);
    return Bits((wide + 0x7FFF + (wide >> 16 & 1)) >> 16);
  }
};

struct Float16 {
  using Bits = uint16_t;
  using Arithmetic = float;
  static constexpr Bits kSign = 0x8000, kInfinity = 0x7C00;

  static float value(Bits bits) {
    const uint32_t sign = uint32_t(bits & kSign) << 16;
    const uint32_t magnitude = bits & 0x7FFF;
    if (magnitude > kInfinity) return bits_as<float>(sign | 0x7FC00000 | magnitude << 13);
    if (magnitude == kInfinity) return bits_as<float>(sign | 0x7F800000);
    if (magnitude >= 0x400) return bits_as<float>(sign | ((magnitude << 13) + (112u << 23)));
    const float subnormal = float(magnitude) * 0x1p-24f;
    return bits_as<float>(sign | bits_as<uint32_t>(subnormal));
  }

  static Bits bits(float value) {  // to nearest, ties to even; a NaN keeps its upper bits, quiet
    const uint32_t wide = bits_as<uint32_t>(value);
    const Bits sign = Bits(wide >> 16 & kSign);
    uint32_t magnitude = wide & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return Bits(sign | 0x7E00 | (magnitude >> 13 & 0x1FF));
    if (magnitude >= 0x477FF000) return Bits(sign | kInfinity);  // from 65520 on
    if (magnitude < 0x38800000) {
      // Below the normal range the step is 2^-24; adding 0.5 (step 2^-24) rounds to it.
      const float rounded = bits_as<float>(magnitude) + 0.5f;
      return Bits(sign | (bits_as<uint32_t>(rounded) - 0x3F000000));
    }
    magnitude += 0xFFF + (magnitude >> 13 & 1);
    return Bits(sign | (magnitude - (112u << 23)) >> 13);
  }
};

// The type in which numbers of a type are computed with, as one of these.
template <class Float>
using ArithmeticOf = std::conditional_t<sizeof(typename Float::Arithmetic) == 8, Float64, Float32>;

}  // namespace
}  // namespace hvd_sign
