// What compare.cpp compares with: numbers, lengths, and the comparison itself.
#pragma once

#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../coin.h"
#include "../kernels.h"

using namespace hvd_sign;

namespace {

using Bytes = std::vector<uint8_t>;

const Dtype kTypes[] = {Dtype::float32, Dtype::float64, Dtype::float16, Dtype::bfloat16};
const char* const kNames[] = {"float32", "float64", "float16", "bfloat16"};

std::mt19937_64 random_bits(1);  // the standard fixes its sequence, not that of distributions

uint64_t below(uint64_t end) { return random_bits() % end; }

void store_number(Dtype dtype, uint8_t* to, uint64_t bits) {
  std::memcpy(to, &bits, bytes_of(dtype));  // little-endian: the low bytes
}

// Numbers of every exponent, with zeros of both signs, subnormals, and at times NaN and infinity.
void fill(Dtype dtype, uint8_t* to, size_t count, unsigned zeros_in_8, bool nonfinite) {
  const size_t bytes = bytes_of(dtype);
  const unsigned fraction[] = {23, 52, 10, 7};
  const unsigned exponent[] = {8, 11, 5, 8};
  const uint64_t sign = 1ull << (bytes * 8 - 1);
  const uint64_t top = 1ull << (fraction[size_t(dtype)] + exponent[size_t(dtype)] - 1);
  for (size_t i = 0; i < count; ++i) {
    uint64_t bits = random_bits() & (sign | (sign - 1));
    if (!nonfinite) bits &= ~top;  // half of all exponents: no sum overflows
    if (below(16) == 0) bits &= sign | ((1ull << fraction[size_t(dtype)]) - 1);
    if (below(8) < zeros_in_8) bits &= sign;
    store_number(dtype, to + i * bytes, bits);
  }
}

// What one call leaves behind: its buffers, and what it returns.
struct Outcome {
  std::vector<Bytes> buffers;
  std::vector<uint64_t> numbers;

  bool operator==(const Outcome& other) const {
    return buffers == other.buffers && numbers == other.numbers;
  }
};

class Comparison {
 public:
  explicit Comparison(std::vector<std::string> names) : names_(std::move(names)) {}

  // Runs `call` on the scalar implementation and on the others.
  void compare(const std::string& what, const std::function<Outcome()>& call) {
    set_implementation("scalar");
    const Outcome expected = call();
    for (const Bytes& buffer : expected.buffers) {
      for (const uint8_t byte : buffer) digest_ = (digest_ ^ byte) * 0x100000001B3;
    }
    for (const uint64_t number : expected.numbers) digest_ = mix64(digest_ ^ number);
    for (const std::string& name : names_) {
      set_implementation(name);
      calls_ += 1;
      if (call() == expected) continue;
      if (++wrong_ <= 10) std::printf("%s differs from scalar: %s\n", name.c_str(), what.c_str());
    }
  }

  // Two ways to one result, on the implementation that ran last. Sums may differ in the last bits.
  void same(const std::string& what, Outcome one, Outcome other) {
    one.numbers.back() = other.numbers.back() = 0;
    calls_ += 1;
    if (!(one == other) && ++wrong_ <= 10) std::printf("not the same: %s\n", what.c_str());
  }

  void section(const char* name) {
    std::printf("%-16s %8zu calls\n", name, calls_);
    total_ += calls_;
    calls_ = 0;
  }

  int report() const {
    std::string all;
    for (const std::string& name : names_) all += " " + name;
    std::printf("digest %016llx\n", static_cast<unsigned long long>(digest_));
    std::printf("%zu calls,%s: %zu differ from scalar\n", total_, all.c_str(), wrong_);
    return wrong_ || !total_;
  }

 private:
  const std::vector<std::string> names_;
  size_t calls_ = 0, total_ = 0, wrong_ = 0;
  uint64_t digest_ = 0xCBF29CE484222325;
};

// Every length up to two blocks and a bit, then around the ends of blocks and of chunks.
std::vector<size_t> lengths() {
  std::vector<size_t> found;
  for (size_t count = 0; count <= 140; ++count) found.push_back(count);
  for (const size_t near : {192u, 320u, 512u, 4096u, 8192u}) {
    for (const size_t count : {near - 1, near, near + 1}) found.push_back(count);
  }
  return found;
}

std::string describe(const char* type, size_t count, size_t offset, size_t variant) {
  return std::string(type) + ", " + std::to_string(count) + " coordinates at byte " +
         std::to_string(offset) + ", variant " + std::to_string(variant);
}

size_t blocks_for(size_t count) { return (count + kBlock - 1) / kBlock; }

}  // namespace
