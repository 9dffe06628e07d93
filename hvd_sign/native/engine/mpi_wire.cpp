#include "mpi_wire.h"

#include <stdexcept>
#include <string>

namespace hvd_sign {
namespace {

void must_succeed(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw std::runtime_error(std::string(call) + ": " + std::string(text, size_t(length)));
}

}  // namespace

void MpiWire::all_to_all(Channel channel, uint8_t* send, uint8_t* receive, size_t bytes,
                         Pending& pending) {
  pending.requests.resize(1);
  must_succeed(MPI_Ialltoall(send, int(bytes), MPI_BYTE, receive, int(bytes), MPI_BYTE,
                             comm(channel), pending.requests.data()),
               "MPI_Ialltoall");
}

void MpiWire::all_gather(Channel channel, uint8_t* send, uint8_t* receive, size_t bytes,
                         Pending& pending) {
  pending.requests.resize(1);
  must_succeed(MPI_Iallgather(send, int(bytes), MPI_BYTE, receive, int(bytes), MPI_BYTE,
                              comm(channel), pending.requests.data()),
               "MPI_Iallgather");
}

void MpiWire::deliver(Channel channel, const std::vector<Parcel>& out,
                      const std::vector<Parcel>& in, Pending& pending) {
  pending.requests.resize(out.size() + in.size());
  MPI_Request* request = pending.requests.data();
  for (const Parcel& parcel : in) {
    must_succeed(MPI_Irecv(parcel.data, int(parcel.bytes), MPI_BYTE, int(parcel.voter), 0,
                           comm(channel), request++),
                 "MPI_Irecv");
  }
  for (const Parcel& parcel : out) {
    must_succeed(MPI_Isend(parcel.data, int(parcel.bytes), MPI_BYTE, int(parcel.voter), 0,
                           comm(channel), request++),
                 "MPI_Isend");
  }
}

bool MpiWire::ended(Pending& pending) {
  const int count = int(pending.requests.size());
  int flag = 0;
  if (count == 1) {
    must_succeed(MPI_Test(pending.requests.data(), &flag, MPI_STATUS_IGNORE), "MPI_Test");
    return flag != 0;
  }
  // Open MPI's looks first and makes progress then: what that has ended is seen at the second look.
  for (int look = 0; look < 2 && !flag; ++look) {
    must_succeed(MPI_Testall(count, pending.requests.data(), &flag, MPI_STATUSES_IGNORE),
                 "MPI_Testall");
  }
  return flag != 0;
}

}  // namespace hvd_sign
