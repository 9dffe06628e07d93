#include "relay.h"

#include <stdexcept>
#include <utility>

namespace hvd_sign {

void Relay::add(Errand::Kind kind, Channel channel, std::vector<Parcel> out, std::vector<Parcel> in,
                Pending& pending) {
  const std::lock_guard<std::mutex> lock(mutex_);
  pending.ticket = ++tickets_;
  asked_.push_back({pending.ticket, kind, channel, std::move(out), std::move(in)});
}

void Relay::all_to_all(Channel channel, uint8_t* send, uint8_t* receive, size_t bytes,
                       Pending& pending) {
  const size_t all = bytes * voters_;
  add(Errand::Kind::all_to_all, channel, {{0, send, all}}, {{0, receive, all}}, pending);
}

void Relay::all_gather(Channel channel, uint8_t* send, uint8_t* receive, size_t bytes,
                       Pending& pending) {
  add(Errand::Kind::all_gather, channel, {{0, send, bytes}}, {{0, receive, bytes * voters_}},
      pending);
}

void Relay::deliver(Channel channel, const std::vector<Parcel>& out, const std::vector<Parcel>& in,
                    Pending& pending) {
  add(Errand::Kind::deliver, channel, out, in, pending);
}

bool Relay::ended(Pending& pending) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failure_.empty()) throw std::runtime_error(failure_);
  return ended_.erase(pending.ticket) != 0;
}

std::vector<Errand> Relay::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(asked_, {});
}

void Relay::finish(uint64_t ticket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ended_.insert(ticket);
}

void Relay::fail(std::string why) {
  const std::lock_guard<std::mutex> lock(mutex_);
  failure_ = std::move(why);
}

}  // namespace hvd_sign
