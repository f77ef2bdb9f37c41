// The core in a random world under a virtual clock: workers that refuse, die, freeze, come back as another incarnation, hand-offs that
// fail, events that come twice, clients that go away. Whatever happens: each request has one outcome, its tokens are those of the oracle
// without gap or repetition, and nothing is left behind.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>

#include "base/rng.h"
#include "gateway/core.h"

namespace baton::gateway {
namespace {

using wire::Role;

constexpr Duration kMs = std::chrono::milliseconds(1);

// The token of a choice at a position, whoever computes it.
TokenId oracle(std::uint64_t seed, int choice, std::int32_t position) {
  const auto r =
      philox4x32({static_cast<std::uint32_t>(choice), static_cast<std::uint32_t>(position), 0, 0}, {static_cast<std::uint32_t>(seed), 1});
  return static_cast<TokenId>(r[0] % 50000);
}
// Where a choice ends (one past its last position).
std::int32_t end_of(const wire::GenerateRequest& r, int choice) {
  const auto x = philox4x32({static_cast<std::uint32_t>(choice), 7, 0, 0}, {static_cast<std::uint32_t>(r.seed), 2});
  return r.n_prompt + 1 + static_cast<std::int32_t>(x[0] % static_cast<std::uint32_t>(r.sampling.max_tokens));
}

class World {
 public:
  struct Result {
    std::uint64_t trace = 0;
    std::uint64_t resumed = 0, claims = 0, missed = 0, duplicates = 0, retries = 0, fallbacks = 0, ok = 0, failed = 0, cancelled = 0;
  };

  explicit World(std::uint64_t seed) : rng_(seed) {
    const int prefills = 1 + static_cast<int>(rng_.below(3)), decodes = 1 + static_cast<int>(rng_.below(3)),
              both = rng_.below(4) == 0 ? 1 : 0;
    std::vector<WorkerConfig> configs;
    const auto add = [&](int count, Role role, const std::string& letter) {
      for (int i = 0; i < count; ++i) {
        configs.push_back({letter + std::to_string(i), "h", 1, role});
        workers_.push_back({.name = configs.back().name, .role = role});
      }
    };
    add(prefills, Role::kPrefill, "p"), add(decodes, Role::kDecode, "d"), add(both, Role::kBoth, "b");
    CoreOptions options;
    options.fallback = rng_.below(2) == 0 ? Fallback::kLocal : Fallback::kFail;
    options.reserve_timeout = 500 * kMs, options.prefill_slack = 1000 * kMs, options.commit_timeout = 500 * kMs,
    options.token_timeout = 800 * kMs;
    options.requests_max = 30;
    chaos_ = rng_.below(100);
    if (rng_.below(2) == 0) prefill_pool_ = 6 + static_cast<int>(rng_.below(12));
    core_ = std::make_unique<Core>(options, configs);
  }

  Result run(int requests) {
    for (std::size_t w = 0; w < workers_.size(); ++w) at(Duration(rng_.below(1000)), [this, w] { poll(w); });
    for (int i = 0; i < requests; ++i) at(Duration(rng_.below(3'000'000)), [this] { submit(); });
    for (std::uint64_t i = 0; i < chaos_ / 5; ++i) at(Duration(rng_.below(4'000'000)), [this] { fault(); });
    at(std::chrono::milliseconds(4500), [this] {  // faults stop, everybody comes back
      for (std::size_t w = 0; w < workers_.size(); ++w) revive(w);
      chaos_ = 0;
    });
    constexpr TimePoint kEnd = TimePoint{} + std::chrono::seconds(40);  // longer than any request's time-out
    while (now_ < kEnd) step();
    check_the_end(requests);
    const Stats s = core_->stats();
    result_.claims = s.claims, result_.missed = s.claims_missed;
    result_.resumed = s.resumed, result_.duplicates = s.duplicates_dropped, result_.fallbacks = s.fallbacks;
    result_.retries =
        s.retries_decode_failed + s.retries_decode_refused + s.retries_prefill_failed + s.retries_prefill_refused + s.retries_nacked;
    return result_;
  }

