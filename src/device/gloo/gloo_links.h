#pragma once
// Links among hosts over gloo's TCP transport: each message is written into a buffer that the receiver has registered, so it takes one way.

#include <memory>

#include "base/clock.h"
#include "device/gloo/meeting.h"
#include "device/node_links.h"

namespace baton::device::gloo {

struct LinksOptions {
  // How long a host waits for another's message. It covers how much later the other may come to a collective.
  Duration deadline = std::chrono::seconds(10);
  std::size_t message_bytes = (256 << 10) + 64;       // four times per other host, in memory
  Duration start_deadline = std::chrono::minutes(1);  // for all to have connected
};

// Connects the hosts of a meeting with each other, on the interface of their meeting.
Result<std::unique_ptr<NodeLinks>> connect(Meeting& meeting, const LinksOptions& options = {});

}  // namespace baton::device::gloo
