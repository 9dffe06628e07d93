// Threads that share the work on one segment. Depends on neither Python nor MPI.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

namespace hvd_sign {

class ThreadPool {
 public:
  // How many threads work, the caller's included.
  explicit ThreadPool(size_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  size_t threads() const { return helpers_.size() + 1; }

  // Calls work(i) for each i below `count`, in any order and on any thread; returns when all have
  // returned. Waits for no thread that has not begun: one that gets no core costs nothing.
  template <typename Work>
  void run(size_t count, const Work& work) {
    run(count, [](const void* what, size_t i) { (*static_cast<const Work*>(what))(i); }, &work);
  }

 private:
  using Call = void (*)(const void*, size_t);

  void run(size_t count, Call call, const void* work);
  void work_through();
  void help();

  std::mutex mutex_;
  std::condition_variable begun_, ended_;
  Call call_ = nullptr;
  const void* work_ = nullptr;
  size_t count_ = 0, helping_ = 0;
  std::atomic<size_t> next_{0};
  bool open_ = false, stopping_ = false;
  std::vector<std::thread> helpers_;
};

}  // namespace hvd_sign
