#include "thread_pool.h"

#include "../exact_floats.h"

namespace hvd_sign {

ThreadPool::ThreadPool(size_t threads) {
  for (size_t t = 1; t < threads; ++t) helpers_.emplace_back([this] { help(); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    begun_.notify_all();
  }
  for (std::thread& helper : helpers_) helper.join();
}

void ThreadPool::run(size_t count, Call call, const void* work) {
  if (helpers_.empty() || count < 2) {
    for (size_t i = 0; i < count; ++i) call(work, i);
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    call_ = call;
    work_ = work;
    count_ = count;
    next_ = 0;
    open_ = true;
    begun_.notify_all();
  }
  work_through();
  std::unique_lock<std::mutex> lock(mutex_);
  open_ = false;
  ended_.wait(lock, [&] { return helping_ == 0; });
}

void ThreadPool::work_through() {
  for (size_t i = next_++; i < count_; i = next_++) call_(work_, i);
}

void ThreadPool::help() {
  ExactFloats().enter();
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    begun_.wait(lock, [&] { return stopping_ || (open_ && next_ < count_); });
    if (stopping_) return;
    ++helping_;
    lock.unlock();
    work_through();
    lock.lock();
    if (--helping_ == 0) ended_.notify_one();
  }
}

}  // namespace hvd_sign
