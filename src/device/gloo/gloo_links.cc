#include "device/gloo/gloo_links.h"

#include <gloo/transport/address.h>
#include <gloo/transport/buffer.h>
#include <gloo/transport/context.h>
#include <gloo/transport/device.h>
#include <gloo/transport/tcp/device.h>

#include <array>
#include <csignal>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "base/spin.h"

namespace baton::device::gloo {
namespace {

namespace transport = ::gloo::transport;

// Runs what may throw, for gloo reports by exceptions.
template <class F>
Status guard(F&& fn) {
  try {
    fn();
    return {};
  } catch (const std::exception& e) {
    return {Code::kUnavailable, e.what()};
  }
}

struct alignas(64) Line {
  std::byte bytes[64];
};

class Links final : public NodeLinks {
 public:
  Links(int node, int nodes, const LinksOptions& options) : node_(node), options_(options), peers_(static_cast<std::size_t>(nodes)) {}
  ~Links() override {
    close();
    for (Peer& peer : peers_)  // before their pairs
      for (Slot& slot : peer.slots) slot.in.reset(), slot.out.reset();
  }

  Status connect(Meeting& meeting) {
    std::signal(SIGPIPE, SIG_IGN);                      // gloo writes to links that may be cut, and takes the error
    std::vector<std::string> addresses(peers_.size());  // of this host's end of each pair
    BATON_RETURN_IF_ERROR(guard([&] {
                            transport::tcp::attr attributes;
                            attributes.hostname = meeting.address();
                            device_ = transport::tcp::CreateDevice(attributes);
                            context_ = device_->createContext(node_, size());
                            context_->setTimeout(std::chrono::milliseconds(options_.deadline.count() / 1000));
                            for (int peer = 0; peer < size(); ++peer) {
                              if (peer == node_) continue;
                              const std::vector<char> address = context_->createPair(peer)->address().bytes();
                              addresses[static_cast<std::size_t>(peer)].assign(address.begin(), address.end());
                            }
                          }).with_context("cannot open links to other nodes at " + meeting.address()));
    std::string own;
    const std::size_t width = addresses[node_ == 0 ? 1 : 0].size();
    addresses[static_cast<std::size_t>(node_)].resize(width);
    for (const std::string& address : addresses) own += address;
    BATON_ASSIGN_OR_RETURN(const auto all, meeting.exchange(own, options_.start_deadline));
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == node_) continue;
      const std::string& theirs = all[static_cast<std::size_t>(peer)];
      if (theirs.size() != own.size()) return {Code::kDataLoss, name(peer) + " sent addresses that are none of ours"};
      const char* address = theirs.data() + static_cast<std::size_t>(node_) * width;
      BATON_RETURN_IF_ERROR(
          guard([&] { open(peer, std::vector<char>(address, address + width)); }).with_context("cannot connect to " + name(peer)));
    }
    return meeting.exchange("connected", options_.start_deadline).status();
  }

  int node() const override { return node_; }
  int size() const override { return static_cast<int>(peers_.size()); }
  std::size_t message_bytes() const override { return options_.message_bytes; }

  Result<std::span<std::byte>> outgoing(int node) override {
    Slot& slot = next(node, peers_[static_cast<std::size_t>(node)].sent);
    if (slot.leaving) BATON_RETURN_IF_ERROR(timed(node, [&] { slot.out->waitSend(); }));
    slot.leaving = false;
    return std::span(slot.outgoing.data()->bytes, options_.message_bytes);
  }

  Status send(int node, std::size_t bytes) override {
    BATON_CHECK(bytes <= options_.message_bytes);
    Slot& slot = next(node, peers_[static_cast<std::size_t>(node)].sent++);
    slot.leaving = true;
    return timed(node, [&] { slot.out->send(0, bytes, 0); });
  }

  Result<std::span<const std::byte>> receive(int node) override {
    Slot& slot = next(node, peers_[static_cast<std::size_t>(node)].received++);
    BATON_RETURN_IF_ERROR(timed(node, [&] { slot.in->waitRecv(); }));
    return std::span<const std::byte>(slot.incoming.data()->bytes, options_.message_bytes);
  }

  void close() override {
    for (int peer = 0; peer < size() && context_; ++peer)
      if (peer != node_ && context_->getPair(peer)) (void)guard([&] { context_->getPair(peer)->close(); });
  }

 private:
  struct Slot {
    std::vector<Line> outgoing, incoming;
    std::unique_ptr<transport::Buffer> out, in;
    bool leaving = false;  // it may still be read by gloo
  };
  struct Peer {
    std::uint64_t sent = 0, received = 0;
    std::array<Slot, 2> slots;
  };

  static std::string name(int node) { return "node " + std::to_string(node); }
  Slot& next(int node, std::uint64_t count) { return peers_[static_cast<std::size_t>(node)].slots[count % 2]; }

  void open(int node, const std::vector<char>& address) {
    auto& pair = context_->getPair(node);
    pair->connect(address);
    for (std::size_t s = 0; s < 2; ++s) {
      Slot& slot = peers_[static_cast<std::size_t>(node)].slots[s];
      slot.outgoing.resize((options_.message_bytes + sizeof(Line) - 1) / sizeof(Line));
      slot.incoming.resize(slot.outgoing.size());
      slot.out = pair->createSendBuffer(static_cast<int>(s), slot.outgoing.data(), options_.message_bytes);
      slot.in = pair->createRecvBuffer(static_cast<int>(s), slot.incoming.data(), options_.message_bytes);
    }
  }

  // gloo's message tells a deadline from a lost connection by its words only.
  template <class F>
  Status timed(int node, F&& fn) {
    const std::int64_t begin = now_ns();
    const Status status = guard(fn);
    if (status.ok()) return status;
    if (now_ns() - begin >= options_.deadline.count() * 1000)
      return {Code::kDeadlineExceeded,
              name(node) + " did not come to a collective within " + std::to_string(options_.deadline.count() / 1000) + " ms"};
    return {Code::kUnavailable, name(node) + " is gone (" + status.message() + "); its log says why"};
  }

  const int node_;
  const LinksOptions options_;
  std::shared_ptr<transport::Device> device_;
  std::shared_ptr<transport::Context> context_;
  std::vector<Peer> peers_;  // by node
};

}  // namespace

Result<std::unique_ptr<NodeLinks>> connect(Meeting& meeting, const LinksOptions& options) {
  auto links = std::make_unique<Links>(meeting.node(), meeting.nodes(), options);
  BATON_RETURN_IF_ERROR(links->connect(meeting));
  return std::unique_ptr<NodeLinks>(std::move(links));
}

}  // namespace baton::device::gloo
