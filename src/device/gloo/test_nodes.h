#pragma once
// Hosts of an instance as threads of a test, over loopback.

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "device/gloo/gloo_links.h"
#include "device/gloo/meeting.h"
#include "device/gloo/tcp.h"

namespace baton::device::gloo::testing {

// A free port of loopback, and meetings on it.
class Place {
 public:
  MeetingOptions options(int node, int nodes) const {
    MeetingOptions o;
    o.nodes = nodes, o.node = node;
    o.host = "127.0.0.1", o.port = listener_.port();
    if (node == 0) o.listen_fd = listener_.fd();
    return o;
  }

 private:
  static Socket listen() {
    auto socket = Socket::listen("127.0.0.1", 0);
    BATON_CHECK_MSG(socket.ok(), socket.status().to_string());
    return std::move(*socket);
  }
  const Socket listener_ = listen();
};

inline void as_nodes(int nodes, const std::function<void(int node)>& body) {
  std::vector<std::jthread> threads;
  for (int node = 0; node < nodes; ++node) threads.emplace_back([&body, node] { body(node); });
}

// Runs `body` as each host, with its links.
inline void with_links(int nodes, const LinksOptions& options, const std::function<void(std::unique_ptr<NodeLinks>)>& body) {
  const Place place;
  as_nodes(nodes, [&](int node) {
    const auto meeting = Meeting::hold(place.options(node, nodes));
    ASSERT_TRUE(meeting.ok()) << meeting.status().to_string();
    auto links = connect(**meeting, options);
    ASSERT_TRUE(links.ok()) << links.status().to_string();
    body(std::move(*links));
  });
}

}  // namespace baton::device::gloo::testing
