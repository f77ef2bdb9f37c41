#include "worker/handoff_target.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "transfer/relayout.h"

namespace baton::worker {

using transfer::LinkId;

HandoffTarget::HandoffTarget(net::Executor& loop, engine::Engine& engine, transfer::Fabric& fabric, transfer::LocalWorker local,
                             transfer::ReceiverOptions options, std::uint64_t lease_key)
    : loop_(loop),
      engine_(engine),
      fabric_(fabric),
      own_(fabric.export_pool()),
      receiver_(std::move(local), options),
      lease_ids_(lease_key),
      self_(std::make_shared<HandoffTarget*>(this)) {}

HandoffTarget::~HandoffTarget() {
  if (timer_at_ != kNever) loop_.cancel(timer_);
}

// ---------------------------------------------------------------------------------------------------------------- leases

Result<LeaseId> HandoffTarget::reserve(const wire::GenerateRequest& request, std::shared_ptr<LeaseSink> sink) {
  LeaseId id;
  do id = LeaseId(lease_ids_.next_u64());
  while (id == LeaseId() || leases_.contains(id));
  BATON_RETURN_IF_ERROR(engine_.reserve(id, request));
  transfer::LeaseSpec spec{id,
                           request.id,
                           static_cast<std::int32_t>(request.ids.size()),
                           transfer::digest_ids(request.ids),
                           request.first_choice,
                           request.n,
                           now() + request.timeout};
  if (Status s = receiver_.reserve(now(), std::move(spec)); !s.ok()) {
    engine_.unreserve(id);
    return s;
  }
  leases_[id] = Lease{request, now() + request.timeout, std::move(sink), std::nullopt, nullptr, nullptr, {}};
  act();
  return id;
}

void HandoffTarget::close(LeaseId id) {
  auto it = leases_.find(id);
  if (it == leases_.end()) return;
  it->second.sink.reset();
  // A committed lease is the engine's: dropping its call ends it. Any other is freed when it is quiet.
  if (it->second.call) {
    const auto call = std::move(it->second.call);
    leases_.erase(it);
  }
  receiver_.cancel(now(), id, Status(Code::kCancelled, "the decode leg was closed"));
  act();
}

void HandoffTarget::finish_choice(LeaseId id, int choice) {
  auto it = leases_.find(id);
  if (it == leases_.end()) return;
  if (it->second.call) {
    it->second.call->finish_choice(choice);
  } else if (it->second.ended_early.size() < static_cast<std::size_t>(it->second.request.n)) {
    it->second.ended_early.push_back(choice);
  }
}

// ---------------------------------------------------------------------------------------------------------------- links

void HandoffTarget::accept(std::unique_ptr<net::Link> link) {
  const LinkId id(next_link_++);
  net::Link& started = *link;
  links_[id].link = std::move(link);
  receiver_.link_up(now(), id);
  const auto guarded = [weak = std::weak_ptr(self_), id](auto what) {
    if (const auto self = weak.lock()) what(**self, id);
  };
  started.start({.on_bytes = [guarded](std::string_view bytes) { guarded([&](HandoffTarget& t, LinkId l) { t.on_bytes(l, bytes); }); },
                 .on_closed =
                     [guarded](Status) {
                       guarded([](HandoffTarget& t, LinkId l) {
                         t.drop(l);
                         t.act();
                       });
                     }});
  act();
}

void HandoffTarget::on_bytes(LinkId id, std::string_view bytes) {
  auto it = links_.find(id);
  if (it == links_.end()) return;
  it->second.reader.append(bytes);
  for (;;) {
    auto message = it->second.reader.next();
    if (!message.ok()) {
      log::warn("hand-off link from {}: {}", it->second.link->peer(), message.status().to_string());
      // Before the introduction it may be another version of us, which should know why.
      if (!it->second.peer) (void)it->second.link->send(transfer::encode(transfer::Reject{message.status()}));
      ++links_garbled_;
      drop(id);
      break;
    }
    if (!message->has_value()) break;
    receiver_.message(now(), id, std::move(**message));
    act();
    it = links_.find(id);
    if (it == links_.end()) return;
  }
  act();
}

transfer::Receiver::Stats HandoffTarget::stats() const {
  auto s = receiver_.stats(now());
  s.links_refused += links_garbled_;
  return s;
}

void HandoffTarget::drop(LinkId id) {
  links_.erase(id);
  receiver_.link_down(now(), id);
}

// ---------------------------------------------------------------------------------------------------------------- actions

void HandoffTarget::act() {
  if (std::exchange(acting_, true)) return;
  for (auto actions = receiver_.take_actions(); !actions.empty(); actions = receiver_.take_actions()) {
    for (auto& action : actions) std::visit([this](auto& a) { act(a); }, action);
  }
  acting_ = false;
  set_timer();
}

void HandoffTarget::act(Receiver::SendTo& a) {
  auto it = links_.find(a.link);
  if (it == links_.end()) return;
  if (Status s = it->second.link->send(transfer::encode(a.message)); !s.ok()) drop(a.link);
}

void HandoffTarget::act(Receiver::CloseLink& a) {
  auto it = links_.find(a.link);
  if (it == links_.end()) return;
  log::warn("closing the hand-off link from {}: {}", it->second.link->peer(), a.why.to_string());
  drop(a.link);
}

void HandoffTarget::act(Receiver::OpenPeer& a) {
  auto memory = fabric_.open(a.region);
  if (auto it = links_.find(a.link); it != links_.end() && memory.ok()) {
    it->second.peer = std::make_shared<Peer>(Peer{a.link, a.region, std::move(memory).value()});
  }
  receiver_.peer_opened(now(), a.link, memory.status());
}

void HandoffTarget::act(Receiver::TakeBlocks& a) {
  Lease& lease = leases_.at(a.lease);
  lease.request.timeout = std::max(Duration(1), lease.deadline - now());  // waiting for the prompt has used some of it
  auto grant = engine_.grant(a.lease, lease.request);
  if (!grant.ok()) return receiver_.granted(now(), a.lease, grant.status());
  lease.grant = std::move(grant).value();
  receiver_.granted(now(), a.lease, Receiver::Blocks{lease.grant->cached_tokens, lease.grant->blocks});
}

Result<transfer::CopyPlan> HandoffTarget::plan_of(const Peer& peer, const Receiver::Fetch& a) const {
  const device::KvSpec& from = peer.region.spec();
  BATON_ASSIGN_OR_RETURN(const auto blocks, transfer::blocks_from_locator(a.locator, from.blocks));
  const std::int32_t first = a.tokens.begin / from.block_tokens * from.block_tokens;
  return transfer::plan_copy({peer.region.parts, blocks, first}, {own_.parts, a.target, a.target_first}, a.layer, a.heads, a.tokens);
}

void HandoffTarget::act(Receiver::Fetch& a) {
  Lease& lease = leases_.at(a.lease);
  // The link may have gone since the chunk was announced; its peer's memory is still ours to read.
  if (auto it = links_.find(a.link); it != links_.end()) lease.peer = it->second.peer;
  if (!lease.peer || lease.peer->link != a.link)
    return receiver_.fetched(now(), a.id, Status(Code::kUnavailable, "the prefill worker is gone"));
  auto plan = plan_of(*lease.peer, a);
  if (!plan.ok()) return receiver_.fetched(now(), a.id, plan.status());
  fetches_[a.id] =
      fabric_.fetch(lease.peer->memory, std::move(plan).value(), [weak = std::weak_ptr(self_), id = a.id](Result<transfer::Digest> d) {
        const auto self = weak.lock();
        if (!self) return;
        HandoffTarget& t = **self;
        t.fetches_.erase(id);
        t.receiver_.fetched(t.now(), id, std::move(d));
        t.act();
      });
}

void HandoffTarget::act(Receiver::CancelFetch& a) {
  if (auto it = fetches_.find(a.id); it != fetches_.end()) fabric_.cancel(it->second);
}

void HandoffTarget::act(Receiver::StartDecode& a) {
  Lease& lease = leases_.at(a.lease);
  std::vector<engine::PrefillSink::First> first;
  std::vector<wire::TokenEvent> tokens;
  for (auto& f : a.first) {
    tokens.push_back(f.token);
    first.push_back({std::move(f.token), f.finish});
  }
  const auto sink = lease.sink;
  lease.call = engine_.start_decode(lease.grant->seq, std::move(first), sink);
  for (int choice : lease.ended_early) lease.call->finish_choice(choice);
  lease.peer.reset();
  sink->on_committed({a.attempt, std::move(tokens), a.kv_bytes, a.cached_prefix, std::move(a.times)});
}

void HandoffTarget::act(Receiver::AttemptFailed& a) {
  const auto it = leases_.find(a.lease);
  if (it != leases_.end() && it->second.sink) it->second.sink->on_attempt_failed(std::move(a.times));
}

void HandoffTarget::act(Receiver::LeaseFailed& a) {
  auto it = leases_.find(a.lease);
  if (it == leases_.end()) return;
  if (const auto sink = std::exchange(it->second.sink, nullptr)) sink->on_lease_failed(a.status);
}

void HandoffTarget::act(Receiver::FreeLease& a) {
  auto node = leases_.extract(a.lease);
  if (node.empty()) return;
  if (node.mapped().grant) {
    engine_.release(node.mapped().grant->seq);
  } else {
    engine_.unreserve(a.lease);
  }
}

void HandoffTarget::set_timer() {
  const TimePoint next = receiver_.next_deadline();
  if (next == timer_at_) return;
  // An earlier timer that finds nothing due sets the next one: deadlines mostly move away.
  if (timer_at_ != kNever && timer_at_ <= next) return;
  if (timer_at_ != kNever) loop_.cancel(timer_);
  timer_at_ = next;
  if (next == kNever) return;
  timer_ = loop_.after(std::max(next - now(), Duration(0)), [weak = std::weak_ptr(self_)] {
    const auto self = weak.lock();
    if (!self) return;
    (*self)->timer_at_ = kNever;
    (*self)->receiver_.tick((*self)->now());
    (*self)->act();
  });
}

}  // namespace baton::worker
