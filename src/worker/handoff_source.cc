#include "worker/handoff_source.h"

#include <algorithm>
#include <utility>

#include "base/mutant.h"
#include "transfer/relayout.h"

namespace baton::worker {

using transfer::Range;
using transfer::Sender;

// The engine reports here; a prompt that is gone hears nothing.
class HandoffSource::EngineSink final : public engine::PrefillSink {
 public:
  EngineSink(std::weak_ptr<HandoffSource*> source, Key key) : source_(std::move(source)), key_(key) {}

  void on_started(std::int32_t cached_tokens) override {
    with([&](HandoffSource& s, Prompt& p) {
      p.started = true;
      p.cached_tokens = cached_tokens;
      p.sender().started(s.now());
      if (p.sink) p.sink->on_started(cached_tokens);
      s.attach_if_possible(p);
    });
  }
  void on_layer(int layer, std::int32_t begin, std::int32_t end) override {
    with([&](HandoffSource& s, Prompt& p) { p.sender().layer_ready(s.now(), layer, begin, end); });
  }
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>> entries) override {
    with([&](HandoffSource&, Prompt& p) {
      p.prompt_logprobs = entries;
      if (p.sink) p.sink->on_prompt_logprobs(std::move(entries));
    });
  }
  void on_first(std::vector<First> first) override {
    with([&](HandoffSource& s, Prompt& p) {
      p.first = first;
      if (p.sink) p.sink->on_first(first);
      std::vector<transfer::FirstToken> tokens;
      for (First& f : first) tokens.push_back({std::move(f.token), f.finish});
      const bool no_kv = std::all_of(tokens.begin(), tokens.end(), [](const auto& f) { return f.finish.has_value(); });
      const bool unattended = p.sender().ended();
      p.sender().first_tokens(s.now(), std::move(tokens));
      if (unattended && no_kv) s.end_leg(key_, p, {Sender::State::kNoKv, Status(), 0, 0, {}});
    });
  }
  void on_failed(Status status) override {
    with([&](HandoffSource& s, Prompt& p) { s.give_up(key_, p, status); });
  }

 private:
  template <class F>
  void with(F event) {
    if (const auto source = source_.lock()) (*source)->with(key_, [&](Prompt& p) { event(**source, p); });
  }
  const std::weak_ptr<HandoffSource*> source_;
  const Key key_;
};

HandoffSource::HandoffSource(net::Executor& loop, engine::Engine& engine, transfer::Fabric& fabric, transfer::Hello hello,
                             PeerLinks::Dialer dialer, Options options)
    : loop_(loop),
      engine_(engine),
      fabric_(fabric),
      own_(hello.region),
      kv_(hello.kv),
      options_(options.sender),
      links_(
          loop, std::move(hello), std::move(dialer),
          {.on_up =
               [this](const PeerAddress& peer, const transfer::HelloAck&) {
                 on_link(peer, [this](Prompt& p, Sender& sender) {
                   if (&sender == &p.sender()) attach_if_possible(p);
                 });
               },
           .on_down =
               [this](const PeerAddress& peer, const Status& why) {
                 on_link(peer, [&](Prompt& p, Sender& sender) {
                   // One that has not attached waits no longer than the dial took.
                   if (sender.state() == Sender::State::kQueued && p.started && !p.one_token) {
                     sender.target_lost(now(), why);
                   } else {
                     sender.link_down(now(), why);
                   }
                 });
               },
           .on_message = [this](const PeerAddress& peer,
                                const transfer::Message& m) { on_link(peer, [&](Prompt&, Sender& sender) { sender.message(now(), m); }); }},
          {}),
      retention_(options.retention),
      hold_ids_(options.hold_key, 1),
      self_(std::make_shared<HandoffSource*>(this)) {
  engine_.on_blocks_lacking([this](std::int32_t blocks) {
    if (!BATON_MUTANT(hold_not_reclaimed)) retention_.reclaim(blocks);
    drop_unretained();
  });
}

HandoffSource::~HandoffSource() {
  engine_.on_blocks_lacking({});
  if (timer_at_ != kNever) loop_.cancel(timer_);
}

transfer::SenderSpec HandoffSource::spec_of(const wire::PrefillLeg& leg, const wire::GenerateRequest& r, bool one_token) const {
  return {leg.lease,
          leg.attempt,
          r.id,
          static_cast<std::int32_t>(r.ids.size()),
          transfer::digest_ids(r.ids),
          kv_.layers,
          transfer::announced_heads(own_.parts),
          own_.spec().row_bytes(),
          own_.spec().block_tokens,
          now() + r.timeout,
          one_token,
          now()};
}

