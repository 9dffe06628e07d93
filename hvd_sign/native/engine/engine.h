// One progress thread a process, which moves every stream's votes on. Does not depend on Python.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "stream.h"

namespace hvd_sign {

class Engine {
 public:
  // How many threads pack and apply, the progress thread included.
  explicit Engine(size_t threads = 1) : pool_(threads) {}
  ~Engine() { stop(); }

  std::shared_ptr<Stream> open(std::shared_ptr<Wire> wire);
  void close(const std::shared_ptr<Stream>& stream);

  void submit(const std::shared_ptr<Stream>& stream, std::shared_ptr<Vote> vote);

  // Waits until a vote, any vote, ends, or the time is over.
  void nap(double seconds);

  // Ends the thread; what is under way stays where it is.
  void stop();

 private:
  void run();

  ThreadPool pool_;
  std::mutex mutex_;
  std::condition_variable work_, ended_;
  std::vector<std::shared_ptr<Stream>> streams_;
  std::thread thread_;
  uint64_t votes_ended_ = 0;
  bool stopping_ = false;
};

}  // namespace hvd_sign
