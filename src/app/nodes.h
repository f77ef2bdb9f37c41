#pragma once
// One instance over several hosts: the flags of `baton serve` and `baton worker`, and how its hosts find each other.

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "device/gloo/meeting.h"
#include "device/node_group.h"

namespace baton::app {

struct NodeFlags {
  int nnodes = 1, node_rank = 0;
  std::string master_addr;  // HOST[:PORT]
  int master_fd = -1;       // on node 0: a socket that listens there already, from the supervisor
  double timeout_s = 300;   // for the hosts to find each other, and then to load

  void add_to(CLI::App& app);
  std::vector<std::string> args() const;  // without the socket
  bool several() const { return nnodes > 1; }
  bool leads() const { return node_rank == 0; }
  // Whether they fit together, and with an instance of `ranks` ranks.
  Status check(int ranks) const;
  struct Address {
    std::string host;
    int port = 0;
  };
  Result<Address> address() const;  // of node 0
};

// The hosts of an instance, connected; the meeting is for its start.
struct Nodes {
  std::unique_ptr<device::gloo::Meeting> meeting;
  std::shared_ptr<device::NodeGroup> group;
};
// Waits until all hosts are there. `terms`: (what, value) that must be the same on all of them.
Result<Nodes> meet_nodes(const NodeFlags& flags, std::vector<std::pair<std::string, std::string>> terms);
// Waits until all hosts have come as far as this one: "have loaded".
Status wait_for_nodes(Nodes& nodes, const NodeFlags& flags);

}  // namespace baton::app