HoldId HandoffSource::name_of(const wire::PrefillLeg& leg) {
  if (leg.lease != LeaseId()) return wire::hold_of(leg.lease);
  HoldId name;
  while (name == HoldId()) name = HoldId(hold_ids_.next_u64());
  return name;
}

Result<HandoffSource::Id> HandoffSource::start(wire::PrefillLeg leg, std::shared_ptr<HandoffSink> sink) {
  const wire::GenerateRequest& r = leg.request;
  const auto n_tokens = static_cast<std::int32_t>(r.ids.size());
  const bool one_token = r.sampling.max_tokens - (n_tokens - r.n_prompt) <= 1;
  const TimePoint deadline = now() + r.timeout;
  transfer::HoldIdentity identity = transfer::identity_of(r);
  const Id id = next_id_++;
  if (leg.claim != HoldId()) {
    BATON_ASSIGN_OR_RETURN(const auto claimed, retention_.claim(leg.claim, wire::hold_of(leg.lease), leg.attempt, identity, deadline));
    if (claimed) {
      Prompt& prompt = prompts_.at(*claimed);
      legs_.erase(std::exchange(prompt.leg_id, id));
      legs_[id] = *claimed;
      with(*claimed, [&](Prompt& p) { take_over(*claimed, p, std::move(leg), std::move(sink)); });
      return id;
    }
    sink->on_claimed(false);
  }

  const Key key = next_key_++;
  transfer::SenderSpec spec = spec_of(leg, r, one_token);
  BATON_ASSIGN_OR_RETURN(const SeqId seq, engine_.prefill(r, std::make_shared<EngineSink>(self_, key)));
  const HoldId name = name_of(leg);
  retention_.add(key, name, leg.attempt, std::move(identity), deadline);
  if (leg.lease == LeaseId()) {
    sink->on_retained(name, std::nullopt, {});
  } else if (!one_token) {
    (void)links_.want({leg.link_host, leg.link_port});  // dialled while the prompt waits
  }
  leg.request.ids.clear();
  Prompt prompt{.leg_id = id, .leg = std::move(leg), .sink = std::move(sink), .seq = seq, .since = now(), .one_token = one_token};
  prompt.tries.push_back({next_try_++, std::make_unique<Sender>(std::move(spec), options_), {prompt.leg.link_host, prompt.leg.link_port}});
  prompts_.emplace(key, std::move(prompt));
  legs_[id] = key;
  set_timer();
  return id;
}

// The old attempt ends, now logically and by its own rules physically; the new one begins with what is computed.
void HandoffSource::take_over(Key key, Prompt& p, wire::PrefillLeg leg, std::shared_ptr<HandoffSink> sink) {
  auto next = p.sender().succeed(now(), spec_of(leg, leg.request, p.one_token));
  const std::uint64_t number = p.tries.back().number;
  for (auto& a : p.sender().take_actions()) {
    if (!std::holds_alternative<Sender::Outcome>(a)) act(key, p, number, a);
  }
  if (const auto old = std::exchange(p.sink, nullptr)) {
    old->on_end({Sender::State::kAborted, Status(Code::kCancelled, "claimed by attempt " + std::to_string(leg.attempt.value)), 0, 0, {}});
  }
  sink->on_claimed(true);
  if (p.started) next->started(now()), sink->on_started(p.cached_tokens);
  if (leg.request.sampling.prompt_logprobs >= 0 && !p.prompt_logprobs.empty()) sink->on_prompt_logprobs(p.prompt_logprobs);
  if (!p.first.empty()) sink->on_first(p.first);
  leg.request.ids.clear();
  p.leg = std::move(leg);
  p.sink = std::move(sink);
  p.since = now();
  p.tries.push_back({next_try_++, std::move(next), {p.leg.link_host, p.leg.link_port}});
  if (!p.one_token) (void)links_.want(p.tries.back().peer);
  attach_if_possible(p);
}

void HandoffSource::close(Id id) {
  const auto leg = legs_.find(id);
  if (leg == legs_.end()) return;
  const Key key = leg->second;
  with(key, [&](Prompt& p) {
    p.sink.reset();
    if (BATON_MUTANT(hold_kept_on_close) && p.sender().ended()) return;
    give_up(key, p, Status(Code::kCancelled, "the prefill leg was closed"));
  });
}

