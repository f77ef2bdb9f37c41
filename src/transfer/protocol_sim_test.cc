// Receiver and Senders in a small world of their own: virtual time, links that delay, fragment and cut, a fabric that is late, corrupt or
// fails, source workers that die or reuse their memory too early, a gateway that retries and cancels. Every seed is a different mix; a
// failure prints it.
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
#include "transfer/sender.h"
#include "transfer/shm/copy_digest.h"
#include "transfer/test_pool.h"

namespace baton::transfer {
namespace {

using testing::random_blocks;
using testing::random_layout;
using testing::rows_equal;
using testing::TestPool;
using testing::write_rows;

constexpr int kLayers = 3, kHeads = 2;
constexpr Range kAllHeads{0, kHeads};

struct Faults {
  double cut = 0, corrupt = 0, fetch_fails = 0, stall = 0, crash = 0, early_reuse = 0, cancel = 0, wrong_ids = 0, replay = 0;
};

class World {
 public:
  explicit World(std::uint64_t seed) : rng_(seed) {
    const auto sometimes = [&](double p) { return rng_.below(2) == 0 ? 0.0 : p * rng_.uniform(); };
    faults_ = {sometimes(0.02), sometimes(0.1), sometimes(0.1), sometimes(0.05), sometimes(0.3),
               sometimes(0.3),  sometimes(0.4), sometimes(0.2), sometimes(0.1)};
    d_pool_ = make_pool(40, 2 + static_cast<int>(rng_.below(7)));
    d_owner_.assign(40, Owner{});
    LocalWorker local;
    local.incarnation = Incarnation(77);
    local.kv = {kLayers, kHeads, 4, "bf16"};
    local.block_tokens = d_pool_->view().spec.block_tokens;
    local.row_bytes = d_pool_->view().spec.row_bytes();
    ReceiverOptions options;
    options.fetches_max = 1 + rng_.below(6);
    receiver_ = std::make_unique<Receiver>(local, options);
    for (int i = 0; i < 2; ++i) {
      sources_.push_back(std::make_unique<Source>());
      sources_.back()->index = i;
      sources_.back()->pool = make_pool(60, 2 + static_cast<int>(rng_.below(7)));
      connect(*sources_.back());
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
      drain_receiver();
      for (auto& s : sources_) drain_senders(*s);
      if (++steps_ > 2'000'000) {
        ADD_FAILURE() << "no quiescence: a lease does not end";
        return;
      }
    }
    check_quiescence();
  }

  int committed = 0, ended_otherwise = 0, mismatches = 0;

 private:
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
  struct HandOff {  // one attempt at one source
    std::unique_ptr<Sender> sender;
    int request = 0;
    std::vector<BlockId> blocks;
    bool kv_held = true;
    int layers_done = 0;
    std::int32_t tokens_done = 0;
    std::map<std::uint64_t, bool> digests;
  };
  struct Source {
    int index = 0;
    std::unique_ptr<TestPool> pool;
    std::set<std::int32_t> used;
    std::map<LeaseId, std::shared_ptr<HandOff>> handoffs;
    LinkId link;
    bool up = false;  // as the source sees it
    bool greeted = false;
    FrameReader reader;  // what D says
    TimePoint last_to_d, last_to_p;
  };
  struct Request {
    LeaseId lease;
    std::int32_t n_tokens = 0;
    std::uint64_t content = 0;
    int attempt = 0;
    int choices = 1;
    bool over = false;  // for the gateway
    std::vector<BlockId> blocks;
    std::int32_t cached = 0;
    bool granted = false, committed = false, freed = false;
  };

  bool chance(double p) { return rng_.uniform() < p; }
  void at(std::uint64_t in_us, std::function<void()> work) {
    events_.push({now_ + Duration(static_cast<std::int64_t>(in_us)), ++order_, std::move(work)});
  }
  std::unique_ptr<TestPool> make_pool(int blocks, int block_tokens) {
    const auto layout = random_layout(rng_, {kLayers, kHeads, 4, device::DType::kBF16, block_tokens, blocks});
    return std::make_unique<TestPool>(layout.view, layout.bytes);
  }
  std::uint64_t delay() { return chance(faults_.stall) ? rng_.below(40'000'000) : 20 + rng_.below(2000); }

