// Arrays as they come from Python: checked, and described without a copy. The checks throw
// nanobind::type_error or nanobind::value_error with a sentence that names function and argument.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

namespace hvd_sign {

enum class Access { read, write };

// Where an array is asked for: the words that its error sentences begin with.
struct Argument {
  const char* function;
  const char* name;

  [[noreturn]] void wrong_type(const std::string& expected, const std::string& got) const;
  [[noreturn]] void wrong_value(const std::string& expected, const std::string& got) const;
};

// A contiguous array in the memory of the CPU; keeps its owner alive.
class Array {
 public:
  // `expected` describes the array in the sentence of an error.
  Array(nanobind::handle from, Argument argument, Access access, const std::string& expected);

  // The array's memory, after the access was checked.
  uint8_t* data() const { return static_cast<uint8_t*>(const_cast<void*>(array_.data())); }
  size_t size() const { return array_.size(); }
  size_t bytes() const { return array_.nbytes(); }
  nanobind::dlpack::dtype dtype() const { return array_.dtype(); }
  const Argument& argument() const { return argument_; }

  // Throws if this output shares memory with `input`.
  void must_not_overlap(const Array& input) const;

 private:
  Argument argument_;
  nanobind::ndarray<nanobind::ro> array_;
};

std::string name_of(nanobind::dlpack::dtype dtype);

// A float array, and which of the kernels' types it has; `bfloat16`: a uint16 array is one.
struct FloatArray : Array {
  FloatArray(nanobind::handle from, Argument argument, Access access, bool bfloat16);
  Dtype type;
};

// An array of one type of numbers, with an exact length unless that is negative.
template <class Item>
struct ItemArray : Array {
  ItemArray(nanobind::handle from, Argument argument, Access access, int64_t length = -1)
      : Array(from, argument, access,
              "a contiguous " + name_of(nanobind::dtype<Item>()) + " array") {
    if (dtype() != nanobind::dtype<Item>()) {
      argument.wrong_type("a contiguous " + name_of(nanobind::dtype<Item>()) + " array",
                          name_of(dtype()));
    }
    if (reinterpret_cast<uintptr_t>(data()) % alignof(Item)) {
      argument.wrong_value("an aligned array", "one that begins between two words");
    }
    if (length >= 0 && size() != size_t(length)) {
      argument.wrong_value(std::to_string(length) + " items", std::to_string(size()));
    }
  }
  Item* items() const { return reinterpret_cast<Item*>(data()); }
};

// What pack_linear reads and writes of a tensor: a gradient, or none; a state and the next one, in
// the arithmetic's type, or neither; and of a feedback, (kept, next, sent, next_sent), or None.
class LinearArrays {
 public:
  LinearArrays(const char* function, nanobind::handle gradient, nanobind::handle state,
               nanobind::handle next, nanobind::handle feedback, bool bfloat16);
  void must_be_apart_from(const Array& output) const;
  Feedback feedback() const;

  std::optional<FloatArray> gradient, state, next;
  Dtype type;  // of the gradient; without one, of what is kept
  size_t size;

 private:
  void must_fit(const FloatArray& one) const;

  std::optional<FloatArray> kept_, next_kept_;
  std::optional<ItemArray<float>> sent_, next_sent_;
};

// What tally weighs by, and where it counts: nothing, or weights of `ballots`, or both counts, or
// all of them; the lengths of `tensors` then too.
class WeighingArrays {
 public:
  WeighingArrays(nanobind::handle weights, nanobind::handle lengths, nanobind::handle agreed,
                 nanobind::handle judged, size_t ballots, size_t tensors);

  void must_be_apart_from(std::initializer_list<const Array*> others) const;
  void put_into(TallyOptions& options) const;

 private:
  std::optional<ItemArray<int8_t>> weights_;
  std::optional<ItemArray<uint64_t>> lengths_, agreed_, judged_;
  Weights weights_by_bits_;
};

// By tensor (kept, next, sent, next_sent), float32: what verdicts leave unsaid, see TallyOptions.
class FeedbackArrays {
 public:
  FeedbackArrays(Argument argument, nanobind::handle from, const std::vector<uint64_t>& lengths);
  const Feedback* items() const { return items_.data(); }

 private:
  void add(Argument argument, nanobind::handle item, size_t coordinates);

  std::vector<ItemArray<float>> arrays_;
  std::vector<Feedback> items_;
};

// A buffer of one bucket's messages, in which `blocks` blocks from `first` on are meant.
struct Messages : ItemArray<uint8_t> {
  Messages(nanobind::handle from, const char* function, Access access, const Geometry& geometry);
};

// A buffer of any whole number of messages, at least one.
struct MessageList : ItemArray<uint8_t> {
  MessageList(nanobind::handle from, Argument argument, Access access, const Geometry& geometry);
  size_t count;
};

// The shard, after a check that it is `lowest` or one of the geometry's.
int64_t shard_of(const char* function, int64_t shard, int64_t lowest, const Geometry& geometry);

// The first block as a size, after a check that `blocks` blocks from it lie in the bucket.
size_t first_of(const char* function, int64_t first_block, size_t blocks, const Geometry& geometry);

inline size_t blocks_of(size_t coordinates) { return (coordinates + kBlock - 1) / kBlock; }

// The policy, after a check that there is one of this number.
Ties ties_of(const char* function, int64_t ties);

// Checks that the geometry has a non-zero plane where the policy needs it, and nowhere else.
void must_fit(const char* function, Ties ties, const Geometry& geometry);

}  // namespace hvd_sign
