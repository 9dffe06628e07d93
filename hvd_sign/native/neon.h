// NEON's registers as its kernels use them. Included in neon.cpp alone.
#pragma once

#include <arm_neon.h>

#include <type_traits>

#include "floats.h"
#include "kernels.h"

namespace hvd_sign {
namespace {

using Vector = uint8x16_t;

Vector load_vector(const void* from) { return vld1q_u8(static_cast<const uint8_t*>(from)); }
void store_vector(void* to, Vector v) { vst1q_u8(static_cast<uint8_t*>(to), v); }
bool any(Vector v) { return vmaxvq_u32(vreinterpretq_u32_u8(v)) != 0; }

// Integer vectors of one element size. top(v) is sixteen bytes of which each has the top bit of an
// element on top, where v(i) is the i-th of the vectors that hold these elements. mask(word, first)
// has all ones in the lanes whose bit is 1 in the word, from bit `first` on.
struct Lanes16 {
  static uint16x8_t in(Vector v) { return vreinterpretq_u16_u8(v); }
  static Vector out(uint16x8_t v) { return vreinterpretq_u8_u16(v); }
  static Vector all(uint64_t value) { return out(vdupq_n_u16(uint16_t(value))); }
  static Vector low(Vector a, Vector b) { return out(vminq_u16(in(a), in(b))); }
  static Vector high(Vector a, Vector b) { return out(vmaxq_u16(in(a), in(b))); }
  static Vector same(Vector a, Vector b) { return out(vceqq_u16(in(a), in(b))); }
  static Vector above(Vector a, Vector b) { return out(vcgtq_u16(in(a), in(b))); }
  static Vector mask(uint64_t word, int first) {
    const uint16x8_t lane = {1, 2, 4, 8, 16, 32, 64, 128};
    return out(vtstq_u16(vdupq_n_u16(uint16_t(word >> first)), lane));
  }
  template <class Get>
  static Vector top(Get v) {
    return vuzp2q_u8(v(0), v(1));
  }
};

struct Lanes32 {
  static uint32x4_t in(Vector v) { return vreinterpretq_u32_u8(v); }
  static Vector out(uint32x4_t v) { return vreinterpretq_u8_u32(v); }
  static Vector all(uint64_t value) { return out(vdupq_n_u32(uint32_t(value))); }
  static Vector low(Vector a, Vector b) { return out(vminq_u32(in(a), in(b))); }
  static Vector high(Vector a, Vector b) { return out(vmaxq_u32(in(a), in(b))); }
  static Vector same(Vector a, Vector b) { return out(vceqq_u32(in(a), in(b))); }
  static Vector above(Vector a, Vector b) { return out(vcgtq_u32(in(a), in(b))); }
  static Vector mask(uint64_t word, int first) {
    const uint32x4_t lane = {1, 2, 4, 8};
    return out(vtstq_u32(vdupq_n_u32(uint32_t(word >> first)), lane));
  }
  template <class Get>
  static Vector top(Get v) {
    const auto halves = [&](int i) {
      return Lanes16::out(vuzp2q_u16(Lanes16::in(v(2 * i)), Lanes16::in(v(2 * i + 1))));
    };
    return Lanes16::top(halves);
  }
};

struct Lanes64 {
  static uint64x2_t in(Vector v) { return vreinterpretq_u64_u8(v); }
  static Vector out(uint64x2_t v) { return vreinterpretq_u8_u64(v); }
  static Vector all(uint64_t value) { return out(vdupq_n_u64(value)); }
  static Vector low(Vector a, Vector b) { return vbslq_u8(above(a, b), b, a); }
  static Vector high(Vector a, Vector b) { return vbslq_u8(above(a, b), a, b); }
  static Vector same(Vector a, Vector b) { return out(vceqq_u64(in(a), in(b))); }
  static Vector above(Vector a, Vector b) { return out(vcgtq_u64(in(a), in(b))); }
  static Vector mask(uint64_t word, int first) {
    const uint64x2_t lane = {1, 2};
    return out(vtstq_u64(vdupq_n_u64(word >> first), lane));
  }
  template <class Get>
  static Vector top(Get v) {
    const auto halves = [&](int i) {
      return Lanes32::out(vuzp2q_u32(Lanes32::in(v(2 * i)), Lanes32::in(v(2 * i + 1))));
    };
    return Lanes32::top(halves);
  }
};

template <class Float>
using Lanes =
    std::conditional_t<sizeof(typename Float::Bits) == 2, Lanes16,
                       std::conditional_t<sizeof(typename Float::Bits) == 4, Lanes32, Lanes64>>;

template <class Float>
constexpr int kLanes = int(sizeof(Vector) / sizeof(typename Float::Bits));
template <class Float>
constexpr int kVectors = int(kBlock) / kLanes<Float>;

// Numbers in their arithmetic's type: a register at a time; of those in float32, eight back.
template <class Float>
struct Numbers;

template <>
struct Numbers<Float64> {
  static float64x2_t load(const uint8_t* from) { return vreinterpretq_f64_u8(load_vector(from)); }
};

template <>
struct Numbers<Float32> {
  static float32x4_t load(const uint8_t* from) { return vreinterpretq_f32_u8(load_vector(from)); }
  static void round8(float32x4_t low, float32x4_t high, Vector* to) {
    to[0] = vreinterpretq_u8_f32(low);
    to[1] = vreinterpretq_u8_f32(high);
  }
};

template <>
struct Numbers<Float16> {
  static float32x4_t load(const uint8_t* from) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from)));
  }
  static void round8(float32x4_t low, float32x4_t high, Vector* to) {
    *to = vreinterpretq_u8_f16(vcvt_high_f16_f32(vcvt_f16_f32(low), high));
  }
};

template <>
struct Numbers<BFloat16> {
  static float32x4_t load(const uint8_t* from) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(from)), 16));
  }
  // A NaN needs no care: it came from a bfloat16 or is the default one, so its lower half is 0 and
  // the rounding carries nothing into the upper one, and the arithmetic has made it quiet.
  static uint16x4_t round4(float32x4_t v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF))), 16);
  }
  static void round8(float32x4_t low, float32x4_t high, Vector* to) {
    *to = vreinterpretq_u8_u16(vcombine_u16(round4(low), round4(high)));
  }
};

}  // namespace
}  // namespace hvd_sign