 private:
  struct FakeWorker {
    std::string name;
    Role role;
    bool up = true, frozen = false;
    std::uint64_t incarnation = 1;
  };
  struct Leg {  // as its worker sees it
    std::size_t worker;
    std::uint64_t incarnation;
    bool prefill;
    wire::GenerateRequest request;
    TimePoint last{};  // when its latest event arrives: a stream keeps its order
    bool committed = false;
    LeaseId lease{};        // of a prefill leg: what can be claimed from it
    bool computes = false;  // a prompt that fills its worker's pool: not one that is claimed, or kept
  };
  struct Client {
    wire::GenerateRequest request;
    std::map<int, std::int32_t> next;
    std::map<int, int> finished;
    std::set<int> cut;
    bool cancelled = false;
    int outcomes = 0;
  };

  // --- time
  void at(Duration delay, std::function<void()> what) { events_.emplace(std::pair(now_ + delay, ++sequence_), std::move(what)); }
  void step() {
    const TimePoint deadline = core_->next_deadline();
    const TimePoint next = events_.empty() ? kNever : events_.begin()->first.first;
    if (deadline <= next) {
      if (deadline == kNever) return void(now_ = kNever);
      now_ = std::max(now_, deadline);
      core_->on_time(now_);
    } else {
      now_ = next;
      auto what = std::move(events_.begin()->second);
      events_.erase(events_.begin());
      what();
    }
    act();
  }
  bool chance(std::uint64_t percent) { return rng_.below(100) < percent * chaos_ / 100; }
  Duration some(int ms) { return Duration(1 + rng_.below(static_cast<std::uint64_t>(ms) * 1000)); }

  // --- clients
  void submit() {
    wire::GenerateRequest r;
    r.seed = ++submitted_;
    r.id = "r" + std::to_string(submitted_);
    r.n = rng_.below(4) == 0 ? 3 : 1;
    r.n_prompt = 1 + static_cast<std::int32_t>(rng_.below(60));
    for (int i = 0; i < r.n_prompt; ++i) r.ids.push_back(i);
    r.sampling.max_tokens = 1 + static_cast<int>(rng_.below(40));
    r.timeout = rng_.below(5) == 0 ? some(3000) : std::chrono::seconds(20);
    Client client{.request = r, .next = {}, .finished = {}, .cut = {}};
    for (int c = 0; c < r.n; ++c) client.next[c] = r.n_prompt;
    const RequestKey key = core_->submit(now_, r);
    clients_.emplace(key, std::move(client));
    if (chance(20)) at(some(1500), [this, key] { cancel(key); });
    if (chance(20)) at(some(800), [this, key] { cut(key); });
  }
  void cancel(RequestKey key) {
    Client& client = clients_.at(key);
    if (client.outcomes > 0) return;
    client.cancelled = true;
    ++result_.cancelled;
    core_->cancel(now_, key);
  }
  void cut(RequestKey key) {
    Client& client = clients_.at(key);
    if (client.outcomes > 0 || client.cancelled) return;
    const int choice = static_cast<int>(rng_.below(static_cast<std::uint64_t>(client.request.n)));
    if (client.finished[choice] == 0) client.cut.insert(choice);
    core_->finish_choice(now_, key, choice);
  }

