#include "sim/network.h"

#include <algorithm>

namespace baton::sim {
namespace {

constexpr std::size_t kHeaderBytes = 64;  // of a piece, on the wire

}  // namespace

// Two ends: 0 connected, 1 accepted.
struct Network::Stream {
  struct Side {
    std::string host;
    net::Link::Handlers handlers;
    bool started = false;
    bool open = true;                // the application holds its link
    bool ended = false;              // on_closed has been called or is about to be
    std::vector<std::string> early;  // arrived before start()
    std::string closed_early;        // closed before start(): why
    std::size_t in_flight = 0;       // bytes sent from here and not delivered
  };
  Side side[2];
  int port = 0;
  bool arrived = false, accepted = false;                             // at the other host's socket; by its process
  std::function<void(Result<std::unique_ptr<net::Link>>)> connected;  // until the answer
  net::Executor::TimerId timer = 0;
};

class Network::End final : public net::Link {
 public:
  End(std::weak_ptr<Network*> network, std::uint64_t stream, int end, std::string peer)
      : network_(std::move(network)), stream_(stream), end_(end), peer_(std::move(peer)) {}
  ~End() override { close(); }

  void start(Handlers handlers) override {
    const auto network = network_.lock();
    if (!network) return;
    const auto found = (*network)->streams_.find(stream_);
    if (found == (*network)->streams_.end()) return;
    auto& side = found->second->side[end_];
    side.handlers = std::move(handlers);
    side.started = true;
    // Never inside start().
    Host* host = (*network)->hosts_.at(side.host);
    host->post([weak = network_, stream = stream_, end = end_] {
      const auto self = weak.lock();
      if (!self) return;
      const auto s = (*self)->streams_.find(stream);
      if (s == (*self)->streams_.end()) return;
      for (const std::string& bytes : std::exchange(s->second->side[end].early, {})) {
        const auto again = (*self)->streams_.find(stream);
        if (again == (*self)->streams_.end() || !again->second->side[end].open) return;
        const auto on_bytes = again->second->side[end].handlers.on_bytes;
        on_bytes(bytes);
      }
      const auto left = (*self)->streams_.find(stream);
      if (left == (*self)->streams_.end() || left->second->side[end].closed_early.empty()) return;
      const std::string why = std::exchange(left->second->side[end].closed_early, {});
      left->second->side[end].ended = false;
      (*self)->break_end(stream, end, why);
    });
  }
  Status send(std::string bytes) override {
    const auto network = network_.lock();
    if (!network || closed_) return {Code::kUnavailable, "the link is closed"};
    return (*network)->send(stream_, end_, std::move(bytes));
  }
  void close() override {
    if (std::exchange(closed_, true)) return;
    if (const auto network = network_.lock()) (*network)->close(stream_, end_);
  }
  std::string peer() const override { return peer_; }

