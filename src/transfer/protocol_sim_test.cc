// Receivers, Senders and Retention in a small world of their own, two workers of each role: virtual time, links that delay, fragment and
// cut, a fabric that is late, corrupt or fails, source workers that die or reuse their memory too early, a gateway that retries, cancels,
// gives up decode workers and claims KV that outlived its attempt. Every seed is a different mix; a failure prints it.
//
// The oracle knows what nobody in the protocol does: which lease owns each of D's blocks, and what every logical row must hold.

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <set>

#include "transfer/receiver.h"
#include "transfer/relayout.h"
#include "transfer/retention.h"
#include "transfer/sender.h"
#include "transfer/shm/copy_digest.h"
#include "transfer/test_pool.h"
#include "wire/worker_api.h"

namespace baton::transfer {
namespace {

using testing::random_blocks;
using testing::random_shards;
using testing::rows_equal;
using testing::TestRanks;
using testing::write_rows;

constexpr int kLayers = 3, kHeads = 3;

struct Faults {
  double cut = 0, corrupt = 0, fetch_fails = 0, stall = 0, crash = 0, early_reuse = 0, cancel = 0, wrong_ids = 0, replay = 0;
  double move = 0, no_claim = 0, late_claim = 0, wrong_claim = 0, no_lease = 0;
};

// What happened, over all seeds.
struct Counts {
  int leases = 0, committed = 0, ended_otherwise = 0, mismatches = 0;
  int claimed_retained = 0, claimed_computing = 0, claimed_elsewhere = 0, claims_missed = 0, claims_refused = 0;
  int committed_after_claim = 0, mismatches_after_claim = 0, dropped_in_time = 0, dropped_for_room = 0;
};

class World {
 public:
  World(std::uint64_t seed, Counts& counts) : count(counts), rng_(seed) {
    const auto sometimes = [&](double p) { return rng_.below(2) == 0 ? 0.0 : p * rng_.uniform(); };
    faults_ = {sometimes(0.02), sometimes(0.1), sometimes(0.1), sometimes(0.05), sometimes(0.3), sometimes(0.3), sometimes(0.4),
               sometimes(0.2),  sometimes(0.1), sometimes(0.5), sometimes(0.8),  sometimes(0.5), sometimes(0.2), sometimes(0.5)};
    for (int i = 0; i < 2; ++i) {
      auto t = std::make_unique<Target>();
      t->pool = make_pool(kTargetBlocks, 2 + static_cast<int>(rng_.below(7)));
      t->owner.assign(kTargetBlocks, Owner{});
      LocalWorker local;
      local.incarnation = Incarnation(77 + static_cast<std::uint64_t>(i));
      local.kv = {kLayers, kHeads, 4, "bf16"};
      local.block_tokens = t->pool->spec().block_tokens;
      ReceiverOptions options;
      options.fetches_max = 1 + rng_.below(6);
      t->receiver = std::make_unique<Receiver>(local, options);
      targets_.push_back(std::move(t));
    }
    for (int i = 0; i < 2; ++i) {
      auto s = std::make_unique<Source>();
      s->pool = make_pool(kSourceBlocks, 2 + static_cast<int>(rng_.below(7)));
      s->retention = std::make_unique<Retention>(kRetention);
      sources_.push_back(std::move(s));
      for (auto& t : targets_) {
        paths_.push_back(std::make_unique<Path>(Path{sources_.back().get(), t.get()}));
        connect(*paths_.back());
      }
    }
  }

  void run(int requests) {
    for (int i = 0; i < requests; ++i) at(rng_.below(2'000'000), [this, i] { arrive(i); });
    tick_later();
    while (!events_.empty()) {
      const Event e = events_.top();
      events_.pop();
      now_ = e.when;
      e.work();
      for (auto& t : targets_) drain(*t);
      for (auto& s : sources_) drain(*s);
      if (++steps_ > 2'000'000) {
        ADD_FAILURE() << "no quiescence: a lease does not end";
        return;
      }
    }
    check_quiescence();
  }

 private:
  static constexpr int kTargetBlocks = 40, kSourceBlocks = 60;
  static constexpr RetentionOptions kRetention{.timeout = std::chrono::milliseconds(100), .holds_max = 3, .blocks_max = 40};
  using PromptKey = Retention::Key;