  // --- the gateway's side
  void act() {
    for (auto actions = core_->take_actions(); !actions.empty(); actions = core_->take_actions())
      for (Action& action : actions) std::visit([this](auto& a) { execute(a); }, action);
  }
  void trace(std::uint64_t x) { result_.trace = (result_.trace ^ x) * 0x100000001b3ULL; }
  void execute(StartDecode& a) {
    trace(a.leg.value * 4 + 1), open(a.leg, a.worker, false, a.body.request);
    at(some(3), [this, leg = a.leg, local = a.body.local_prefill] { arrive_decode(leg, local); });
  }
  void execute(StartPrefill& a) {
    trace(a.leg.value * 4 + 2), open(a.leg, a.worker, true, a.body.request);
    legs_.at(a.leg).computes = a.body.claim == HoldId();
    check_pool(legs_.at(a.leg).worker);
    at(some(3), [this, leg = a.leg, body = a.body] { arrive_prefill(leg, body); });
  }
  void execute(CancelLeg& a) {
    trace(a.leg.value * 4 + 3);
    open_.erase(a.leg);
    at(some(2), [this, leg = a.leg] { legs_.erase(leg); });
  }
  void execute(FinishChoice&) {}
  void execute(Remark&) {}
  void execute(PollNow& a) {
    at(Duration(1), [this, w = static_cast<std::size_t>(a.worker.value)] { poll_once(w); });
  }
  void execute(Deliver& a) {
    const auto found = clients_.find(a.request);
    Client* client = found == clients_.end() ? nullptr : &found->second;
    ASSERT_NE(client, nullptr);
    EXPECT_FALSE(client->cancelled) << "an event after the cancel";
    EXPECT_EQ(client->outcomes, 0) << "an event after the end";
    if (const auto* t = std::get_if<wire::TokenEvent>(&a.event)) {
      trace(static_cast<std::uint64_t>(t->token));
      EXPECT_EQ(t->position, client->next[t->choice]) << "gap, repetition or disorder";
      EXPECT_EQ(t->token, oracle(client->request.seed, t->choice, t->position));
      EXPECT_EQ(client->finished[t->choice], 0) << "a token behind the finish";
      ++client->next[t->choice];
    } else if (const auto* f = std::get_if<wire::FinishEvent>(&a.event)) {
      EXPECT_EQ(++client->finished[f->choice], 1) << "one finish a choice";
      if (!client->cut.contains(f->choice)) {
        EXPECT_EQ(client->next[f->choice], end_of(client->request, f->choice));
      }
    } else if (const auto* s = std::get_if<Status>(&a.event)) {
      trace(static_cast<std::uint64_t>(s->code()));
      ++client->outcomes;
      ++(s->ok() ? result_.ok : result_.failed);
      EXPECT_NE(s->code(), Code::kInternal);
      for (int c = 0; s->ok() && c < client->request.n; ++c) EXPECT_EQ(client->finished[c], 1) << "choice " << c;
    }
  }
  void open(LegId id, WorkerId worker, bool prefill, wire::GenerateRequest request) {
    const auto w = static_cast<std::size_t>(worker.value);
    open_.insert(id);
    legs_[id] = Leg{.worker = w, .incarnation = workers_[w].incarnation, .prefill = prefill, .request = std::move(request)};
  }
  void end(LegId id, LegEnd::Kind kind, Code code = Code::kUnavailable) {
    if (!legs_.contains(id)) return;
    legs_.erase(id);
    open_.erase(id);
    core_->on_leg_end(now_, id, {kind, kind == LegEnd::Kind::kComplete ? Status() : Status(code, "sim")});
  }

