// The wire over MPI: non-blocking collectives and messages on communicators of our own.
#pragma once

#include "wire.h"

namespace hvd_sign {

class MpiWire : public Wire {
 public:
  // One communicator for each channel.
  MpiWire(MPI_Comm ballot_comm, MPI_Comm verdict_comm) : comms_{ballot_comm, verdict_comm} {}

  void all_to_all(Channel channel, uint8_t* send, uint8_t* receive, size_t bytes,
                  Pending& pending) override;
  void all_gather(Channel channel, uint8_t* send, uint8_t* receive, size_t bytes,
                  Pending& pending) override;
  void deliver(Channel channel, const std::vector<Parcel>& out, const std::vector<Parcel>& in,
               Pending& pending) override;
  bool ended(Pending& pending) override;

 private:
  MPI_Comm comm(Channel channel) const { return comms_[size_t(channel)]; }

  const MPI_Comm comms_[2];
};

}  // namespace hvd_sign