  struct Event {
    TimePoint when;
    std::uint64_t order;
    std::function<void()> work;
    bool operator<(const Event& o) const { return std::tie(o.when, o.order) < std::tie(when, order); }
  };
  struct Owner {
    LeaseId lease;
    bool committed = false;
  };
  struct Target {
    std::unique_ptr<TestRanks> pool;
    std::vector<Owner> owner;
    std::unique_ptr<Receiver> receiver;
  };
  struct Prompt {  // what a source computes, or has computed, for a request
    PromptKey key = 0;
    int request = 0;
    LeaseId lease;  // of the last attempt; zero: it waits for one
    std::vector<BlockId> blocks;
    std::vector<std::unique_ptr<Sender>> tries;  // the last one is at work, those before end by their own rules
    bool wanted = true, kv_held = true;
    int layers_done = 0;
    std::int32_t tokens_done = 0;
    Sender& sender() { return *tries.back(); }
  };
  struct Source {
    std::unique_ptr<TestRanks> pool;
    std::unique_ptr<Retention> retention;
    std::set<std::int32_t> used;
    std::map<PromptKey, std::shared_ptr<Prompt>> prompts;
  };
  struct Path {  // from a source to a target, and back
    Source* source;
    Target* target;
    LinkId link = {};
    bool up = false;  // as the source sees it
    bool greeted = false;
    FrameReader reader = {};  // what D says
    TimePoint last_to_d = {}, last_to_p = {};
  };
  struct Lease {
    int request = 0;
    Target* target = nullptr;
    std::vector<BlockId> blocks = {};
    std::int32_t cached = 0;
    bool claimed = false;  // for KV that was computed under another attempt
    bool granted = false, committed = false, freed = false;
  };
  struct Request {
    std::int32_t n_tokens = 0;
    std::uint64_t content = 0;
    int attempt = 0;
    int choices = 1;
    bool over = false;  // for the gateway
    LeaseId lease;      // the present one
    Source* source = nullptr;
    HoldId hold;  // what a claim at `source` names
  };

  bool chance(double p) { return rng_.uniform() < p; }
  void at(std::uint64_t in_us, std::function<void()> work) {
    events_.push({now_ + Duration(static_cast<std::int64_t>(in_us)), ++order_, std::move(work)});
  }
  // Any degree on either side, more ranks than heads too.
  std::unique_ptr<TestRanks> make_pool(int blocks, int block_tokens) {
    const device::KvSpec spec{kLayers, kHeads, 4, device::DType::kBF16, block_tokens, blocks};
    return std::make_unique<TestRanks>(rng_, spec, random_shards(rng_, kHeads, 1 + static_cast<int>(rng_.below(4))));
  }
  std::uint64_t delay() { return chance(faults_.stall) ? rng_.below(40'000'000) : 20 + rng_.below(2000); }
  Path* path_of(LinkId link) {
    const auto it = links_of_.find(link);
    return it == links_of_.end() ? nullptr : it->second;
  }