HandoffSource::Stats HandoffSource::stats() const {
  Stats s = totals_;
  s.open = prompts_.size();
  s.links_refused = links_.refused();
  s.legs = legs_.size();
  s.retention = retention_.stats(now());
  for (const auto& [key, p] : prompts_) {
    s.oldest_held = std::max(s.oldest_held, now() - p.since);
    const auto retained = retention_.retained(key);
    if (retained) s.idle_retained = std::max(s.idle_retained, now() - retained->since);
    for (const Try& t : p.tries) {
      if (!retained || t.number != p.tries.back().number) ++s.by_state[static_cast<int>(t.sender->state())];
    }
    if (!retained && !engine_.blocks(p.seq).empty())
      s.idle_handoff = std::max(s.idle_handoff, now() - p.tries.back().sender->progress_at());
  }
  s.next_deadline = next_deadline();
  return s;
}

std::vector<HandoffSource::Held> HandoffSource::held() const {
  std::vector<Held> out;
  for (const auto& [key, p] : prompts_) {
    const auto blocks = static_cast<std::int32_t>(engine_.blocks(p.seq).size());
    if (blocks == 0) continue;
    const Sender& sender = *p.tries.back().sender;
    Held held{p.leg.request.id, p.leg.decode_worker,  to_string(sender.state()), sender.key().attempt, sender.key().epoch, blocks, false,
              p.since,          sender.progress_at(), sender.next_deadline()};
    if (const auto retained = retention_.retained(key)) {
      held.state = "retained", held.retained = true;
      held.since = held.progress_at = retained->since, held.deadline = retained->until;
    }
    out.push_back(std::move(held));
  }
  return out;
}

template <class F>
void HandoffSource::with(Key key, F event) {
  auto it = prompts_.find(key);
  if (it == prompts_.end()) return;
  event(it->second);
  act(key);
}

void HandoffSource::on_link(const PeerAddress& peer, const std::function<void(Prompt&, Sender&)>& event) {
  std::vector<Key> keys;
  for (const auto& [key, p] : prompts_) {
    if (std::any_of(p.tries.begin(), p.tries.end(), [&](const Try& t) { return t.peer == peer; })) keys.push_back(key);
  }
  for (Key key : keys) {
    with(key, [&](Prompt& p) {
      for (std::size_t i = 0; i < p.tries.size(); ++i) {
        if (p.tries[i].peer == peer) event(p, *p.tries[i].sender);
      }
    });
  }
}

void HandoffSource::attach_if_possible(Prompt& p) {
  if (!p.started || p.one_token || p.leg.lease == LeaseId() || p.sender().state() != Sender::State::kQueued) return;
  const transfer::HelloAck* ack = links_.want(p.tries.back().peer);
  if (ack == nullptr) return;
  if (ack->incarnation != p.leg.decode_incarnation) {
    return p.sender().target_lost(now(),
                                  Status(Code::kUnavailable, "decode worker " + p.leg.decode_worker + " was restarted: its lease is void"));
  }
  p.sender().attach(now());
}

// ---------------------------------------------------------------------------------------------------------------- actions

void HandoffSource::act(Key key) {
  for (bool again = true; again;) {
    again = false;
    auto it = prompts_.find(key);
    if (it == prompts_.end()) break;
    Prompt& p = it->second;
    for (std::size_t i = 0; i < p.tries.size(); ++i) {
      const std::uint64_t number = p.tries[i].number;
      for (auto& a : p.tries[i].sender->take_actions()) {
        again = true;
        act(key, p, number, a);
      }
    }
    const bool last_is_over = p.sender().over();
    while (p.tries.size() > 1 && p.tries.front().sender->over()) p.tries.erase(p.tries.begin());
    if (!again && !p.wanted && last_is_over && p.tries.size() == 1) {
      const SeqId seq = p.seq;
      const bool kept = BATON_MUTANT(source_kept_on_cancel) && p.sender().state() == Sender::State::kAborted;
      prompts_.erase(it);
      if (!kept) engine_.release(seq);
      break;
    }
  }
  drop_unretained();
  set_timer();
}

void HandoffSource::act(Key key, Prompt& p, std::uint64_t number, Sender::Action& action) {
  const auto of = std::find_if(p.tries.begin(), p.tries.end(), [&](const Try& t) { return t.number == number; });
  if (auto* a = std::get_if<Sender::Send>(&action)) {
    links_.send(of->peer, a->message);
    if (BATON_MUTANT(freed_before_ack) && std::holds_alternative<transfer::Commit>(a->message)) engine_.release(p.seq);
  } else if (auto* a = std::get_if<Sender::DigestChunk>(&action)) {
    digest(key, p, number, *a);
  } else if (auto* a = std::get_if<Sender::Outcome>(&action)) {
    ended(key, p, *a);
  }  // ReleaseKv: this attempt reads no more; act(key) looks whether any does
}

