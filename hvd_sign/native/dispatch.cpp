// Which implementation runs.
#include <atomic>
#include <stdexcept>

#include "implementation.h"

namespace hvd_sign {
namespace {

const Implementation* const kAll[] = {// best first
#if defined(__x86_64__)
                                      &kAvx512, &kAvx2,
#elif defined(__aarch64__)
                                      &kNeon,
#endif
                                      &kScalar};

const Implementation* best() {
  for (const Implementation* one : kAll) {
    if (one->usable()) return one;
  }
  return &kScalar;
}

std::atomic<const Implementation*>& current() {
  static std::atomic<const Implementation*> implementation{best()};
  return implementation;
}

}  // namespace

const Implementation& active_implementation() { return *current().load(); }

std::vector<std::string> implementations() {
  std::vector<std::string> names;
  for (const Implementation* one : kAll) {
    if (one->usable()) names.push_back(one->name);
  }
  return names;
}

std::string implementation() { return active_implementation().name; }

void set_implementation(const std::string& name) {
  std::string usable;
  for (const Implementation* one : kAll) {
    if (!one->usable()) continue;
    if (name == one->name) {
      current().store(one);
      return;
    }
    usable += usable.empty() ? "" : ", ";
    usable += one->name;
  }
  throw std::invalid_argument("set_implementation: name: expected one that this machine can run (" +
                              usable + "), got '" + name + "'");
}

}  // namespace hvd_sign
