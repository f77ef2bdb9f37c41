#pragma once
// How the hosts of one instance find each other at the start: all dial node 0, which looks whether they fit together, and which then passes
// what each has to say to all. Plain TCP and blocking calls with deadlines: for the start of a process, not for its work.
//
// Nobody is asked who he is: whoever reaches the port can join. Use a network that only the cluster reaches.

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace baton::device::gloo {

struct MeetingOptions {
  int nodes = 2, node = 0;
  std::string host;  // of node 0: an address of the interface that the hosts are to use
  int port = 0;
  int listen_fd = -1;                           // on node 0: an inherited socket that listens there already, which stays the caller's
  Duration deadline = std::chrono::minutes(5);  // for all to be there
  // What must be the same on all hosts, and on none but them is different: (what, value), in one order.
  std::vector<std::pair<std::string, std::string>> terms;
};

class Meeting {
 public:
  // Returns when all have come. kInvalidArgument: they do not fit together, which names the term and both values; all hosts get it.
  // kUnavailable: the port is taken, or another host has this node's number. kDeadlineExceeded names who is missing.
  static Result<std::unique_ptr<Meeting>> hold(const MeetingOptions& options);
  virtual ~Meeting() = default;

  virtual int node() const = 0;
  virtual int nodes() const = 0;
  // This host's address on the way to the others.
  virtual const std::string& address() const = 0;
  // What every host says, by node. Returns when all have called it as often; kUnavailable names a host that has left.
  virtual Result<std::vector<std::string>> exchange(std::string_view own, Duration deadline) = 0;
};

}  // namespace baton::device::gloo