  // ------------------------------------------------------------------------------------------------ links
  void connect(Source& s) {
    s.link = LinkId(++links_made_);
    s.up = true;
    s.greeted = false;
    s.reader = FrameReader();
    s.last_to_d = s.last_to_p = now_;
    links_of_[s.link] = s.index;
    readers_[s.link] = std::make_unique<FrameReader>();
    open_[s.link] = true;
    receiver_->link_up(now_, s.link);
    Hello hello;
    hello.incarnation = Incarnation(links_made_);
    hello.name = "p" + std::to_string(s.index);
    hello.kv = {kLayers, kHeads, 4, "bf16"};
    hello.region = {1, 1, s.pool->shared_region()->bytes, s.pool->view(), kAllHeads};
    to_d(s, hello);
  }
  void to_d(Source& s, const Message& m) {
    if (!s.up) return;
    deliver(encode(m), s.last_to_d, s.link, [this, &s, link = s.link](std::string_view bytes) {
      auto it = readers_.find(link);
      if (it == readers_.end()) return;
      it->second->append(bytes);
      for (;;) {
        auto next = it->second->next();
        ASSERT_TRUE(next.ok()) << next.status().to_string();
        if (!next->has_value()) return;
        if (chance(faults_.replay)) seen_.emplace_back(link, **next);
        receiver_->message(now_, link, std::move(**next));
        drain_receiver();
        if (!readers_.contains(link)) return;
      }
    });
    if (chance(faults_.cut)) cut(s);
  }
  void to_p(LinkId link, const Message& m) {
    for (auto& s : sources_) {
      if (s->link != link || !s->up) continue;
      deliver(encode(m), s->last_to_p, link, [this, s = s.get(), link](std::string_view bytes) {
        if (s->link != link || !s->up) return;
        s->reader.append(bytes);
        for (;;) {
          auto next = s->reader.next();
          ASSERT_TRUE(next.ok());
          if (!next->has_value()) return;
          if (std::holds_alternative<HelloAck>(**next)) s->greeted = true;
          for (auto& [lease, h] : s->handoffs) h->sender->message(now_, **next);
          if (s->greeted) {
            for (auto& [lease, h] : s->handoffs) maybe_attach(*s, *h);
          }
        }
      });
      if (chance(faults_.cut)) cut(*s);
      return;
    }
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
  void cut(Source& s) {
    if (!s.up || !open_[s.link]) return;
    const LinkId link = s.link;
    open_[link] = false;
    at(rng_.below(5000), [this, link] {
      if (readers_.erase(link) > 0) receiver_->link_down(now_, link);
    });
    at(rng_.below(5000), [this, &s, link] {
      if (s.link == link) source_lost_link(s);
    });
  }
  void source_lost_link(Source& s) {
    if (!s.up) return;
    s.up = false;
    for (auto& [lease, h] : s.handoffs) h->sender->link_down(now_, Status(Code::kUnavailable, "cut"));
    at(1000 + rng_.below(100'000), [this, &s] {
      if (!s.up) connect(s);
    });
  }

  // ------------------------------------------------------------------------------------------------ gateway
  void arrive(int index) {
    Request& r = requests_[index];
    r.lease = LeaseId(1000 + static_cast<std::uint64_t>(index));
    r.n_tokens = 1 + static_cast<std::int32_t>(rng_.below(60));
    r.content = rng_.next_u64();
    r.choices = 1 + static_cast<int>(rng_.below(3));
    LeaseSpec spec{r.lease, "r" + std::to_string(index), r.n_tokens, ids_of(r), 0, r.choices, now_ + std::chrono::minutes(5)};
    ASSERT_TRUE(receiver_->reserve(now_, spec).ok());
    by_lease_[r.lease] = index;
    dispatch(index);
    if (chance(faults_.cancel)) at(rng_.below(300'000), [this, index] { give_up(index); });
  }
  static Digest ids_of(const Request& r) { return {r.content, static_cast<std::uint64_t>(r.n_tokens)}; }
  void give_up(int index) {
    Request& r = requests_[index];
    if (r.over) return;
    r.over = true;
    receiver_->cancel(now_, r.lease, Status(Code::kCancelled, "client gone"));
    for (auto& s : sources_) {
      auto it = s->handoffs.find(r.lease);
      if (it != s->handoffs.end()) it->second->sender->cancel(now_, Status(Code::kCancelled, "client gone"));
    }
    if (r.committed) finish_decode(index);
  }
  void dispatch(int index) {
    Request& r = requests_[index];
    if (r.over || r.committed) return;
    if (r.attempt >= 6) return give_up(index);
    Source& s = *sources_[static_cast<std::size_t>(r.attempt + index) % sources_.size()];
    if (s.handoffs.contains(r.lease)) {  // its last attempt there is not physically over
      at(50'000, [this, index] { dispatch(index); });
      return;
    }
    const auto bt = s.pool->view().spec.block_tokens;
    const auto want = static_cast<std::size_t>((r.n_tokens + bt - 1) / bt);
    std::vector<BlockId> blocks;
    for (BlockId b : random_blocks(rng_, 60, 60)) {
      if (blocks.size() < want && !s.used.contains(b.value)) blocks.push_back(b);
    }
    if (blocks.size() < want) {
      at(50'000, [this, index] { dispatch(index); });
      return;
    }
    ++r.attempt;
    auto h = std::make_shared<HandOff>();
    h->request = index;
    h->blocks = blocks;
    for (BlockId b : blocks) s.used.insert(b.value);
    SenderSpec spec;
    spec.lease = r.lease;
    spec.attempt = Attempt(static_cast<std::uint32_t>(r.attempt));
    spec.request_id = "r" + std::to_string(index);
    spec.n_tokens = r.n_tokens;
    spec.ids = ids_of(r);
    if (chance(faults_.wrong_ids)) spec.ids.low ^= 1;
    spec.layers = kLayers;
    spec.heads = kAllHeads;
    spec.row_bytes = s.pool->view().spec.row_bytes();
    spec.block_tokens = bt;
    spec.deadline = now_ + std::chrono::minutes(5);
    SenderOptions options;
    options.digests_max = 1 + static_cast<int>(rng_.below(4));
    options.chunk_tokens_max = 1 + static_cast<std::int32_t>(rng_.below(40));
    h->sender = std::make_unique<Sender>(spec, options);
    s.handoffs[r.lease] = h;
    maybe_attach(s, *h);
    compute(s, h);
    // Now and then the gateway does not wait for the old attempt's end.
    if (chance(faults_.crash * 0.2)) at(rng_.below(30'000), [this, index] { dispatch(index); });
    if (chance(faults_.crash)) at(rng_.below(20'000), [this, &s, h] { crash(s, h); });
  }

  // ------------------------------------------------------------------------------------------------ source workers
  void maybe_attach(Source& s, HandOff& h) {
    if (s.up && s.greeted) h.sender->attach(now_);
  }
  void compute(Source& s, std::shared_ptr<HandOff> h) {
    at(rng_.below(3000), [this, &s, h] {
      if (!h->kv_held) return;
      const Request& r = requests_[h->request];
      if (h->layers_done == 0) h->tokens_done = std::min(r.n_tokens, h->tokens_done + 1 + static_cast<std::int32_t>(rng_.below(30)));
      const int layer = h->layers_done++;
      write_rows(*s.pool, kAllHeads, h->blocks, r.content, layer, {0, h->tokens_done});
      h->sender->layer_ready(now_, layer, 0, h->tokens_done);
      if (h->layers_done == kLayers) {
        h->layers_done = 0;
        if (h->tokens_done == r.n_tokens) {
          std::vector<FirstToken> first;
          for (int c = 0; c < r.choices; ++c) first.push_back({{c, r.n_tokens, c + 5, std::nullopt, {}}, std::nullopt});
          if (rng_.below(12) == 0) {
            for (auto& f : first) f.finish = wire::FinishEvent{f.token.choice, wire::FinishReason::kStop, 1};
          }
          h->sender->first_tokens(now_, first);
          return;
        }
      }
      compute(s, h);
    });
  }
  void scramble(Source& s, HandOff& h) {
    for (int layer = 0; layer < kLayers; ++layer) {
      write_rows(*s.pool, kAllHeads, h.blocks, rng_.next_u64(), layer, {0, requests_[h.request].n_tokens});
    }
  }
  // Everything that the source knew is gone; its memory is still mapped by D, with whatever is in it.
  void crash(Source& s, std::shared_ptr<HandOff>) {
    cut(s);
    std::vector<int> orphans;
    for (auto& [lease, h] : s.handoffs) {
      h->kv_held = false;
      scramble(s, *h);
      orphans.push_back(h->request);
    }
    s.handoffs.clear();
    s.used.clear();
    for (int index : orphans) at(rng_.below(20'000), [this, index] { dispatch(index); });
  }
  void drain_senders(Source& s) {
    for (bool again = true; again;) {
      again = false;
      for (auto& [lease, h] : std::map(s.handoffs)) {
        for (auto& a : h->sender->take_actions()) {
          again = true;
          if (auto* send = std::get_if<Sender::Send>(&a)) {
            // The bug that the digest is there for: KV given away after it was announced and before it was fetched.
            if (std::holds_alternative<Commit>(send->message) && chance(faults_.early_reuse)) scramble(s, *h);
            to_d(s, send->message);
          }
          if (auto* digest = std::get_if<Sender::DigestChunk>(&a)) digest_chunk(s, h, *digest);
          if (auto* outcome = std::get_if<Sender::Outcome>(&a)) on_outcome(h->request, *outcome);
          if (std::holds_alternative<Sender::ReleaseKv>(a)) {
            EXPECT_TRUE(h->kv_held);
            h->kv_held = false;
            scramble(s, *h);  // the next owner writes at once
            for (BlockId b : h->blocks) s.used.erase(b.value);
            s.handoffs.erase(lease);
          }
        }
        if (h->sender->next_deadline() <= now_) h->sender->tick(now_);
      }
    }
  }
  void digest_chunk(Source& s, std::shared_ptr<HandOff> h, const Sender::DigestChunk& a) {
    at(rng_.below(500), [this, &s, h, a] {
      const int bt = s.pool->view().spec.block_tokens;
      const Range b = block_range(a.tokens, bt);
      const auto blocks = std::span(h->blocks).subspan(b.begin, b.size());
      const auto runs = plan_local({s.pool->view(), kAllHeads, blocks, b.begin * bt}, a.layer, a.heads, a.tokens);
      ASSERT_TRUE(runs.ok());
      h->sender->digested(now_, a.id, digest_runs(s.pool->shared_region()->base, *runs), locator_from_blocks(blocks.data(), blocks.size()));
    });
  }
  void on_outcome(int index, const Sender::Outcome& o) {
    Request& r = requests_[index];
    if (o.state == Sender::State::kAcked) {
      EXPECT_TRUE(r.committed || r.over) << "an ack without a commit";
    } else if (o.state == Sender::State::kNoKv) {
      give_up(index);
    } else {
      at(rng_.below(5000), [this, index] { dispatch(index); });
    }
  }

  // ------------------------------------------------------------------------------------------------ the target worker
  Request& of(LeaseId lease) { return requests_.at(by_lease_.at(lease)); }
  void drain_receiver() {
    for (;;) {
      auto actions = receiver_->take_actions();
      if (actions.empty()) return;
      for (auto& a : actions) std::visit([this](auto& x) { act(x); }, a);
    }
  }
  void act(Receiver::SendTo& a) { to_p(a.link, a.message); }
  void act(Receiver::CloseLink& a) {
    readers_.erase(a.link);
    open_[a.link] = false;
    for (auto& s : sources_) {
      if (s->link == a.link)
        at(rng_.below(2000), [this, s = s.get(), link = a.link] {
          if (s->link == link) source_lost_link(*s);
        });
    }
  }
  void act(Receiver::OpenPeer& a) {
    at(rng_.below(2000), [this, link = a.link] { receiver_->peer_opened(now_, link, Status()); });
  }
  void act(Receiver::TakeBlocks& a) {
    const LeaseId lease = a.lease;
    at(rng_.below(200), [this, lease] {
      Request& r = of(lease);
      ASSERT_FALSE(r.granted);
      const int bt = d_pool_->view().spec.block_tokens;
      const auto want = static_cast<std::size_t>((r.n_tokens + bt - 1) / bt);
      std::vector<BlockId> blocks;
      for (BlockId b : random_blocks(rng_, 40, 40)) {
        if (blocks.size() < want && d_owner_[b.value].lease == LeaseId()) blocks.push_back(b);
      }
      if (blocks.size() < want) return receiver_->granted(now_, lease, Status(Code::kResourceExhausted, "no blocks"));
      r.blocks = blocks;
      r.granted = true;
      r.cached = std::min(r.n_tokens, static_cast<std::int32_t>(rng_.below(3)) * bt);
      for (BlockId b : blocks) d_owner_[b.value] = {lease, false};
      for (int layer = 0; layer < kLayers; ++layer) write_rows(*d_pool_, kAllHeads, blocks, r.content, layer, {0, r.cached});
      receiver_->granted(now_, lease, Receiver::Blocks{r.cached, blocks});
    });
  }
  void act(Receiver::Fetch& a) {
    // Reads at one moment, lands at another.
    at(rng_.below(500), [this, a] {
      Source* source = nullptr;
      for (auto& s : sources_) {
        if (hello_of(a.link) == s->index) source = s.get();
      }
      ASSERT_NE(source, nullptr);
      const int from_bt = source->pool->view().spec.block_tokens;
      auto locator = blocks_from_locator(a.locator, 60);
      ASSERT_TRUE(locator.ok());
      auto runs = plan_runs({source->pool->view(), kAllHeads, *locator, a.tokens.begin / from_bt * from_bt},
                            {d_pool_->view(), kAllHeads, a.target, a.target_first}, a.layer, a.heads, a.tokens);
      ASSERT_TRUE(runs.ok()) << runs.status().to_string();
      std::vector<std::byte> snapshot(source->pool->shared_region()->base,
                                      source->pool->shared_region()->base + source->pool->shared_region()->bytes);
      at(chance(faults_.stall) ? rng_.below(20'000'000) : rng_.below(3000), [this, a, runs = *runs, snapshot] {
        for (BlockId b : a.target) {  // the physical end of an attempt has not come while we write
          ASSERT_EQ(d_owner_[b.value].lease, a.lease) << "a fetch writes into a block of another lease";
          ASSERT_FALSE(d_owner_[b.value].committed) << "a fetch writes into committed KV";
        }
        Digest digest = copy_and_digest(snapshot.data(), d_pool_->shared_region()->base, runs);
        if (chance(faults_.corrupt)) {
          d_pool_->shared_region()->base[runs[0].target] ^= std::byte{1};
          digest = digest_runs(d_pool_->shared_region()->base, runs);
          ++mismatches;
        }
        if (chance(faults_.fetch_fails)) return receiver_->fetched(now_, a.id, Status(Code::kUnavailable, "fabric"));
        receiver_->fetched(now_, a.id, digest);
      });
    });
  }
  void act(Receiver::CancelFetch&) {}  // a fabric may finish all the same
  void act(Receiver::StartDecode& a) {
    Request& r = of(a.lease);
    EXPECT_FALSE(r.committed) << "committed twice";
    EXPECT_FALSE(r.over);
    EXPECT_EQ(a.first.size(), static_cast<std::size_t>(r.choices));
    r.committed = true;
    ++committed;
    for (BlockId b : r.blocks) d_owner_[b.value].committed = true;
    for (int layer = 0; layer < kLayers; ++layer) {
      EXPECT_TRUE(rows_equal(*d_pool_, kAllHeads, r.blocks, r.content, layer, {0, r.n_tokens})) << "committed KV is wrong";
    }
    EXPECT_EQ(a.kv_bytes, static_cast<std::uint64_t>(r.n_tokens - r.cached) * 2 * kLayers * kHeads * d_pool_->view().spec.row_bytes());
    const int index = by_lease_.at(a.lease);
    at(rng_.below(200'000), [this, index] { finish_decode(index); });
  }
  void finish_decode(int index) {
    Request& r = requests_[index];
    if (r.freed) return;
    for (int layer = 0; layer < kLayers; ++layer) {
      EXPECT_TRUE(rows_equal(*d_pool_, kAllHeads, r.blocks, r.content, layer, {0, r.n_tokens})) << "committed KV was overwritten";
    }
    r.over = r.freed = true;
    for (BlockId b : r.blocks) d_owner_[b.value] = {};
    receiver_->cancel(now_, r.lease, Status());
  }
  void act(Receiver::AttemptFailed& a) {
    EXPECT_TRUE(a.times.failure);
    EXPECT_GE(a.times.ended_us, a.times.attached_us);
  }
  void act(Receiver::LeaseFailed& a) {
    Request& r = of(a.lease);
    EXPECT_FALSE(r.committed);
    give_up(by_lease_.at(a.lease));
  }
  void act(Receiver::FreeLease& a) {
    Request& r = of(a.lease);
    EXPECT_FALSE(r.committed);
    EXPECT_FALSE(r.freed) << "freed twice";
    r.freed = true;
    ++ended_otherwise;
    for (BlockId b : r.blocks) d_owner_[b.value] = {};
  }
  int hello_of(LinkId link) const { return links_of_.contains(link) ? links_of_.at(link) : -1; }

  void tick_later() {
    at(200'000, [this] {
      receiver_->tick(now_);
      for (auto& s : sources_) {
        for (auto& [lease, h] : s->handoffs) h->sender->tick(now_);
      }
      // Frames of the past, said again.
      if (!seen_.empty() && rng_.below(4) == 0) {
        const auto& [link, m] = seen_[rng_.below(seen_.size())];
        if (!std::holds_alternative<Hello>(m)) receiver_->message(now_, link, m);
      }
      const auto stats = receiver_->stats(now_);
      int live = 0;
      for (int i = 0; i < Receiver::kStates; ++i) live += stats.by_state[i];
      for (auto& s : sources_) live += static_cast<int>(s->handoffs.size());
      if (live > 0 || now_ < TimePoint(std::chrono::seconds(3))) tick_later();
    });
  }
  void check_quiescence() {
    for (const auto& owner : d_owner_) EXPECT_EQ(owner.lease, LeaseId()) << "a block leaked at D";
    for (auto& s : sources_) EXPECT_TRUE(s->used.empty()) << "a block leaked at P";
    for (auto& [index, r] : requests_) EXPECT_TRUE(r.freed) << "request " << index << " has no end";
    EXPECT_EQ(receiver_->stats(now_).fetches_in_flight, 0u);
  }

  Rng rng_;
  Faults faults_;
  TimePoint now_{};
  std::priority_queue<Event> events_;
  std::uint64_t order_ = 0, links_made_ = 0;
  std::int64_t steps_ = 0;
  std::unique_ptr<TestPool> d_pool_;
  std::vector<Owner> d_owner_;
  std::unique_ptr<Receiver> receiver_;
  std::vector<std::unique_ptr<Source>> sources_;
  std::map<LinkId, std::unique_ptr<FrameReader>> readers_;
  std::map<LinkId, bool> open_;
  std::map<LinkId, int> links_of_;
  std::map<int, Request> requests_;
  std::map<LeaseId, int> by_lease_;
  std::vector<std::pair<LinkId, Message>> seen_;
};

TEST(ProtocolSim, NothingIsLostWhateverHappens) {
  int committed = 0, otherwise = 0, mismatches = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    World world(seed);
    world.run(12);
    committed += world.committed;
    otherwise += world.ended_otherwise;
    mismatches += world.mismatches;
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_EQ(committed + otherwise, 300 * 12) << "each lease ends once, in one way";
  EXPECT_GT(committed, 1500);
  EXPECT_GT(otherwise, 200);
  EXPECT_GT(mismatches, 50);
}

}  // namespace
}  // namespace baton::transfer