void HandoffSource::digest(Key key, const Prompt& p, std::uint64_t number, const Sender::DigestChunk& a) {
  const int bt = own_.spec().block_tokens;
  const Range range = transfer::block_range(a.tokens, bt);
  const auto blocks = engine_.blocks(p.seq).subspan(static_cast<std::size_t>(range.begin), static_cast<std::size_t>(range.size()));
  auto runs = transfer::plan_local({own_.parts, blocks, range.begin * bt}, a.layer, a.heads, a.tokens);
  BATON_CHECK_MSG(runs.ok(), runs.status().to_string());
  fabric_.digest(std::move(runs).value(),
                 [weak = std::weak_ptr(self_), key, number, chunk = a.id,
                  locator = transfer::locator_from_blocks(blocks.data(), blocks.size())](Result<transfer::Digest> d) mutable {
                   const auto self = weak.lock();
                   if (!self) return;
                   (*self)->with(key, [&](Prompt& prompt) {
                     for (Try& t : prompt.tries) {
                       if (t.number == number) t.sender->digested((*self)->now(), chunk, std::move(d), std::move(locator));
                     }
                   });
                 });
}

// An attempt of the present leg has its outcome. What is D's or the link's fault leaves KV that is good for another D.
void HandoffSource::ended(Key key, Prompt& p, const Sender::Outcome& outcome) {
  const bool acked = outcome.state == Sender::State::kAcked;
  if (acked) ++totals_.acked;
  if (outcome.state == Sender::State::kNacked) ++totals_.failed;
  const bool unclaimed = outcome.state == Sender::State::kUnclaimed;
  const bool nobodys_fault = unclaimed || (outcome.state == Sender::State::kNacked && retryable(outcome.status.code()));
  if (nobodys_fault && p.wanted && p.sink && retention_.retain(now(), key, static_cast<std::int32_t>(engine_.blocks(p.seq).size()))) {
    engine_.ask_again();  // a prompt that waits may have been told that there was nothing to give up
    if (!unclaimed) p.sink->on_retained(wire::hold_of(p.leg.lease), outcome.status, p.sender().times());
    return;
  }
  HandoffSink::End end{outcome.state, outcome.status, acked ? p.sender().bytes_total() : 0, acked ? p.sender().bytes_early() : 0, {}};
  if (unclaimed) end = {Sender::State::kAborted, Status(Code::kResourceExhausted, "more KV than may be kept unclaimed"), 0, 0, {}};
  totals_.kv_bytes += end.kv_bytes;
  end_leg(key, p, end);
}

void HandoffSource::give_up(Key key, Prompt& p, const Status& why) {
  if (!p.sender().ended()) return p.sender().cancel(now(), why);  // its outcome ends the leg
  end_leg(key, p, {Sender::State::kAborted, why, 0, 0, {}});
}

// Nobody can claim it any more; its blocks go when no attempt reads them.
void HandoffSource::end_leg(Key key, Prompt& p, HandoffSink::End end) {
  p.wanted = false;
  retention_.remove(key);
  legs_.erase(p.leg_id);
  end.times = p.sender().times();
  if (const auto sink = std::exchange(p.sink, nullptr)) sink->on_end(end);
}

void HandoffSource::drop_unretained() {
  for (auto& drop : retention_.take_drops()) {
    with(drop.key, [&](Prompt& p) { give_up(drop.key, p, drop.why); });
  }
}

TimePoint HandoffSource::next_deadline() const {
  TimePoint next = retention_.next_deadline();
  for (const auto& [key, p] : prompts_) {
    for (const Try& t : p.tries) next = std::min(next, t.sender->next_deadline());
  }
  return next;
}

void HandoffSource::set_timer() {
  const TimePoint next = next_deadline();
  // An earlier timer that finds nothing due sets the next one.
  if (next == timer_at_ || (timer_at_ != kNever && timer_at_ <= next)) return;
  if (timer_at_ != kNever) loop_.cancel(timer_);
  timer_at_ = next;
  timer_ = loop_.after(std::max(next - now(), Duration(0)), [weak = std::weak_ptr(self_)] {
    const auto self = weak.lock();
    if (!self) return;
    HandoffSource& s = **self;
    s.timer_at_ = kNever;
    s.retention_.tick(s.now());
    std::vector<Key> keys;
    for (const auto& [key, p] : s.prompts_) keys.push_back(key);
    for (Key key : keys) {
      s.with(key, [&](Prompt& p) {
        for (std::size_t i = 0; i < p.tries.size(); ++i) p.tries[i].sender->tick(s.now());
      });
    }
    s.drop_unretained();
    s.set_timer();
  });
}

}  // namespace baton::worker