  // --- workers
  bool alive(LegId id) {  // the leg is there and its worker is the one that it was opened to
    const auto leg = legs_.find(id);
    if (leg == legs_.end()) return false;
    const FakeWorker& w = workers_[leg->second.worker];
    return w.up && !w.frozen && w.incarnation == leg->second.incarnation;
  }
  // Arrives in order, sometimes twice, unless the worker dies first.
  void say(LegId id, Duration delay, wire::LegEvent event) {
    const auto leg = legs_.find(id);
    if (leg == legs_.end()) return;
    const TimePoint when = std::max(now_ + delay, leg->second.last + Duration(1));
    leg->second.last = when;
    at(when - now_, [this, id, event = std::move(event)] {
      if (!alive(id)) return;
      if (std::holds_alternative<wire::Retained>(event)) legs_.at(id).computes = false;
      const bool last = std::holds_alternative<wire::Done>(event) || std::holds_alternative<wire::Failed>(event);
      const bool twice = chance(10);
      core_->on_leg_event(now_, id, event);
      if (twice) core_->on_leg_event(now_, id, event);
      if (last) {
        open_.erase(id);
        legs_.erase(id);
        core_->on_leg_end(now_, id, {});  // the connection ends too
      }
    });
  }
  std::vector<wire::TokenEvent> tokens(const wire::GenerateRequest& r, std::int32_t position) {
    std::vector<wire::TokenEvent> out;
    const std::uint64_t seed = r.seed;
    for (int c = r.first_choice; c < r.first_choice + r.n; ++c)
      if (position < end_of(r, c)) out.push_back({c, position, oracle(seed, c, position), {}, {}});
    return out;
  }
  void finishes(LegId id, const wire::GenerateRequest& r, std::int32_t position) {  // of choices whose last token stands at `position`
    for (int c = r.first_choice; c < r.first_choice + r.n; ++c)
      if (position + 1 == end_of(r, c)) say(id, some(1), wire::FinishEvent{c, wire::FinishReason::kLength, {}});
  }
  void stream(LegId id, std::int32_t from) {
    const wire::GenerateRequest r = legs_.at(id).request;
    for (std::int32_t position = from;; ++position) {
      auto batch = tokens(r, position);
      if (batch.empty()) break;
      const std::int32_t first = position;
      if (chance(10)) {  // two steps in one event, and not in order
        for (auto& t : tokens(r, ++position)) batch.insert(batch.begin(), t);
      }
      say(id, some(24), wire::Tokens{std::move(batch)});
      for (std::int32_t p = first; p <= position; ++p) finishes(id, r, p);
    }
    say(id, some(1), wire::Done{});
  }
  void arrive_decode(LegId id, bool local) {
    if (!legs_.contains(id)) return;
    if (!workers_[legs_.at(id).worker].up) return end(id, LegEnd::Kind::kUnreachable);
    if (!alive(id)) return;  // frozen: silence
    if (chance(15)) return end(id, LegEnd::Kind::kRefused, chance(50) ? Code::kUnavailable : Code::kResourceExhausted);
    if (local) {
      say(id, some(5), wire::Started{});
      stream(id, static_cast<std::int32_t>(legs_.at(id).request.ids.size()));
    } else if (!chance(5)) {
      say(id, some(10), wire::Reserved{LeaseId(id.value)});
    }
  }
  void arrive_prefill(LegId id, const wire::PrefillLeg& body) {
    if (!legs_.contains(id)) return;
    if (!workers_[legs_.at(id).worker].up) return end(id, LegEnd::Kind::kUnreachable);
    if (!alive(id)) return;
    if (chance(10)) return end(id, LegEnd::Kind::kRefused, Code::kResourceExhausted);
    legs_.at(id).lease = body.lease;
    if (body.claim != HoldId()) {
      std::optional<LegId> held;
      for (const auto& [other, leg] : legs_) {
        if (other != id && leg.prefill && leg.worker == legs_.at(id).worker && wire::hold_of(leg.lease) == body.claim && alive(other))
          held = other;
      }
      say(id, Duration(1), wire::Claimed{held.has_value()});
      if (held) {
        say(*held, Duration(1), wire::Failed{Status(Code::kCancelled, "sim: claimed")});
        legs_.at(*held).lease = LeaseId();
      }
    }
    say(id, some(20), wire::Started{});
    const auto position = static_cast<std::int32_t>(body.request.ids.size());
    at(some(60), [this, id, body, position] {
      if (!alive(id)) return;
      if (chance(10)) return say(id, Duration(1), wire::Failed{Status(Code::kUnavailable, "sim: link")});
      if (chance(5)) return;  // hangs
      say(id, Duration(1), wire::Tokens{tokens(body.request, position)});
      finishes(id, body.request, position);
      at(some(10), [this, id, body, position] { commit(id, body, position); });
    });
  }
  void commit(LegId id, const wire::PrefillLeg& body, std::int32_t position) {
    if (!alive(id)) return;
    const LegId lease(body.lease.value);
    bool more = false;
    for (int c = body.request.first_choice; c < body.request.first_choice + body.request.n; ++c)
      more |= position + 1 < end_of(body.request, c);
    if (more) {
      if (!alive(lease) || legs_.at(lease).committed || legs_.at(lease).incarnation != body.decode_incarnation.value)
        return retain(id, body.lease, Status(Code::kUnavailable, "sim: no such lease"));
      if (chance(10)) return retain(id, body.lease, Status(Code::kDataLoss, "sim: digest"));
      if (chance(5)) return say(id, Duration(1), wire::Nacked{Status(Code::kDataLoss, "sim: digest")});
      legs_.at(lease).committed = true;
      say(lease, some(3), wire::Committed{body.attempt, tokens(body.request, position)});
      finishes(lease, body.request, position);
      stream(lease, position + 1);
      if (chance(10)) return at(Duration(1), [this, id] { end(id, LegEnd::Kind::kBroken); });  // P dies between its commit and its answer
      say(id, some(3), wire::Committed{body.attempt, {}});
    }
    say(id, some(3), wire::Done{});
  }

