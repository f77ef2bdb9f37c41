#include "worker/handoff_source.h"

#include <algorithm>
#include <utility>

#include "transfer/relayout.h"

namespace baton::worker {

using transfer::Range;
using transfer::Sender;

// The engine reports here; a hand-off that is gone hears nothing.
class HandoffSource::EngineSink final : public engine::PrefillSink {
 public:
  EngineSink(std::weak_ptr<HandoffSource*> source, Id id) : source_(std::move(source)), id_(id) {}

  void on_started(std::int32_t cached_tokens) override {
    with([&](HandoffSource& s, Handoff& h) {
      h.started = true;
      if (h.sink) h.sink->on_started(cached_tokens);
      s.attach_if_possible(h);
    });
  }
  void on_layer(int layer, std::int32_t begin, std::int32_t end) override {
    with([&](HandoffSource& s, Handoff& h) { h.sender->layer_ready(s.now(), layer, begin, end); });
  }
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>> entries) override {
    with([&](HandoffSource&, Handoff& h) {
      if (h.sink) h.sink->on_prompt_logprobs(std::move(entries));
    });
  }
  void on_first(std::vector<First> first) override {
    with([&](HandoffSource& s, Handoff& h) {
      if (h.sink) h.sink->on_first(first);
      std::vector<transfer::FirstToken> tokens;
      for (First& f : first) tokens.push_back({std::move(f.token), f.finish});
      h.sender->first_tokens(s.now(), std::move(tokens));
    });
  }
  void on_failed(Status status) override {
    with([&](HandoffSource& s, Handoff& h) { h.sender->cancel(s.now(), std::move(status)); });
  }

 private:
  template <class F>
  void with(F event) {
    if (const auto source = source_.lock()) (*source)->with(id_, [&](Handoff& h) { event(**source, h); });
  }
  const std::weak_ptr<HandoffSource*> source_;
  const Id id_;
};

HandoffSource::HandoffSource(net::Executor& loop, engine::Engine& engine, transfer::Fabric& fabric, transfer::Hello hello,
                             PeerLinks::Dialer dialer, transfer::SenderOptions options)
    : loop_(loop),
      engine_(engine),
      fabric_(fabric),
      own_(hello.region),
      kv_(hello.kv),
      options_(options),
      links_(loop, std::move(hello), std::move(dialer),
             {.on_up = [this](const PeerAddress& peer,
                              const transfer::HelloAck&) { on_link(peer, [this](Handoff& h) { attach_if_possible(h); }); },
              .on_down =
                  [this](const PeerAddress& peer, const Status& why) {
                    on_link(peer, [&](Handoff& h) {
                      // One that has not attached waits no longer than the dial took.
                      if (h.sender->state() == Sender::State::kQueued && h.started && !h.one_token) {
                        h.sender->cancel(now(), why);
                      } else {
                        h.sender->link_down(now(), why);
                      }
                    });
                  },
              .on_message = [this](const PeerAddress& peer,
                                   const transfer::Message& m) { on_link(peer, [&](Handoff& h) { h.sender->message(now(), m); }); }},
             {}),
      self_(std::make_shared<HandoffSource*>(this)) {}

HandoffSource::~HandoffSource() {
  if (timer_at_ != kNever) loop_.cancel(timer_);
}

Result<HandoffSource::Id> HandoffSource::start(wire::PrefillLeg leg, std::shared_ptr<HandoffSink> sink) {
  const Id id = next_id_;
  BATON_ASSIGN_OR_RETURN(const SeqId seq, engine_.prefill(leg.request, std::make_shared<EngineSink>(self_, id)));
  ++next_id_;
  const wire::GenerateRequest& r = leg.request;
  const auto n_tokens = static_cast<std::int32_t>(r.ids.size());
  const bool one_token = r.sampling.max_tokens - (n_tokens - r.n_prompt) <= 1;
  transfer::SenderSpec spec{leg.lease,
                            leg.attempt,
                            r.id,
                            n_tokens,
                            transfer::digest_ids(r.ids),
                            kv_.layers,
                            own_.heads,
                            own_.view.spec.row_bytes(),
                            own_.view.spec.block_tokens,
                            now() + r.timeout,
                            one_token};
  PeerAddress peer{leg.link_host, leg.link_port};
  if (!one_token) (void)links_.want(peer);  // dialled while the prompt waits
  handoffs_[id] = Handoff{std::move(leg),  std::move(sink), seq,   std::make_unique<Sender>(std::move(spec), options_),
                          std::move(peer), now(),           false, one_token};
  set_timer();
  return id;
}

void HandoffSource::close(Id id) {
  with(id, [this](Handoff& h) {
    h.sink.reset();
    h.sender->cancel(now(), Status(Code::kCancelled, "the prefill leg was closed"));
  });
}

