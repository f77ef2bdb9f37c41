#pragma once
// Messages among the hosts of one instance: the seam between collectives, which know no network, and a network, which knows no sums.
//
// Used by one thread a host. Two hosts send each other one message in turn: each sends its own, then receives the other's, and only then
// sends again. So a host is never more than one message ahead of another, and two buffers a direction do, without acknowledgements.

#include <cstddef>
#include <span>

#include "base/status.h"

namespace baton::device {

class NodeLinks {
 public:
  virtual ~NodeLinks() = default;
  virtual int node() const = 0;                   // this host's number,
  virtual int size() const = 0;                   // of so many
  virtual std::size_t message_bytes() const = 0;  // at most
  // Where the next message to `node` is to be written, aligned to 64 bytes.
  virtual Result<std::span<std::byte>> outgoing(int node) = 0;
  virtual Status send(int node, std::size_t bytes) = 0;
  // The next message of `node`: message_bytes() of memory that begin with it; it tells its own length. Valid until the second receive from
  // there after this one. kDeadlineExceeded, or kUnavailable if the host is gone; both name it, and the link is then dead.
  virtual Result<std::span<const std::byte>> receive(int node) = 0;
  // The other hosts find the links cut, at once.
  virtual void close() = 0;
};

}  // namespace baton::device
