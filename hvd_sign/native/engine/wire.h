// What moves a stream's messages between its voters, whatever lies beneath.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hvd_sign {

// Messages, one after another, on their way from this voter to another one, or the other way.
struct Parcel {
  size_t voter;
  uint8_t* data;
  size_t bytes;
};

// Communications that end together. Kept by its owner, so that it allocates nothing once it has
// been used.
struct Pending {
  std::vector<MPI_Request> requests;
  uint64_t ticket = 0;
};

// Communications of one channel are begun in the same order by all voters; those of the other one
// may come before or after them.
enum class Channel { ballots = 0, verdicts = 1 };

class Wire {
 public:
  virtual ~Wire() = default;

  // Sends the j-th of equal parts to voter j, and receives as many. `bytes` is one part's.
  virtual void all_to_all(Channel channel, uint8_t* send, uint8_t* receive, size_t bytes,
                          Pending& pending) = 0;
  // Sends `bytes` to everyone, and receives as many from each.
  virtual void all_gather(Channel channel, uint8_t* send, uint8_t* receive, size_t bytes,
                          Pending& pending) = 0;
  // Sends and receives parcels; those between two voters match in their order.
  virtual void deliver(Channel channel, const std::vector<Parcel>& out,
                       const std::vector<Parcel>& in, Pending& pending) = 0;
  // Whether it has ended; makes progress, never blocks. Throws std::runtime_error if it failed.
  virtual bool ended(Pending& pending) = 0;
};

}  // namespace hvd_sign
