#include "engine.h"

#include <sched.h>
#ifdef __linux__
#include <pthread.h>
#include <sys/prctl.h>
#endif

#include <algorithm>

#include "../exact_floats.h"

namespace hvd_sign {
namespace {

// When nothing moves: first give way to other ranks on this core, then sleep for longer and longer.
// The longest sleep is a fraction of the time in which a 1 Gbit/s link fills a socket's buffer.
constexpr int kYields = 20;
constexpr std::chrono::microseconds kShortest{10}, kLongest{100};

}  // namespace

std::shared_ptr<Stream> Engine::open(std::shared_ptr<Wire> wire) {
  auto stream = std::make_shared<Stream>(std::move(wire), pool_);
  const std::lock_guard<std::mutex> lock(mutex_);
  streams_.push_back(stream);
  return stream;
}

void Engine::close(const std::shared_ptr<Stream>& stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  streams_.erase(std::remove(streams_.begin(), streams_.end(), stream), streams_.end());
}

void Engine::submit(const std::shared_ptr<Stream>& stream, std::shared_ptr<Vote> vote) {
  const std::lock_guard<std::mutex> lock(mutex_);
  stream->submit(std::move(vote));
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  work_.notify_one();
}

void Engine::nap(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t seen = votes_ended_;
  ended_.wait_for(lock, std::chrono::duration<double>(seconds),
                  [&] { return votes_ended_ != seen; });
}

void Engine::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    work_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void Engine::run() {
  ExactFloats().enter();
#ifdef __linux__
  pthread_setname_np(pthread_self(), "hvd_sign");
  // Sleeps of microseconds would else be rounded up by 50.
  prctl(PR_SET_TIMERSLACK, 1000);
#endif
  std::vector<std::shared_ptr<Stream>> streams;
  std::vector<std::shared_ptr<Vote>> ended;
  ended.reserve(256);
  int idle = 0;
  auto sleep = kShortest;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      work_.wait(lock, [&] {
        return stopping_ || std::any_of(streams_.begin(), streams_.end(),
                                        [](const auto& stream) { return stream->busy(); });
      });
      if (stopping_) return;
      streams = streams_;
      for (auto& stream : streams) stream->accept();
    }
    bool moved = false;
    for (auto& stream : streams) moved = stream->advance(ended) || moved;
    if (!ended.empty()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto& vote : ended) vote->done.store(true, std::memory_order_release);
      votes_ended_ += ended.size();
      ended.clear();
      ended_.notify_all();
    }
    if (moved) {
      idle = 0;
      sleep = kShortest;
    } else if (++idle <= kYields) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(sleep);
      sleep = std::min(2 * sleep, kLongest);
    }
  }
}

}  // namespace hvd_sign