  // Kept for a while.
  void retain(LegId id, LeaseId lease, Status why) {
    say(id, Duration(1), wire::Retained{wire::hold_of(lease), std::move(why)});
    at(some(300), [this, id] { say(id, Duration(1), wire::Failed{Status(Code::kUnavailable, "sim: nobody claimed it")}); });
  }

  void poll(std::size_t w) {
    poll_once(w);
    at(200 * kMs, [this, w] { poll(w); });
  }
  int pool_blocks(const FakeWorker& worker) const { return worker.role == Role::kPrefill ? prefill_pool_ : 500; }
  // No prefill worker is given more than its pool holds, but one prompt alone: whether that can ever fit is its to say.
  void check_pool(std::size_t w) {
    int blocks = 0, prompts = 0;
    for (const LegId id : open_) {
      const auto leg = legs_.find(id);
      if (leg == legs_.end() || leg->second.worker != w || !leg->second.computes) continue;
      blocks += (static_cast<int>(leg->second.request.ids.size()) + 15) / 16, ++prompts;
    }
    EXPECT_TRUE(prompts <= 1 || blocks <= prefill_pool_)
        << workers_[w].name << " was given " << prompts << " prompts of " << blocks << " blocks";
  }

  void poll_once(std::size_t w) {
    const FakeWorker& worker = workers_[w];
    const WorkerId id(static_cast<std::int32_t>(w));
    if (!worker.up) return core_->on_poll_failed(now_, id, true, "refused");
    if (worker.frozen) return core_->on_poll_failed(now_, id, false, "time-out");
    wire::WorkerStatus s;
    s.name = worker.name, s.role = worker.role;
    s.incarnation = Incarnation(worker.incarnation);
    s.model_digest = "m", s.ready = true;
    s.block_tokens = 16, s.blocks_total = s.blocks_free = pool_blocks(worker), s.max_num_seqs = 16;
    core_->on_status(now_, id, s);
    say_alive(w);
  }
  // Legs of which nothing else is to be told say so.
  void say_alive(std::size_t w) {
    std::vector<LegId> there;
    for (const auto& [leg, at] : legs_)
      if (at.worker == w && alive(leg)) there.push_back(leg);
    for (const LegId leg : there) core_->on_leg_event(now_, leg, wire::Alive{});
  }
  void fault() {
    const auto w = static_cast<std::size_t>(rng_.below(workers_.size()));
    if (rng_.below(3) == 0) {
      workers_[w].frozen = true;
      at(some(2500), [this, w] { workers_[w].frozen = false; });
      return;
    }
    const bool quiet = rng_.below(4) == 0;  // a partition: nobody sees its connections break
    workers_[w].up = false;
    ++workers_[w].incarnation;
    std::vector<LegId> lost;
    for (const auto& [id, leg] : legs_)
      if (leg.worker == w) lost.push_back(id);
    if (!quiet)
      for (const LegId id : lost) at(some(5), [this, id] { end(id, LegEnd::Kind::kBroken); });
    at(some(1500), [this, w] { revive(w); });
  }
  void revive(std::size_t w) { workers_[w].up = true, workers_[w].frozen = false; }

