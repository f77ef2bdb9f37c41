#include "worker/peer_links.h"

#include <algorithm>

#include "base/log.h"

namespace baton::worker {

PeerLinks::PeerLinks(net::Executor& loop, transfer::Hello hello, Dialer dialer, Handlers handlers, Options options)
    : loop_(loop),
      hello_(std::move(hello)),
      dialer_(std::move(dialer)),
      handlers_(std::move(handlers)),
      options_(options),
      self_(std::make_shared<PeerLinks*>(this)) {}

PeerLinks::~PeerLinks() {
  for (auto& [address, peer] : peers_) {
    if (peer.timer_set) loop_.cancel(peer.timer);
  }
}

const transfer::HelloAck* PeerLinks::want(const PeerAddress& address) {
  auto [it, inserted] = peers_.try_emplace(address);
  Peer& peer = it->second;
  peer.wanted = loop_.clock().now();
  if (peer.state == Peer::State::kUp) return &peer.ack;
  // A request does not sit out a long pause; but a peer that refuses is not dialled more often than the shortest one.
  const bool first = inserted || !peer.timer_set;
  if (peer.state == Peer::State::kPausing && first)
    dial(address, peer);
  else if (peer.state == Peer::State::kPausing)
    set_timer(address, peer, options_.pause_min, &PeerLinks::redial);
  return nullptr;
}

void PeerLinks::send(const PeerAddress& address, const transfer::Message& message) {
  auto it = peers_.find(address);
  if (it == peers_.end() || it->second.state != Peer::State::kUp) return;
  // on_down comes on a later turn: the caller is in the middle of its own actions.
  if (Status s = it->second.link->send(transfer::encode(message)); !s.ok()) {
    loop_.post([weak = std::weak_ptr(self_), address, generation = it->second.generation, s] {
      const auto self = weak.lock();
      if (!self) return;
      auto peer = (*self)->peers_.find(address);
      if (peer != (*self)->peers_.end() && peer->second.generation == generation) (*self)->lost(address, s);
    });
  }
}

void PeerLinks::set_timer(const PeerAddress& address, Peer& peer, Duration delay, void (PeerLinks::*what)(const PeerAddress&)) {
  if (peer.timer_set) loop_.cancel(peer.timer);
  peer.timer_set = true;
  peer.timer = loop_.after(delay, [weak = std::weak_ptr(self_), address, what] {
    const auto self = weak.lock();
    if (!self) return;
    (*self)->peers_.at(address).timer_set = false;
    ((*self)->*what)(address);
  });
}

void PeerLinks::redial(const PeerAddress& address) {
  auto it = peers_.find(address);
  if (it->second.wanted + options_.unused_max < loop_.clock().now()) {
    peers_.erase(it);
  } else {
    dial(address, it->second);
  }
}

void PeerLinks::dial(const PeerAddress& address, Peer& peer) {
  peer.state = Peer::State::kDialling;
  peer.generation = next_generation_++;
  peer.reader = transfer::FrameReader();
  set_timer(address, peer, options_.greet_timeout, &PeerLinks::greet_late);
  dialer_(address, [weak = std::weak_ptr(self_), address, generation = peer.generation](Result<std::unique_ptr<net::Link>> link) {
    const auto self = weak.lock();
    if (!self) return;
    auto it = (*self)->peers_.find(address);
    if (it == (*self)->peers_.end() || it->second.generation != generation) return;
    if (!link.ok()) return (*self)->lost(address, link.status());
    (*self)->on_link(address, it->second, std::move(link).value());
  });
}

void PeerLinks::on_link(const PeerAddress& address, Peer& peer, std::unique_ptr<net::Link> link) {
  peer.state = Peer::State::kGreeting;
  peer.link = std::move(link);
  peer.link->start({.on_bytes =
                        [weak = std::weak_ptr(self_), address, generation = peer.generation](std::string_view bytes) {
                          if (const auto self = weak.lock()) (*self)->on_bytes(address, generation, bytes);
                        },
                    .on_closed =
                        [weak = std::weak_ptr(self_), address, generation = peer.generation](Status why) {
                          const auto self = weak.lock();
                          if (!self) return;
                          auto it = (*self)->peers_.find(address);
                          if (it != (*self)->peers_.end() && it->second.generation == generation) (*self)->lost(address, std::move(why));
                        }});
  if (Status s = peer.link->send(transfer::encode(hello_)); !s.ok()) lost(address, s);
}

void PeerLinks::on_bytes(const PeerAddress& address, std::uint64_t generation, std::string_view bytes) {
  const auto current = [&]() -> Peer* {
    auto it = peers_.find(address);
    return it != peers_.end() && it->second.generation == generation && it->second.link ? &it->second : nullptr;
  };
  if (Peer* peer = current()) peer->reader.append(bytes);
  while (Peer* peer = current()) {
    auto message = peer->reader.next();
    if (!message.ok()) return ++refused_, lost(address, message.status());
    if (!message->has_value()) return;
    const transfer::Message& m = **message;
    if (peer->state == Peer::State::kUp) {
      handlers_.on_message(address, m);
    } else if (const auto* ack = std::get_if<transfer::HelloAck>(&m)) {
      peer->ack = *ack;
      peer->state = Peer::State::kUp;
      peer->pause = Duration{};
      loop_.cancel(peer->timer);
      peer->timer_set = false;
      log::info("hand-off link to {} at {}:{} is up", ack->name, address.first, address.second);
      if (ack->numerics_id != hello_.numerics_id) {
        log::warn("{} computes with {}, this worker with {}: tokens may differ from those of either alone", ack->name, ack->numerics_id,
                  hello_.numerics_id);
      }
      handlers_.on_up(address, peer->ack);
    } else if (const auto* reject = std::get_if<transfer::Reject>(&m)) {
      // A wrong pair is the deployment's fault, not the request's: it may go elsewhere.
      return lost(address, Status(Code::kUnavailable, "the decode worker refuses the pair: " + reject->status.message()));
    } else {
      return ++refused_, lost(address, Status(Code::kDataLoss, "the decode worker does not introduce itself"));
    }
  }
}

void PeerLinks::lost(const PeerAddress& address, Status why) {
  Peer& peer = peers_.at(address);
  log::warn("hand-off link to {}:{}: {}", address.first, address.second, why.to_string());
  peer.state = Peer::State::kPausing;
  peer.link.reset();
  peer.generation = next_generation_++;
  peer.pause = std::clamp(peer.pause * 2, options_.pause_min, options_.pause_max);
  set_timer(address, peer, peer.pause, &PeerLinks::redial);
  handlers_.on_down(address, Status(Code::kUnavailable, why.message()).with_context("link to the decode worker"));
}

}  // namespace baton::worker
