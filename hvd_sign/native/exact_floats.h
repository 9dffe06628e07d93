// Floating point by the book on this thread: to nearest, and subnormals are numbers. A thread
// begins with its creator's mode, and TensorFlow takes subnormals for zeros in all of its
// operations.
#pragma once

#include <cfenv>

namespace hvd_sign {

class ExactFloats {
 public:
  void enter() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  void leave() const { std::fesetenv(&before_); }

 private:
  std::fenv_t before_{};
};

}  // namespace hvd_sign