  void check_the_end(int requests) {
    EXPECT_EQ(clients_.size(), static_cast<std::size_t>(requests));
    for (const auto& [key, client] : clients_) EXPECT_EQ(client.outcomes, client.cancelled ? 0 : 1) << client.request.id;
    EXPECT_EQ(core_->open_legs(), 0u);
    EXPECT_TRUE(open_.empty()) << open_.size() << " legs were never closed";
    EXPECT_EQ(core_->next_deadline(), kNever);
    EXPECT_EQ(core_->stats().conflicts, 0u);
    EXPECT_EQ(core_->stats().running + core_->stats().waiting, 0u);
    for (const Worker& w : core_->registry().workers()) {
      EXPECT_EQ(w.legs, 0) << w.name();
      EXPECT_EQ(w.blocks_promised, 0) << w.name();
      EXPECT_EQ(w.prefill_blocks, 0) << w.name();
      EXPECT_EQ(w.sequences, 0) << w.name();
      EXPECT_EQ(w.prefill_tokens, 0) << w.name();
      EXPECT_EQ(w.liveness, Liveness::kAlive) << w.name();
    }
  }

  Rng rng_;
  std::uint64_t chaos_ = 0;  // percent
  int prefill_pool_ = 500;   // blocks
  TimePoint now_{};
  std::uint64_t sequence_ = 0, submitted_ = 0;
  std::map<std::pair<TimePoint, std::uint64_t>, std::function<void()>> events_;
  std::vector<FakeWorker> workers_;
  std::map<LegId, Leg> legs_;
  std::set<LegId> open_;  // as the gateway's shell would hold them
  std::map<RequestKey, Client> clients_;
  std::unique_ptr<Core> core_;
  Result result_;
};

TEST(CoreSimulation, EveryRequestEndsOnceWithTheRightTokens) {
  World::Result sum;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));

    const World::Result r = World(seed).run(40);
    sum.claims += r.claims, sum.missed += r.missed;
    sum.resumed += r.resumed, sum.duplicates += r.duplicates, sum.retries += r.retries, sum.fallbacks += r.fallbacks;
    sum.ok += r.ok, sum.failed += r.failed, sum.cancelled += r.cancelled;
    if (HasFailure()) break;
  }
  std::printf("%lu ok, %lu failed, %lu cancelled; %lu retries, %lu resumed, %lu fallbacks, %lu duplicates dropped\n", sum.ok, sum.failed,
              sum.cancelled, sum.retries, sum.resumed, sum.fallbacks, sum.duplicates);
  // The world is rough enough to mean something.
  EXPECT_GT(sum.ok, 8000u);
  EXPECT_GT(sum.resumed, 100u);
  EXPECT_GT(sum.retries, 1000u);
  EXPECT_GT(sum.claims, 200u);
  EXPECT_GT(sum.missed, 10u);
  EXPECT_GT(sum.fallbacks, 10u);
  EXPECT_GT(sum.duplicates, 1000u);
}

TEST(CoreSimulation, TheSameSeedGivesTheSameTrace) {
  for (std::uint64_t seed : {3, 14, 159}) EXPECT_EQ(World(seed).run(40).trace, World(seed).run(40).trace);
  EXPECT_NE(World(1).run(40).trace, World(2).run(40).trace);
}

}  // namespace
}  // namespace baton::gateway