 private:
  const std::weak_ptr<Network*> network_;
  const std::uint64_t stream_;
  const int end_;
  const std::string peer_;
  bool closed_ = false;
};

Network::Network(EventQueue& queue, Trace& trace, std::uint64_t seed, NetworkModel model)
    : queue_(queue), trace_(trace), rng_(seed), model_(model), self_(std::make_shared<Network*>(this)) {}
Network::~Network() = default;

void Network::add(Host& host) { hosts_[host.name()] = &host; }

void Network::remove(const Host& host, bool keeps_sockets) {
  const std::string& name = host.name();
  if (!hosts_.contains(name)) return;
  for (auto it = listeners_.begin(); it != listeners_.end();) {
    if (it->first.first != name) {
      ++it;
      continue;
    }
    if (keeps_sockets) waiting_[it->first];
    it = listeners_.erase(it);
  }
  for (auto& [key, path] : paths_) {
    if (key.first == name) lose_tails(path);
  }
  // The kernel of the dead process's machine closes its sockets.
  std::vector<std::pair<std::uint64_t, int>> ends;
  for (const auto& [id, stream] : streams_) {
    const auto socket = waiting_.find({name, stream->port});
    const bool never_its = stream->side[1].host == name && !stream->accepted && socket != waiting_.end();
    if (never_its && stream->arrived) socket->second.push_back(id);
    for (int end : {0, 1}) {
      if (stream->side[end].host == name && !(end == 1 && never_its)) ends.emplace_back(id, end);
    }
  }
  for (const auto& [id, end] : ends) close(id, end);
  hosts_.erase(name);
}

void Network::listen(Host& host, int port, OnLink on_link) {
  const auto key = std::pair(host.name(), port);
  listeners_[key] = std::move(on_link);
  const auto waiting = waiting_.extract(key);
  if (waiting.empty()) return;
  for (const std::uint64_t id : waiting.mapped()) accept(host, id);
}

void Network::accept(Host& host, std::uint64_t id) {
  host.post([this, id, to = host.name()] {
    const auto found = streams_.find(id);
    if (found == streams_.end()) return;
    const auto listener = listeners_.find({to, found->second->port});
    if (listener == listeners_.end() || !found->second->side[1].open) return close(id, 1);
    found->second->accepted = true;
    listener->second(std::make_unique<End>(self_, id, 1, found->second->side[0].host));
  });
}

void Network::connect(Host& from, const std::string& to, int port, Duration timeout,
                      std::function<void(Result<std::unique_ptr<net::Link>>)> done) {
  const std::uint64_t id = next_stream_++;
  auto stream = std::make_unique<Stream>();
  stream->side[0].host = from.name();
  stream->side[1].host = to;
  stream->port = port;
  stream->connected = std::move(done);
  const std::string address = to + ":" + std::to_string(port);
  stream->timer = from.after(timeout, [this, id, address] {
    const auto found = streams_.find(id);
    if (found == streams_.end() || !found->second->connected) return;
    const auto connected = std::exchange(found->second->connected, nullptr);
    close(id, 0);
    connected(Status(Code::kDeadlineExceeded, "no connection to " + address));
  });
  streams_.emplace(id, std::move(stream));
  put({from.name(), to}, {{}, id, 1, Delivery::Kind::kConnect, {}});
}

// ---------------------------------------------------------------------------------------------------------------- paths

Network::Path& Network::path(const std::string& from, const std::string& to) {
  const auto [it, inserted] = paths_.try_emplace({from, to});
  if (inserted) it->second.bytes_per_ms = model_.bytes_per_ms;
  return it->second;
}

void Network::put(const PathKey& key, Delivery delivery) {
  Path& p = path(key.first, key.second);
  if (p.cut > 0) return;  // lost; the streams' ends have been told, a new one runs into its time-out
  const auto size = static_cast<std::int64_t>(delivery.bytes.size() + kHeaderBytes);
  p.free_at = std::max(p.free_at, queue_.now()) + Duration(size * 1000 / p.bytes_per_ms);
  const Duration jitter(
      model_.jitter.count() == 0 ? 0 : static_cast<std::int64_t>(rng_.below(static_cast<std::uint64_t>(model_.jitter.count()))));
  delivery.due = std::max(p.last_due, p.free_at + model_.latency + jitter);
  p.last_due = delivery.due;
  bytes_ += delivery.bytes.size();
  p.deliveries.push_back(std::move(delivery));
  schedule(key);
}

void Network::schedule(const PathKey& key) {
  Path& p = paths_.at(key);
  if (p.pump || p.stalled > 0 || p.deliveries.empty()) return;
  p.pump = queue_.at(p.deliveries.front().due, [this, key] { pump(key); });
}

void Network::pump(const PathKey& key) {
  Path& p = paths_.at(key);
  p.pump.reset();
  if (p.stalled > 0 || p.deliveries.empty()) return;
  if (p.deliveries.front().due > queue_.now()) return schedule(key);
  Delivery delivery = std::move(p.deliveries.front());
  p.deliveries.pop_front();
  arrive(key, std::move(delivery));
  schedule(key);
}

void Network::arrive(const PathKey& key, Delivery d) {
  const auto host = hosts_.find(key.second);
  const auto found = streams_.find(d.stream);
  if (found == streams_.end()) return;
  Stream& stream = *found->second;
  const PathKey back{key.second, key.first};
  trace_(queue_.now(), key.second, "net", static_cast<int>(d.kind), d.stream, d.bytes.size(), hash_bytes(d.bytes));
  switch (d.kind) {
    case Delivery::Kind::kConnect: {
      const auto kept = waiting_.find({key.second, stream.port});
      const bool listens = host != hosts_.end() && listeners_.contains({key.second, stream.port});
      if (!listens && kept == waiting_.end()) {
        stream.side[1].open = false;
        return put(back, {{}, d.stream, 0, Delivery::Kind::kRefused, {}});
      }
      stream.arrived = true;
      put(back, {{}, d.stream, 0, Delivery::Kind::kAccepted, {}});
      if (listens) return accept(*host->second, d.stream);
      kept->second.push_back(d.stream);
      return;
    }
    case Delivery::Kind::kAccepted:
    case Delivery::Kind::kRefused: {
      if (host == hosts_.end()) return;
      host->second->post([this, id = d.stream, accepted = d.kind == Delivery::Kind::kAccepted, peer = key.first] {
        const auto s = streams_.find(id);
        if (s == streams_.end() || !s->second->connected) return;
        const auto connected = std::exchange(s->second->connected, nullptr);
        hosts_.at(s->second->side[0].host)->cancel(s->second->timer);
        const std::string address = peer + ":" + std::to_string(s->second->port);
        if (accepted) return connected(std::unique_ptr<net::Link>(std::make_unique<End>(self_, id, 0, address)));
        forget(id, 0);
        connected(Status(Code::kUnavailable, "nobody listens at " + address));
      });
      return;
    }
    case Delivery::Kind::kBytes: {
      if (!stream.side[d.to].open) return;
      if (host == hosts_.end()) {  // it waits at a socket whose owner is dead
        stream.side[1 - d.to].in_flight -= d.bytes.size();
        stream.side[d.to].early.push_back(std::move(d.bytes));
        return;
      }
      // A frozen process reads later, which its peer's buffer feels.
      host->second->post([this, id = d.stream, to = d.to, bytes = std::move(d.bytes)]() mutable {
        const auto s = streams_.find(id);
        if (s == streams_.end()) return;
        s->second->side[1 - to].in_flight -= bytes.size();
        if (!s->second->side[to].open || s->second->side[to].ended) return;
        if (!s->second->side[to].started || !s->second->side[to].early.empty()) {
          s->second->side[to].early.push_back(std::move(bytes));
          return;
        }
        const auto on_bytes = s->second->side[to].handlers.on_bytes;
        on_bytes(bytes);
      });
      return;
    }
    case Delivery::Kind::kClose: {
      if (host == hosts_.end())
        return stream.arrived ? break_end(d.stream, d.to, "the peer closed the connection") : forget(d.stream, d.to);
      host->second->post([this, id = d.stream, to = d.to] { break_end(id, to, "the peer closed the connection"); });
      return;
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------- ends

Status Network::send(std::uint64_t id, int from, std::string bytes) {
  const auto found = streams_.find(id);
  if (found == streams_.end() || found->second->side[from].ended) return {Code::kUnavailable, "the connection is closed"};
  Stream& stream = *found->second;
  if (stream.side[from].in_flight + bytes.size() > model_.buffer_bytes_max) return {Code::kResourceExhausted, "the peer reads too slowly"};
  stream.side[from].in_flight += bytes.size();
  const PathKey key{stream.side[from].host, stream.side[1 - from].host};
  int pieces = model_.split_one_in > 0 && rng_.below(model_.split_one_in) == 0 ? 2 : 1;
  if (path(key.first, key.second).throttled > 0) pieces += 2;
  for (; pieces > 1 && bytes.size() > 1; --pieces) {
    const std::size_t at = 1 + rng_.below(bytes.size() - 1);
    put(key, {{}, id, 1 - from, Delivery::Kind::kBytes, bytes.substr(0, at)});
    bytes.erase(0, at);
  }
  put(key, {{}, id, 1 - from, Delivery::Kind::kBytes, std::move(bytes)});
  return {};
}

void Network::close(std::uint64_t id, int from) {
  const auto found = streams_.find(id);
  if (found == streams_.end() || !found->second->side[from].open) return;
  Stream& stream = *found->second;
  const bool told = stream.side[from].ended;
  const PathKey key{stream.side[from].host, stream.side[1 - from].host};
  if (stream.connected && from == 0) stream.connected = nullptr;
  forget(id, from);
  if (!told && streams_.contains(id)) put(key, {{}, id, 1 - from, Delivery::Kind::kClose, {}});
}

// The application at this end holds it no more; when neither does, the stream is gone.
void Network::forget(std::uint64_t id, int end) {
  const auto found = streams_.find(id);
  if (found == streams_.end()) return;
  found->second->side[end].open = false;
  found->second->side[end].handlers = {};
  if (found->second->side[0].open || found->second->side[1].open) return;
  const auto dropped = streams_.extract(found);
  const auto host = hosts_.find(dropped.mapped()->side[0].host);
  if (host != hosts_.end()) host->second->cancel(dropped.mapped()->timer);
}

void Network::break_end(std::uint64_t id, int end, const std::string& why) {
  const auto found = streams_.find(id);
  if (found == streams_.end()) return;
  Stream::Side& side = found->second->side[end];
  if (!side.open || std::exchange(side.ended, true)) return;
  if (!side.started) {
    side.closed_early = why;
    // Closed before it was ever accepted.
    if (end == 0 && found->second->connected) {
      const auto connected = std::exchange(found->second->connected, nullptr);
      forget(id, end);
      connected(Status(Code::kUnavailable, why));
    }
    return;
  }
  const auto on_closed = side.handlers.on_closed;
  if (on_closed) on_closed(Status(Code::kUnavailable, why));
}

// ---------------------------------------------------------------------------------------------------------------- faults

// What is on its way at this moment is cut off amid its bytes.
void Network::arrive_in_part(const PathKey& key) {
  Path& p = path(key.first, key.second);
  if (p.deliveries.empty() || p.deliveries.front().bytes.empty()) return;
  Delivery& front = p.deliveries.front();
  const std::size_t size = rng_.below(front.bytes.size());
  Delivery part{front.due, front.stream, front.to, Delivery::Kind::kBytes, front.bytes.substr(0, size)};
  front.bytes.erase(0, size);
  arrive(key, std::move(part));
}

// Some of what a dead host had sent is lost: of every other stream, everything from some byte on.
void Network::lose_tails(Path& p) {
  std::map<std::uint64_t, std::size_t> pieces;
  for (const Delivery& d : p.deliveries) pieces[d.stream] += d.kind == Delivery::Kind::kBytes ? 1 : 0;
  for (const auto& [stream, count] : pieces) {
    if (count == 0 || rng_.below(2) == 0) continue;
    std::size_t whole = rng_.below(count);
    bool lost = false;
    std::erase_if(p.deliveries, [&, stream = stream](Delivery& d) {
      if (d.stream != stream || d.kind != Delivery::Kind::kBytes || lost) return d.stream == stream && lost;
      if (whole > 0) return --whole, false;
      lost = true;
      d.bytes.resize(rng_.below(d.bytes.size() + 1));
      return false;
    });
  }
}

void Network::cut(const std::string& from, const std::string& to) {
  Path& p = path(from, to);
  trace_(queue_.now(), from, "cut", hash_bytes(to));
  if (p.cut++ > 0) return;
  if (p.stalled == 0) arrive_in_part({from, to});
  p.deliveries.clear();
  std::vector<std::uint64_t> broken;
  for (const auto& [id, stream] : streams_) {
    const auto& side = stream->side;
    if ((side[0].host == from && side[1].host == to) || (side[1].host == from && side[0].host == to)) broken.push_back(id);
  }
  for (const std::uint64_t id : broken) {
    for (int end : {0, 1}) {
      const auto s = streams_.find(id);
      if (s == streams_.end()) break;
      const auto host = hosts_.find(s->second->side[end].host);
      if (host == hosts_.end()) {
        forget(id, end);
        continue;
      }
      host->second->post([this, id, end] { break_end(id, end, "the connection was cut"); });
    }
  }
}

void Network::mend(const std::string& from, const std::string& to) {
  --path(from, to).cut;
  trace_(queue_.now(), from, "mend", hash_bytes(to));
}

void Network::stall(const std::string& from, const std::string& to) {
  trace_(queue_.now(), from, "stall", hash_bytes(to));
  if (path(from, to).stalled++ == 0) arrive_in_part({from, to});
}

void Network::release(const std::string& from, const std::string& to) {
  --path(from, to).stalled;
  trace_(queue_.now(), from, "release", hash_bytes(to));
  schedule({from, to});
}

void Network::throttle(const std::string& from, const std::string& to, std::int64_t bytes_per_ms) {
  Path& p = path(from, to);
  ++p.throttled;
  p.bytes_per_ms = bytes_per_ms;
  trace_(queue_.now(), from, "throttle", hash_bytes(to), bytes_per_ms);
}

// What waits to be sent goes at the old speed.
void Network::unthrottle(const std::string& from, const std::string& to) {
  Path& p = path(from, to);
  trace_(queue_.now(), from, "unthrottle", hash_bytes(to));
  if (--p.throttled > 0) return;
  p.bytes_per_ms = model_.bytes_per_ms;
  p.free_at = p.last_due = queue_.now();
  for (Delivery& d : p.deliveries) {
    p.free_at += Duration(static_cast<std::int64_t>(d.bytes.size() + kHeaderBytes) * 1000 / p.bytes_per_ms);
    d.due = p.last_due = std::max(p.last_due, std::min(d.due, p.free_at + model_.latency));
  }
  if (p.pump) queue_.cancel(*std::exchange(p.pump, std::nullopt));
  schedule({from, to});
}

}  // namespace baton::sim