HandoffSource::Stats HandoffSource::stats() const {
  Stats s = totals_;
  s.open = handoffs_.size();
  for (const auto& [id, h] : handoffs_) {
    s.oldest_held = std::max(s.oldest_held, now() - h.since);
    s.next_deadline = std::min(s.next_deadline, h.sender->next_deadline());
  }
  return s;
}

template <class F>
void HandoffSource::with(Id id, F event) {
  auto it = handoffs_.find(id);
  if (it == handoffs_.end()) return;
  event(it->second);
  act(id);
}

void HandoffSource::on_link(const PeerAddress& peer, const std::function<void(Handoff&)>& event) {
  std::vector<Id> ids;
  for (const auto& [id, h] : handoffs_) {
    if (h.peer == peer) ids.push_back(id);
  }
  for (Id id : ids) with(id, event);
}

void HandoffSource::attach_if_possible(Handoff& h) {
  if (!h.started || h.one_token || h.sender->state() != Sender::State::kQueued) return;
  const transfer::HelloAck* ack = links_.want(h.peer);
  if (ack == nullptr) return;
  if (ack->incarnation != h.leg.decode_incarnation) {
    return h.sender->cancel(now(),
                            Status(Code::kUnavailable, "decode worker " + h.leg.decode_worker + " was restarted: its lease is void"));
  }
  h.sender->attach(now());
}

// ---------------------------------------------------------------------------------------------------------------- actions

void HandoffSource::act(Id id) {
  for (;;) {
    auto it = handoffs_.find(id);
    if (it == handoffs_.end()) break;
    auto actions = it->second.sender->take_actions();
    if (actions.empty()) break;
    for (auto& a : actions) {
      if (!act(id, it->second, a)) break;
    }
  }
  set_timer();
}

bool HandoffSource::act(Id id, Handoff& h, Sender::Action& action) {
  if (auto* a = std::get_if<Sender::Send>(&action)) {
    links_.send(h.peer, a->message);
  } else if (auto* a = std::get_if<Sender::DigestChunk>(&action)) {
    digest(id, h, *a);
  } else if (auto* a = std::get_if<Sender::Outcome>(&action)) {
    ended(h, *a);
  } else {  // ReleaseKv
    const SeqId seq = h.seq;
    handoffs_.erase(id);
    engine_.release(seq);
    return false;
  }
  return true;
}

void HandoffSource::digest(Id id, Handoff& h, const Sender::DigestChunk& a) {
  const int bt = own_.view.spec.block_tokens;
  const Range range = transfer::block_range(a.tokens, bt);
  const auto blocks = engine_.blocks(h.seq).subspan(static_cast<std::size_t>(range.begin), static_cast<std::size_t>(range.size()));
  auto runs = transfer::plan_local({own_.view, own_.heads, blocks, range.begin * bt}, a.layer, a.heads, a.tokens);
  BATON_CHECK_MSG(runs.ok(), runs.status().to_string());
  fabric_.digest(
      std::move(runs).value(), [weak = std::weak_ptr(self_), id, chunk = a.id,
                                locator = transfer::locator_from_blocks(blocks.data(), blocks.size())](Result<transfer::Digest> d) mutable {
        const auto self = weak.lock();
        if (!self) return;
        (*self)->with(id, [&](Handoff& handoff) { handoff.sender->digested((*self)->now(), chunk, std::move(d), std::move(locator)); });
      });
}

void HandoffSource::ended(Handoff& h, const Sender::Outcome& outcome) {
  const bool acked = outcome.state == Sender::State::kAcked;
  const HandoffSink::End end{outcome.state, outcome.status, acked ? h.sender->bytes_total() : 0, acked ? h.sender->bytes_early() : 0};
  if (acked) ++totals_.acked;
  if (outcome.state == Sender::State::kNacked) ++totals_.failed;
  totals_.kv_bytes += end.kv_bytes;
  if (const auto sink = std::exchange(h.sink, nullptr)) sink->on_end(end);
}

void HandoffSource::set_timer() {
  TimePoint next = kNever;
  for (const auto& [id, h] : handoffs_) next = std::min(next, h.sender->next_deadline());
  // An earlier timer that finds nothing due sets the next one.
  if (next == timer_at_ || (timer_at_ != kNever && timer_at_ <= next)) return;
  if (timer_at_ != kNever) loop_.cancel(timer_);
  timer_at_ = next;
  timer_ = loop_.after(std::max(next - now(), Duration(0)), [weak = std::weak_ptr(self_)] {
    const auto self = weak.lock();
    if (!self) return;
    HandoffSource& s = **self;
    s.timer_at_ = kNever;
    std::vector<Id> ids;
    for (const auto& [id, h] : s.handoffs_) ids.push_back(id);
    for (Id id : ids) s.with(id, [&](Handoff& h) { h.sender->tick(s.now()); });
    s.set_timer();
  });
}

}  // namespace baton::worker