  // ------------------------------------------------------------------------------------------------ links
  void connect(Path& p) {
    p.link = LinkId(++links_made_);
    p.up = true;
    p.greeted = false;
    p.reader = FrameReader();
    p.last_to_d = p.last_to_p = now_;
    links_of_[p.link] = &p;
    readers_[p.link] = std::make_unique<FrameReader>();
    open_[p.link] = true;
    p.target->receiver->link_up(now_, p.link);
    Hello hello;
    hello.incarnation = Incarnation(links_made_);
    hello.name = "p";
    hello.kv = {kLayers, kHeads, 4, "bf16"};
    hello.region = p.source->pool->region();
    to_d(p, hello);
  }
  void to_d(Path& p, const Message& m) {
    if (!p.up) return;
    deliver(encode(m), p.last_to_d, p.link, [this, &p, link = p.link](std::string_view bytes) {
      auto it = readers_.find(link);
      if (it == readers_.end()) return;
      it->second->append(bytes);
      for (;;) {
        auto next = it->second->next();
        ASSERT_TRUE(next.ok()) << next.status().to_string();
        if (!next->has_value()) return;
        if (chance(faults_.replay)) seen_.emplace_back(link, **next);
        p.target->receiver->message(now_, link, std::move(**next));
        drain(*p.target);
        if (!readers_.contains(link)) return;
      }
    });
    if (chance(faults_.cut)) cut(p);
  }
  void to_p(LinkId link, const Message& m) {
    Path* p = path_of(link);
    if (p == nullptr || p->link != link || !p->up) return;
    deliver(encode(m), p->last_to_p, link, [this, p, link](std::string_view bytes) {
      if (p->link != link || !p->up) return;
      p->reader.append(bytes);
      for (;;) {
        auto next = p->reader.next();
        ASSERT_TRUE(next.ok());
        if (!next->has_value()) return;
        if (std::holds_alternative<HelloAck>(**next)) p->greeted = true;
        for (auto& [key, prompt] : p->source->prompts) {
          for (auto& t : prompt->tries) t->message(now_, **next);
          maybe_attach(*p->source, *prompt);
        }
      }
    });
    if (chance(faults_.cut)) cut(*p);
  }
  // In order, in two pieces now and then; nothing after a cut.
  void deliver(std::string frame, TimePoint& last, LinkId link, std::function<void(std::string_view)> to) {
    const std::size_t split = rng_.below(3) == 0 ? rng_.below(frame.size()) : 0;
    for (const auto& [from, n] : {std::pair{std::size_t{0}, split}, std::pair{split, frame.size() - split}}) {
      if (n == 0) continue;
      last = std::max(last, now_ + Duration(static_cast<std::int64_t>(delay())));
      events_.push({last, ++order_, [this, link, to, piece = frame.substr(from, n)] {
                      if (open_[link]) to(piece);
                    }});
    }
  }
  // Both ends learn of it, each in its own time; the source dials again.
  void cut(Path& p) {
    if (!p.up || !open_[p.link]) return;
    const LinkId link = p.link;
    open_[link] = false;
    at(rng_.below(5000), [this, &p, link] {
      if (readers_.erase(link) > 0) p.target->receiver->link_down(now_, link);
    });
    at(rng_.below(5000), [this, &p, link] {
      if (p.link == link) source_lost_link(p);
    });
  }
  void source_lost_link(Path& p) {
    if (!p.up) return;
    p.up = false;
    for (auto& [key, prompt] : p.source->prompts) {
      for (auto& t : prompt->tries) {
        const auto lease = leases_.find(t->key().lease);
        if (lease != leases_.end() && lease->second.target == p.target) t->link_down(now_, Status(Code::kUnavailable, "cut"));
      }
    }
    at(1000 + rng_.below(100'000), [this, &p] {
      if (!p.up) connect(p);
    });
  }

  // ------------------------------------------------------------------------------------------------ gateway
  static Digest ids_of(const Request& r) { return {r.content, static_cast<std::uint64_t>(r.n_tokens)}; }
  static HoldIdentity identity_of(int index, const Request& r) {
    return {.request_id = "r" + std::to_string(index), .ids = ids_of(r), .n_tokens = r.n_tokens, .n_prompt = r.n_tokens, .sampling = {}};
  }
  bool committed(const Request& r) { return r.lease != LeaseId() && leases_.at(r.lease).committed; }

