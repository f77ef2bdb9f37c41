#pragma once
// Hosts of an instance as threads of a test, over loopback.

#include <gtest/gtest.h>

#include <functional>
#include <latch>
#include <memory>
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

// Links that stay until every host has done with its own: one that leaves right after a collective may cut off what another has still to
// read of it.
class LastingLinks final : public NodeLinks {
 public:
  explicit LastingLinks(std::shared_ptr<NodeLinks> inner) : inner_(std::move(inner)) {}
  int node() const override { return inner_->node(); }
  int size() const override { return inner_->size(); }
  std::size_t message_bytes() const override { return inner_->message_bytes(); }
  Result<std::span<std::byte>> outgoing(int node) override { return inner_->outgoing(node); }
  Status send(int node, std::size_t bytes) override { return inner_->send(node, bytes); }
  Result<std::span<const std::byte>> receive(int node) override { return inner_->receive(node); }
  void close() override { inner_->close(); }

 private:
  const std::shared_ptr<NodeLinks> inner_;
};

// Runs `body` as each host, with its links.
inline void with_links(int nodes, const LinksOptions& options, const std::function<void(std::unique_ptr<NodeLinks>)>& body) {
  const Place place;
  std::latch done(nodes);
  as_nodes(nodes, [&](int node) {
    const auto meeting = Meeting::hold(place.options(node, nodes));
    auto links = meeting.ok() ? connect(**meeting, options) : Result<std::unique_ptr<NodeLinks>>(meeting.status());
    EXPECT_TRUE(links.ok()) << links.status().to_string();
    if (!links.ok()) return done.count_down();
    const std::shared_ptr<NodeLinks> kept = std::move(*links);
    body(std::make_unique<LastingLinks>(kept));
    done.arrive_and_wait();
  });
}

}  // namespace baton::device::gloo::testing
