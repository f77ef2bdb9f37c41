#pragma once
// The outgoing hand-off links of a prefill worker: one per decode worker, dialled when first needed, kept open, dialled again with growing
// pauses while it is in use. A peer is an address and an incarnation: a worker that was restarted on the same port is another one.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "net/event_loop.h"
#include "net/link.h"
#include "transfer/messages.h"

namespace baton::worker {

using PeerAddress = std::pair<std::string, int>;  // host, port

class PeerLinks {
 public:
  using Dialer = std::function<void(const PeerAddress& address, std::function<void(Result<std::unique_ptr<net::Link>>)> done)>;
  struct Handlers {
    std::function<void(const PeerAddress&, const transfer::HelloAck&)> on_up;
    // Also when it could not be opened; whoever waits for it need not wait longer.
    std::function<void(const PeerAddress&, Status)> on_down;
    std::function<void(const PeerAddress&, const transfer::Message&)> on_message;
  };
  struct Options {
    Duration greet_timeout = std::chrono::seconds(2);
    Duration pause_min = std::chrono::milliseconds(50), pause_max = std::chrono::seconds(5);
    Duration unused_max = std::chrono::minutes(2);  // a link that was lost and not wanted for this long is not dialled again
  };

  PeerLinks(net::Executor& loop, transfer::Hello hello, Dialer dialer, Handlers handlers, Options options);
  ~PeerLinks();
  PeerLinks(const PeerLinks&) = delete;
  PeerLinks& operator=(const PeerLinks&) = delete;

  // The peer's introduction if the link is up. Otherwise nullptr, the link is being opened, and on_up or on_down will tell.
  const transfer::HelloAck* want(const PeerAddress& address);
  void send(const PeerAddress& address, const transfer::Message& message);
  std::uint64_t refused() const { return refused_; }  // links that were closed for what came over them

 private:
  struct Peer {
    enum class State : std::uint8_t { kPausing, kDialling, kGreeting, kUp } state = State::kPausing;
    std::unique_ptr<net::Link> link;
    std::uint64_t generation = 0;  // of the dial; callbacks of earlier ones are void
    transfer::FrameReader reader;
    transfer::HelloAck ack;
    Duration pause{};
    TimePoint wanted;
    net::Executor::TimerId timer = 0;
    bool timer_set = false;
  };

  void dial(const PeerAddress& address, Peer& peer);
  void on_link(const PeerAddress& address, Peer& peer, std::unique_ptr<net::Link> link);
  void on_bytes(const PeerAddress& address, std::uint64_t generation, std::string_view bytes);
  void lost(const PeerAddress& address, Status why);
  void set_timer(const PeerAddress& address, Peer& peer, Duration delay, void (PeerLinks::*what)(const PeerAddress&));
  void greet_late(const PeerAddress& address) { lost(address, Status(Code::kUnavailable, "the decode worker does not answer")); }
  void redial(const PeerAddress& address);

  net::Executor& loop_;
  const transfer::Hello hello_;
  const Dialer dialer_;
  const Handlers handlers_;
  const Options options_;
  std::map<PeerAddress, Peer> peers_;
  std::uint64_t next_generation_ = 1, refused_ = 0;
  const std::shared_ptr<PeerLinks*> self_;
};

}  // namespace baton::worker