  void arrive(int index) {
    Request& r = requests_[index];
    r.n_tokens = 1 + static_cast<std::int32_t>(rng_.below(60));
    r.content = rng_.next_u64();
    r.choices = 1 + static_cast<int>(rng_.below(3));
    if (chance(faults_.no_lease)) {  // P first; D when there is room
      dispatch(index);
      at(rng_.below(60'000), [this, index] { reserve_late(index); });
    } else {
      reserve(index);
      dispatch(index);
    }
    if (chance(faults_.cancel)) at(rng_.below(300'000), [this, index] { give_up(index); });
    // The decode worker is as good as dead for the gateway, whatever it still does.
    if (chance(faults_.move)) at(rng_.below(60'000), [this, index] { move(index); });
  }
  void reserve(int index) {
    Request& r = requests_[index];
    const Target* before = r.lease == LeaseId() ? nullptr : leases_.at(r.lease).target;
    Target& target = *targets_[before == targets_[0].get() ? 1 : before ? 0 : rng_.below(2)];
    r.lease = LeaseId(1000 + ++leases_made_);
    ++count.leases;
    leases_[r.lease] = {.request = index, .target = &target};
    ASSERT_TRUE(
        target.receiver
            ->reserve(now_, {r.lease, "r" + std::to_string(index), r.n_tokens, ids_of(r), 0, r.choices, now_ + std::chrono::minutes(5)})
            .ok());
  }
  void reserve_late(int index) {
    Request& r = requests_[index];
    if (r.over || r.lease != LeaseId()) return;
    reserve(index);
    dispatch(index);
  }
  void move(int index) {
    Request& r = requests_[index];
    if (r.over || r.lease == LeaseId() || committed(r)) return;
    const LeaseId old = r.lease;
    reserve(index);
    leases_.at(old).target->receiver->cancel(now_, old, Status(Code::kCancelled, "the leg is lost"));
    dispatch(index);
  }
  void give_up(int index) {
    Request& r = requests_[index];
    if (r.over) return;
    r.over = true;
    const Status why(Code::kCancelled, "client gone");
    if (r.lease != LeaseId()) leases_.at(r.lease).target->receiver->cancel(now_, r.lease, why);
    for (auto& s : sources_) {
      for (auto& [key, p] : s->prompts) {
        if (p->request == index) close_leg(*s, *p, why);
      }
    }
    if (r.lease != LeaseId() && leases_.at(r.lease).committed) finish_decode(r.lease);
  }
  // The next attempt: goes on from KV that is there, or begins anew.
  void dispatch(int index) {
    Request& r = requests_[index];
    if (r.over || committed(r)) return;
    if (++r.attempt > 8) return give_up(index);
    if (r.source != nullptr && r.lease != LeaseId() && !chance(faults_.no_claim)) {
      if (claim(index)) return;
    }
    begin(index);
  }
  SenderSpec spec_of(const Source& s, int index, const Request& r) {
    SenderSpec spec;
    spec.lease = r.lease;
    spec.attempt = Attempt(static_cast<std::uint32_t>(r.attempt));
    spec.request_id = "r" + std::to_string(index);
    spec.n_tokens = r.n_tokens;
    spec.ids = ids_of(r);
    spec.layers = kLayers;
    spec.heads = announced_heads(s.pool->parts());
    spec.row_bytes = s.pool->spec().row_bytes();
    spec.block_tokens = s.pool->spec().block_tokens;
    spec.deadline = now_ + std::chrono::minutes(5);
    return spec;
  }
  // True: somebody goes on with it.
  bool claim(int index) {
    Request& r = requests_[index];
    Source& s = *r.source;
    HoldIdentity identity = identity_of(index, r);
    const bool wrong = chance(faults_.wrong_claim);
    if (wrong) identity.seed = 1;
    const std::size_t kept = s.retention->stats(now_).holds;
    const auto claimed =
        s.retention->claim(r.hold, wire::hold_of(r.lease), Attempt(static_cast<std::uint32_t>(r.attempt)), identity, kNever);
    if (!claimed.ok()) {
      ++count.claims_refused;
      return false;
    }
    if (!claimed->has_value()) {
      ++count.claims_missed;
      return false;
    }
    EXPECT_FALSE(wrong) << "another request's KV was claimed";
    Prompt& p = *s.prompts.at(**claimed);
    EXPECT_TRUE(p.kv_held && p.wanted);
    EXPECT_EQ(p.request, index);
    ++(s.retention->stats(now_).holds < kept ? count.claimed_retained : count.claimed_computing);
    if (p.lease != LeaseId() && leases_.at(p.lease).target != leases_.at(r.lease).target) ++count.claimed_elsewhere;
    leases_.at(r.lease).claimed = true;
    auto next = p.sender().succeed(now_, spec_of(s, index, r));
    take_actions(s, p, p.tries.size() - 1, /*with_outcome=*/false);
    p.tries.push_back(std::move(next));
    p.lease = r.lease;
    r.hold = wire::hold_of(r.lease);
    maybe_attach(s, p);
    return true;
  }
  void begin(int index) {
    Request& r = requests_[index];
    Source& s = *sources_[static_cast<std::size_t>(r.attempt + index) % sources_.size()];
    const auto bt = s.pool->spec().block_tokens;
    const auto want = static_cast<std::size_t>((r.n_tokens + bt - 1) / bt);
    std::vector<BlockId> blocks;
    for (BlockId b : random_blocks(rng_, kSourceBlocks, kSourceBlocks)) {
      if (blocks.size() < want && !s.used.contains(b.value)) blocks.push_back(b);
    }
    if (blocks.size() < want) {
      s.retention->reclaim(static_cast<std::int32_t>(want));
      --r.attempt;
      at(50'000, [this, index] { dispatch(index); });
      return;
    }
    auto p = std::make_shared<Prompt>();
    p->key = ++prompts_made_;
    p->request = index;
    p->lease = r.lease;
    p->blocks = blocks;
    for (BlockId b : blocks) s.used.insert(b.value);
    SenderSpec spec = spec_of(s, index, r);
    if (chance(faults_.wrong_ids)) spec.ids.low ^= 1;
    const bool right = spec.ids == ids_of(r);
    SenderOptions options;
    options.digests_max = 1 + static_cast<int>(rng_.below(4));
    options.chunk_tokens_max = 1 + static_cast<std::int32_t>(rng_.below(40));
    p->tries.push_back(std::make_unique<Sender>(spec, options));
    s.prompts[p->key] = p;
    r.source = &s;
    r.hold = r.lease == LeaseId() ? HoldId(500'000 + p->key) : wire::hold_of(r.lease);
    HoldIdentity identity = identity_of(index, r);
    if (!right) identity.ids = spec.ids;  // a leg about other tokens cannot be claimed for these
    s.retention->add(p->key, r.hold, spec.attempt, identity, kNever);
    maybe_attach(s, *p);
    compute(s, p);
    // Now and then the gateway does not wait for the old attempt's end.
    if (chance(faults_.crash * 0.2)) at(rng_.below(30'000), [this, index] { dispatch(index); });
    if (chance(faults_.crash)) at(rng_.below(20'000), [this, &s] { crash(s); });
  }

  // ------------------------------------------------------------------------------------------------ source workers
  void maybe_attach(Source& s, Prompt& p) {
    if (p.lease == LeaseId() || p.sender().state() != Sender::State::kQueued) return;
    for (auto& path : paths_) {
      if (path->source == &s && path->target == leases_.at(p.lease).target && path->up && path->greeted) p.sender().attach(now_);
    }
  }
  void compute(Source& s, std::shared_ptr<Prompt> p) {
    at(rng_.below(3000), [this, &s, p] {
      if (!p->kv_held) return;
      const Request& r = requests_[p->request];
      if (p->layers_done == 0) p->tokens_done = std::min(r.n_tokens, p->tokens_done + 1 + static_cast<std::int32_t>(rng_.below(30)));
      const int layer = p->layers_done++;
      write_rows(*s.pool, p->blocks, r.content, layer, {0, p->tokens_done});
      p->sender().layer_ready(now_, layer, 0, p->tokens_done);
      if (p->layers_done == kLayers) {
        p->layers_done = 0;
        if (p->tokens_done == r.n_tokens) {
          std::vector<FirstToken> first;
          for (int c = 0; c < r.choices; ++c) first.push_back({{c, r.n_tokens, c + 5, std::nullopt, {}}, std::nullopt});
          const bool no_kv = rng_.below(12) == 0;
          if (no_kv) {
            for (auto& f : first) f.finish = wire::FinishEvent{f.token.choice, wire::FinishReason::kStop, 1};
          }
          const bool unattended = p->sender().ended();
          p->sender().first_tokens(now_, first);
          if (unattended && no_kv) give_up(p->request);
          return;
        }
      }
      compute(s, p);
    });
  }
  void scramble(Source& s, Prompt& p) {
    for (int layer = 0; layer < kLayers; ++layer) {
      write_rows(*s.pool, p.blocks, rng_.next_u64(), layer, {0, requests_[p.request].n_tokens});
    }
  }
  // Everything that the source knew is gone; its memory is still mapped by D, with whatever is in it.
  void crash(Source& s) {
    for (auto& path : paths_) {
      if (path->source == &s) cut(*path);
    }
    std::vector<int> orphans;
    for (auto& [key, p] : s.prompts) {
      p->kv_held = false;
      scramble(s, *p);
      orphans.push_back(p->request);
    }
    s.prompts.clear();
    s.used.clear();
    s.retention = std::make_unique<Retention>(kRetention);
    for (int index : orphans) at(rng_.below(20'000), [this, index] { dispatch(index); });
  }
  void close_leg(Source& s, Prompt& p, const Status& why) {
    p.wanted = false;
    s.retention->remove(p.key);
    p.sender().cancel(now_, why);
  }
  void drain(Source& s) {
    for (bool again = true; again;) {
      again = false;
      for (auto& [key, p] : std::map(s.prompts)) {
        for (std::size_t i = 0; i < p->tries.size(); ++i) again |= take_actions(s, *p, i, true);
        for (auto& t : p->tries) {
          if (t->next_deadline() <= now_) t->tick(now_);
        }
        const bool over = std::all_of(p->tries.begin(), p->tries.end(), [](const auto& t) { return t->over(); });
        if (p->wanted || !over || !s.prompts.contains(key)) continue;
        EXPECT_TRUE(p->kv_held);
        p->kv_held = false;
        scramble(s, *p);  // the next owner writes at once
        for (BlockId b : p->blocks) s.used.erase(b.value);
        s.prompts.erase(key);
      }
      for (const auto& drop : s.retention->take_drops()) {
        again = true;
        ++(drop.why.message().starts_with("nobody") ? count.dropped_in_time : count.dropped_for_room);
        Prompt& p = *s.prompts.at(drop.key);
        p.wanted = false;
        p.sender().cancel(now_, drop.why);
        if (p.lease == LeaseId()) at(rng_.below(5000), [this, index = p.request] { dispatch(index); });
      }
    }
  }
  bool take_actions(Source& s, Prompt& p, std::size_t i, bool with_outcome) {
    auto actions = p.tries[i]->take_actions();
    for (auto& a : actions) {
      if (auto* send = std::get_if<Sender::Send>(&a)) {
        // The bug that the digest is there for: KV given away after it was announced and before it was fetched.
        if (std::holds_alternative<Commit>(send->message) && chance(faults_.early_reuse)) {
          scramble(s, p);
          p.wanted = false;
          s.retention->remove(p.key);
        }
        const Target* to = leases_.at(p.tries[i]->key().lease).target;
        for (auto& path : paths_) {
          if (path->source == &s && path->target == to) to_d(*path, send->message);
        }
      }
      if (auto* digest = std::get_if<Sender::DigestChunk>(&a)) digest_chunk(s, s.prompts.at(p.key), *p.tries[i], *digest);
      if (auto* outcome = std::get_if<Sender::Outcome>(&a); outcome != nullptr && with_outcome) on_outcome(s, p, *outcome);
    }
    return !actions.empty();
  }
  void digest_chunk(Source& s, std::shared_ptr<Prompt> p, Sender& sender, const Sender::DigestChunk& a) {
    at(rng_.below(500), [&s, p, &sender, a, this] {
      const int bt = s.pool->spec().block_tokens;
      const Range b = block_range(a.tokens, bt);
      const auto blocks = std::span(p->blocks).subspan(b.begin, b.size());
      const auto runs = plan_local({s.pool->parts(), blocks, b.begin * bt}, a.layer, a.heads, a.tokens);
      ASSERT_TRUE(runs.ok());
      sender.digested(now_, a.id, digest_runs(s.pool->bytes(), *runs), locator_from_blocks(blocks.data(), blocks.size()));
    });
  }
  // As HandoffSource::ended: what is not P's own fault is retained, and the gateway does with it as it likes.
  void on_outcome(Source& s, Prompt& p, const Sender::Outcome& o) {
    const Request& r = requests_[p.request];
    const bool unclaimed = o.state == Sender::State::kUnclaimed;
    const bool nobodys_fault = unclaimed || (o.state == Sender::State::kNacked && retryable(o.status.code()));
    EXPECT_TRUE(o.state != Sender::State::kAcked || r.over || leases_.at(p.lease).committed) << "an ack without a commit";
    if (nobodys_fault && p.wanted && !r.over && s.retention->retain(now_, p.key, static_cast<std::int32_t>(p.blocks.size()))) {
      if (unclaimed) return;  // it waits for its lease
    } else {
      p.wanted = false;
      s.retention->remove(p.key);
    }
    if (o.state == Sender::State::kNoKv) return give_up(p.request);
    if (o.state == Sender::State::kAcked) return;
    at(chance(faults_.late_claim) ? 100'000 + rng_.below(100'000) : rng_.below(5000), [this, index = p.request] { dispatch(index); });
  }

  // ------------------------------------------------------------------------------------------------ target workers
  void drain(Target& t) {
    for (;;) {
      auto actions = t.receiver->take_actions();
      if (actions.empty()) return;
      for (auto& a : actions) std::visit([&](auto& x) { act(t, x); }, a);
    }
  }
  void act(Target&, Receiver::SendTo& a) { to_p(a.link, a.message); }
  void act(Target&, Receiver::CloseLink& a) {
    readers_.erase(a.link);
    open_[a.link] = false;
    Path& p = *path_of(a.link);
    at(rng_.below(2000), [this, &p, link = a.link] {
      if (p.link == link) source_lost_link(p);
    });
  }
  void act(Target& t, Receiver::OpenPeer& a) {
    at(rng_.below(2000), [this, &t, link = a.link] { t.receiver->peer_opened(now_, link, Status()); });
  }
  void act(Target& t, Receiver::TakeBlocks& a) {
    at(rng_.below(200), [this, &t, id = a.lease] {
      Lease& lease = leases_.at(id);
      const Request& r = requests_.at(lease.request);
      ASSERT_FALSE(lease.granted);
      const int bt = t.pool->spec().block_tokens;
      const auto want = static_cast<std::size_t>((r.n_tokens + bt - 1) / bt);
      std::vector<BlockId> blocks;
      for (BlockId b : random_blocks(rng_, kTargetBlocks, kTargetBlocks)) {
        if (blocks.size() < want && t.owner[static_cast<std::size_t>(b.value)].lease == LeaseId()) blocks.push_back(b);
      }
      if (blocks.size() < want) return t.receiver->granted(now_, id, Status(Code::kResourceExhausted, "no blocks"));
      lease.blocks = blocks;
      lease.granted = true;
      lease.cached = std::min(r.n_tokens, static_cast<std::int32_t>(rng_.below(3)) * bt);
      for (BlockId b : blocks) t.owner[static_cast<std::size_t>(b.value)] = {id, false};
      for (int layer = 0; layer < kLayers; ++layer) write_rows(*t.pool, blocks, r.content, layer, {0, lease.cached});
      t.receiver->granted(now_, id, Receiver::Blocks{lease.cached, blocks});
    });
  }
  void act(Target& t, Receiver::Fetch& a) {
    // Reads at one moment, lands at another.
    at(rng_.below(500), [this, &t, a] {
      const Source& source = *path_of(a.link)->source;
      const int from_bt = source.pool->spec().block_tokens;
      auto locator = blocks_from_locator(a.locator, kSourceBlocks);
      ASSERT_TRUE(locator.ok());
      auto plan = plan_copy({source.pool->parts(), *locator, a.tokens.begin / from_bt * from_bt},
                            {t.pool->parts(), a.target, a.target_first}, a.layer, a.heads, a.tokens);
      ASSERT_TRUE(plan.ok()) << plan.status().to_string();
      std::vector<std::vector<std::byte>> snapshot;
      for (const auto part : source.pool->bytes()) snapshot.emplace_back(part.begin(), part.end());
      at(chance(faults_.stall) ? rng_.below(20'000'000) : rng_.below(3000), [this, &t, a, plan = *plan, snapshot] {
        for (BlockId b : a.target) {  // the physical end of an attempt has not come while we write
          ASSERT_EQ(t.owner[static_cast<std::size_t>(b.value)].lease, a.lease) << "a fetch writes into a block of another lease";
          ASSERT_FALSE(t.owner[static_cast<std::size_t>(b.value)].committed) << "a fetch writes into committed KV";
        }
        const auto own = t.pool->bytes();
        Digest digest = copy_and_digest(std::vector<std::span<const std::byte>>(snapshot.begin(), snapshot.end()), own, plan);
        if (chance(faults_.corrupt)) {
          const ByteRun& first = plan.runs[0];
          own[static_cast<std::size_t>(first.target_part)][static_cast<std::size_t>(first.target)] ^= std::byte{1};
          digest = digest_runs(own, plan.runs);
          ++count.mismatches;
          count.mismatches_after_claim += leases_.at(a.lease).claimed;
        }
        if (chance(faults_.fetch_fails)) return t.receiver->fetched(now_, a.id, Status(Code::kUnavailable, "fabric"));
        t.receiver->fetched(now_, a.id, digest);
      });
    });
  }
  void act(Target&, Receiver::CancelFetch&) {}  // a fabric may finish all the same
  void act(Target& t, Receiver::StartDecode& a) {
    Lease& lease = leases_.at(a.lease);
    const Request& r = requests_.at(lease.request);
    EXPECT_FALSE(lease.committed) << "committed twice";
    EXPECT_FALSE(r.over);
    EXPECT_EQ(r.lease, a.lease) << "a lease that was given up decodes";
    EXPECT_EQ(a.first.size(), static_cast<std::size_t>(r.choices));
    lease.committed = true;
    ++count.committed;
    count.committed_after_claim += lease.claimed;
    for (BlockId b : lease.blocks) t.owner[static_cast<std::size_t>(b.value)].committed = true;
    EXPECT_TRUE(holds_its_rows(lease)) << "committed KV is wrong";
    EXPECT_EQ(a.kv_bytes, static_cast<std::uint64_t>(r.n_tokens - lease.cached) * 2 * kLayers * kHeads * t.pool->spec().row_bytes());
    at(rng_.below(200'000), [this, id = a.lease] { finish_decode(id); });
  }
  bool holds_its_rows(const Lease& lease) {
    const Request& r = requests_.at(lease.request);
    bool right = true;
    for (int layer = 0; layer < kLayers; ++layer) right &= rows_equal(*lease.target->pool, lease.blocks, r.content, layer, {0, r.n_tokens});
    return right;
  }
  void free_blocks(Lease& lease) {
    EXPECT_FALSE(lease.freed) << "freed twice";
    lease.freed = true;
    for (BlockId b : lease.blocks) lease.target->owner[static_cast<std::size_t>(b.value)] = {};
  }
  void finish_decode(LeaseId id) {
    Lease& lease = leases_.at(id);
    if (lease.freed) return;
    EXPECT_TRUE(holds_its_rows(lease)) << "committed KV was overwritten";
    requests_.at(lease.request).over = true;
    free_blocks(lease);
    lease.target->receiver->cancel(now_, id, Status());
  }
  void act(Target&, Receiver::AttemptFailed& a) {
    EXPECT_TRUE(a.times.failure);
    EXPECT_GE(a.times.ended_us, a.times.attached_us);
  }
  void act(Target&, Receiver::LeaseFailed& a) {
    const Lease& lease = leases_.at(a.lease);
    EXPECT_FALSE(lease.committed);
    if (requests_.at(lease.request).lease == a.lease) give_up(lease.request);
  }
  void act(Target&, Receiver::FreeLease& a) {
    Lease& lease = leases_.at(a.lease);
    EXPECT_FALSE(lease.committed);
    free_blocks(lease);
    ++count.ended_otherwise;
  }

  void tick_later() {
    at(20'000, [this] {
      for (auto& t : targets_) t->receiver->tick(now_);
      for (auto& s : sources_) {
        s->retention->tick(now_);
        for (auto& [key, p] : s->prompts) {
          for (auto& t : p->tries) t->tick(now_);
        }
      }
      // Frames of the past, said again.
      if (!seen_.empty() && rng_.below(40) == 0) {
        const auto& [link, m] = seen_[rng_.below(seen_.size())];
        if (!std::holds_alternative<Hello>(m)) path_of(link)->target->receiver->message(now_, link, m);
      }
      std::size_t live = 0;
      for (auto& t : targets_) {
        for (const int n : t->receiver->stats(now_).by_state) live += static_cast<std::size_t>(n);
      }
      for (auto& s : sources_) live += s->prompts.size();
      if (live > 0 || now_ < TimePoint(std::chrono::seconds(3))) tick_later();
    });
  }
  void check_quiescence() {
    for (auto& t : targets_) {
      for (const auto& owner : t->owner) EXPECT_EQ(owner.lease, LeaseId()) << "a block leaked at D";
      EXPECT_EQ(t->receiver->stats(now_).fetches_in_flight, 0u);
    }
    for (auto& s : sources_) {
      EXPECT_TRUE(s->used.empty()) << "a block leaked at P";
      EXPECT_EQ(s->retention->stats(now_).blocks, 0);
    }
    for (auto& [id, lease] : leases_) EXPECT_TRUE(lease.freed) << "lease " << id.value << " has no end";
    for (auto& [index, r] : requests_) EXPECT_TRUE(r.over) << "request " << index << " has no end";
  }

  Counts& count;
  Rng rng_;
  Faults faults_;
  TimePoint now_{};
  std::priority_queue<Event> events_;
  std::uint64_t order_ = 0, links_made_ = 0, leases_made_ = 0;
  PromptKey prompts_made_ = 0;
  std::int64_t steps_ = 0;
  std::vector<std::unique_ptr<Target>> targets_;
  std::vector<std::unique_ptr<Source>> sources_;
  std::vector<std::unique_ptr<Path>> paths_;
  std::map<LinkId, std::unique_ptr<FrameReader>> readers_;
  std::map<LinkId, bool> open_;
  std::map<LinkId, Path*> links_of_;
  std::map<int, Request> requests_;
  std::map<LeaseId, Lease> leases_;
  std::vector<std::pair<LinkId, Message>> seen_;
};

TEST(ProtocolSim, NothingIsLostWhateverHappens) {
  Counts n;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    World(seed, n).run(12);
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_EQ(n.committed + n.ended_otherwise, n.leases) << "each lease ends once, in one way";
  EXPECT_GT(n.committed, 1500);
  EXPECT_GT(n.ended_otherwise, 200);
  EXPECT_GT(n.mismatches, 50);
  // Claims of every kind were there, and went on to commits.
  EXPECT_GT(n.claimed_retained, 100);
  EXPECT_GT(n.claimed_computing, 100);
  EXPECT_GT(n.claimed_elsewhere, 100);
  EXPECT_GT(n.committed_after_claim, 300);
  EXPECT_GT(n.mismatches_after_claim, 10);
  EXPECT_GT(n.claims_missed, 20);
  EXPECT_GT(n.claims_refused, 20);
  EXPECT_GT(n.dropped_in_time, 20);
  EXPECT_GT(n.dropped_for_room, 5);
}

}  // namespace
}  // namespace baton::transfer
