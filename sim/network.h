#pragma once
// The simulated network: ordered byte streams between hosts, over paths with latency and bandwidth that may be cut, stalled or throttled.
// Bytes arrive in order and in other pieces than they were sent in.
//
// A path is one direction between two hosts; its streams share its bandwidth. A cut path breaks its streams and loses what is sent; a
// stalled one keeps everything that is sent until it is released. Both take effect amid any byte. A host that dies loses some of what it
// had sent.

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "base/status.h"
#include "net/link.h"
#include "sim/host.h"
#include "sim/trace.h"

namespace baton::sim {

struct NetworkModel {
  Duration latency = Duration(50);  // one way
  Duration jitter = Duration(20);   // at most this much more
  std::int64_t bytes_per_ms = 1'000'000;
  std::uint64_t split_one_in = 4;  // so often what is sent arrives in two pieces
  std::size_t buffer_bytes_max = 16u << 20;
  bool operator==(const NetworkModel&) const = default;
};

class Network {
 public:
  using OnLink = std::function<void(std::unique_ptr<net::Link>)>;

  Network(EventQueue& queue, Trace& trace, std::uint64_t seed, NetworkModel model);
  ~Network();

  // Hosts are known by their names. One must be removed before it is destroyed: its streams break. Where somebody else owns its listening
  // sockets (`keeps_sockets`), who connects to it meanwhile is answered by whoever bears its name next.
  void add(Host& host);
  void remove(const Host& host, bool keeps_sockets = false);
  void listen(Host& host, int port, OnLink on_link);
  // `done` runs on `from`: a link that is not started yet, kUnavailable if nobody listens or the path is cut, or kDeadlineExceeded.
  void connect(Host& from, const std::string& to, int port, Duration timeout, std::function<void(Result<std::unique_ptr<net::Link>>)> done);

  // --- faults, of one direction; each is undone as often as it was done before it is over
  void cut(const std::string& from, const std::string& to);
  void mend(const std::string& from, const std::string& to);
  void stall(const std::string& from, const std::string& to);
  void release(const std::string& from, const std::string& to);
  void throttle(const std::string& from, const std::string& to, std::int64_t bytes_per_ms);
  void unthrottle(const std::string& from, const std::string& to);

  std::size_t streams() const { return streams_.size(); }
  std::uint64_t bytes() const { return bytes_; }

 private:
  class End;
  struct Stream;
  struct Delivery {
    TimePoint due;
    std::uint64_t stream = 0;
    int to = 0;  // which end
    enum class Kind : std::uint8_t { kConnect, kAccepted, kRefused, kBytes, kClose } kind = Kind::kBytes;
    std::string bytes;
  };
  struct Path {
    std::deque<Delivery> deliveries;
    TimePoint free_at{}, last_due{};
    std::int64_t bytes_per_ms = 0;
    int cut = 0, stalled = 0, throttled = 0;
    std::optional<EventQueue::EventId> pump;  // of the next delivery
  };
  using PathKey = std::pair<std::string, std::string>;

  Path& path(const std::string& from, const std::string& to);
  void put(const PathKey& key, Delivery delivery);
  void pump(const PathKey& key);
  void schedule(const PathKey& key);
  void arrive(const PathKey& key, Delivery delivery);
  void arrive_in_part(const PathKey& key);
  void lose_tails(Path& path);
  void accept(Host& host, std::uint64_t stream);
  void break_end(std::uint64_t stream, int end, const std::string& why);
  void forget(std::uint64_t stream, int end);
  Status send(std::uint64_t stream, int from, std::string bytes);
  void close(std::uint64_t stream, int from);

  EventQueue& queue_;
  Trace& trace_;
  Rng rng_;
  const NetworkModel model_;
  std::map<std::string, Host*> hosts_;
  std::map<std::pair<std::string, int>, OnLink> listeners_;
  std::map<std::pair<std::string, int>, std::vector<std::uint64_t>> waiting_;  // connections at sockets whose owner has died
  std::map<PathKey, Path> paths_;
  std::map<std::uint64_t, std::unique_ptr<Stream>> streams_;
  std::uint64_t next_stream_ = 1, bytes_ = 0;
  const std::shared_ptr<Network*> self_;  // links may outlive the network
};

}  // namespace baton::sim
