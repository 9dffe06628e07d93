// The wire of a transport that lives in Python: its thread fetches what is to be moved, moves it,
// and tells the end.
#pragma once

#include <mutex>
#include <set>
#include <string>

#include "wire.h"

namespace hvd_sign {

// One communication to be begun by whoever serves the relay.
struct Errand {
  enum class Kind { all_to_all, all_gather, deliver };
  uint64_t ticket;
  Kind kind;
  Channel channel;
  std::vector<Parcel> out, in;  // of collectives one each, of the whole buffer
};

class Relay : public Wire {
 public:
  explicit Relay(size_t voters) : voters_(voters) {}

  void all_to_all(Channel channel, uint8_t* send, uint8_t* receive, size_t bytes,
                  Pending& pending) override;
  void all_gather(Channel channel, uint8_t* send, uint8_t* receive, size_t bytes,
                  Pending& pending) override;
  void deliver(Channel channel, const std::vector<Parcel>& out, const std::vector<Parcel>& in,
               Pending& pending) override;
  bool ended(Pending& pending) override;

  // What has been asked for since the last call, in order.
  std::vector<Errand> take();
  void finish(uint64_t ticket);
  // All that is and will be asked for fails.
  void fail(std::string why);

 private:
  void add(Errand::Kind kind, Channel channel, std::vector<Parcel> out, std::vector<Parcel> in,
           Pending& pending);

  const size_t voters_;
  std::mutex mutex_;
  std::vector<Errand> asked_;
  std::set<uint64_t> ended_;
  uint64_t tickets_ = 0;
  std::string failure_;
};

}  // namespace hvd_sign
