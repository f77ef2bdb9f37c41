#pragma once
// For tests of workers: workers with real sockets, pools and hand-offs in one process, and what a gateway sees of their legs.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "net/http.h"
#include "net/link.h"
#include "worker/test_engine.h"
#include "worker/worker.h"

namespace baton::worker::testing {

using transfer::testing::TestPool;

inline device::KvSpec spec_of(int block_tokens, int blocks) { return {4, 2, 16, device::DType::kBF16, block_tokens, blocks}; }

struct TestWorker {
  TestWorker(net::EventLoop& loop, const std::string& name, int block_tokens, int blocks,
             const std::function<void(WorkerOptions&)>& change = {})
      : pool(device::KvView::dense(spec_of(block_tokens, blocks)), spec_of(block_tokens, blocks).bytes()) {
    auto own = std::make_unique<KvExecutor>(loop, pool);
    executor = own.get();
    engine::EngineOptions e;
    e.kv_blocks = blocks;
    e.block_tokens = block_tokens;
    e.max_num_batched_tokens = 64;
    engine = engine::Engine::create(loop, std::move(own), e);
    WorkerOptions o;
    o.name = name;
    o.incarnation = Incarnation(std::hash<std::string>()(name) | 1);
    o.lease_key = 99;
    o.model_digest = "m";
    o.numerics_id = "n";
    o.kv = {4, 2, 16, "bf16"};
    if (change) change(o);
    worker = std::move(Worker::create(loop, *engine, {&rank, 1}, o)).value();
  }
  bool idle() const {
    const auto s = worker->status();
    return s.running == 0 && s.waiting == 0 && s.blocks_free + s.blocks_cached == s.blocks_total && engine->status().blocks_reserved == 0;
  }
  TestPool pool;
  const transfer::RankPool rank{&pool, {0, pool.view().spec.kv_heads}};
  KvExecutor* executor;
  std::unique_ptr<engine::Engine> engine;
  std::unique_ptr<Worker> worker;
};

// A client's view of one leg.
struct LegCall {
  int status = 0;
  std::string retry_after, body;
  std::vector<wire::LegEvent> events;
  std::optional<Status> done;
  std::unique_ptr<net::HttpCall> call;

  template <class T>
  const T* find() const {
    for (const auto& e : events) {
      if (const auto* x = std::get_if<T>(&e)) return x;
    }
    return nullptr;
  }
  template <class T>
  const T* last() const {
    const T* found = nullptr;
    for (const auto& e : events) {
      if (const auto* x = std::get_if<T>(&e)) found = x;
    }
    return found;
  }
  std::map<std::pair<int, std::int32_t>, TokenId> tokens() const {
    std::map<std::pair<int, std::int32_t>, TokenId> out;
    const auto add = [&](const wire::TokenEvent& t) {
      const auto [it, inserted] = out.try_emplace({t.choice, t.position}, t.token);
      EXPECT_EQ(it->second, t.token);
    };
    for (const auto& e : events) {
      if (const auto* c = std::get_if<wire::Committed>(&e)) std::for_each(c->first.begin(), c->first.end(), add);
      if (const auto* t = std::get_if<wire::Tokens>(&e)) std::for_each(t->tokens.begin(), t->tokens.end(), add);
    }
    return out;
  }
  int finishes() const {
    return static_cast<int>(
        std::count_if(events.begin(), events.end(), [](const auto& e) { return std::holds_alternative<wire::FinishEvent>(e); }));
  }
};

// Between P and D on their link: passes frames on, changes or cuts.
class Proxy {
 public:
  Proxy(net::EventLoop& loop, int to_port) : loop_(loop), to_port_(to_port) {
    listener_ = std::move(net::TcpLinkListener::listen(loop, "127.0.0.1", 0, -1, {}, [this](std::unique_ptr<net::Link> l) {
                  on_link(std::move(l));
                })).value();
  }
  int port() const { return listener_->port(); }
  std::function<void(transfer::Message&)> to_d;  // may change a message, or call cut()
  bool mute = false;                             // what D says is swallowed
  void cut() {
    cut_ = true;
    loop_.post([this] {
      from_.reset();
      to_.reset();
    });
  }

 private:
  void on_link(std::unique_ptr<net::Link> link) {
    cut_ = false;
    from_ = std::move(link);
    reader_ = transfer::FrameReader();
    net::connect_tcp(loop_, "127.0.0.1", to_port_, {}, [this](Result<std::unique_ptr<net::Link>> to) {
      to_ = std::move(to).value();
      to_->start({[this](std::string_view b) {
                    if (!cut_ && !mute) (void)from_->send(std::string(b));
                  },
                  [this](const Status&) { cut(); }});
      from_->start({[this](std::string_view b) { pass(b); }, [this](const Status&) { cut(); }});
    });
  }
  void pass(std::string_view bytes) {
    reader_.append(bytes);
    for (;;) {
      auto m = reader_.next();
      ASSERT_TRUE(m.ok());
      if (!m->has_value()) return;
      if (to_d) to_d(**m);
      if (cut_) return;
      ASSERT_TRUE(to_->send(transfer::encode(**m)).ok());
    }
  }
  net::EventLoop& loop_;
  const int to_port_;
  std::unique_ptr<net::TcpLinkListener> listener_;
  std::unique_ptr<net::Link> from_, to_;
  transfer::FrameReader reader_;
  bool cut_ = false;
};

class WorkerTest : public ::testing::Test {
 protected:
  // A call's callbacks hold the leg, and the leg its call.
  void TearDown() override {
    for (auto& leg : legs_) leg->call.reset();
  }
  // Runs the loop until it holds.
  ::testing::AssertionResult until(const std::function<bool()>& condition) {
    const TimePoint end = loop_.clock().now() + std::chrono::seconds(20);
    bool held = false;
    std::function<void()> poll = [&] {
      held = condition();
      if (held || loop_.clock().now() > end) return loop_.stop();
      loop_.after(std::chrono::microseconds(100), poll);
    };
    poll_ = poll;
    loop_.post(poll);
    loop_.run();
    return held ? ::testing::AssertionSuccess() : ::testing::AssertionFailure() << "it did not happen";
  }
  std::shared_ptr<LegCall> call(const TestWorker& w, const std::string& method, const std::string& target, std::string body = "") {
    auto leg = std::make_shared<LegCall>();
    legs_.push_back(leg);
    net::HttpClientRequest r;
    r.method = method;
    r.host = "127.0.0.1";
    r.port = w.worker->http_port();
    r.target = target;
    r.body = std::move(body);
    auto pending = std::make_shared<std::string>();
    leg->call = client_->call(std::move(r), {.on_headers =
                                                 [leg](int status, const net::Headers& h) {
                                                   leg->status = status;
                                                   leg->retry_after = std::string(h.get("retry-after"));
                                                 },
                                             .on_data =
                                                 [leg, pending](std::string_view data) {
                                                   leg->body.append(data);
                                                   if (leg->status != 200) return;
                                                   pending->append(data);
                                                   for (std::size_t at; (at = pending->find('\n')) != std::string::npos;
                                                        pending->erase(0, at + 1)) {
                                                     auto e = wire::leg_event_from_json(std::string_view(*pending).substr(0, at));
                                                     ASSERT_TRUE(e.ok()) << e.status().to_string();
                                                     leg->events.push_back(std::move(e).value());
                                                   }
                                                 },
                                             .on_done = [leg](Status s) { leg->done = std::move(s); }});
    return leg;
  }
  wire::GenerateRequest request(int n_prompt, int max_tokens, int n = 1, std::uint64_t content = 1) {
    wire::GenerateRequest r;
    r.id = "r" + std::to_string(++requests_);
    Rng rng(content);
    for (int i = 0; i < n_prompt; ++i) r.ids.push_back(static_cast<TokenId>(rng.below(kVocab)));
    r.n_prompt = n_prompt;
    r.sampling.max_tokens = max_tokens;
    r.sampling.temperature = n > 1 ? 1.0f : 0.0f;
    r.seed = 7;
    r.n = n;
    r.timeout = std::chrono::seconds(60);
    return r;
  }
  std::shared_ptr<LegCall> decode(const TestWorker& d, const wire::GenerateRequest& r, bool local = false) {
    return call(d, "POST", "/internal/decode", wire::to_json(wire::DecodeLeg{r, Attempt(1), local, {Incarnation(5), ++decode_legs_}}));
  }
  std::shared_ptr<LegCall> prefill(const TestWorker& p, const TestWorker& d, const wire::GenerateRequest& r, LeaseId lease, int attempt = 1,
                                   int port = 0, HoldId claim = {}) {
    return call(p, "POST", "/internal/prefill",
                wire::to_json(wire::PrefillLeg{r, Attempt(static_cast<std::uint32_t>(attempt)), lease, claim, "d", "127.0.0.1",
                                               port ? port : d.worker->link_port(), d.worker->status().incarnation}));
  }
  LeaseId lease_of(const LegCall& leg) {
    EXPECT_TRUE(until([&] { return leg.find<wire::Reserved>() != nullptr || leg.done.has_value(); }));
    const auto* r = leg.find<wire::Reserved>();
    EXPECT_NE(r, nullptr) << leg.body;
    return r ? r->lease : LeaseId();
  }
  void expect_reference(const LegCall& leg, const wire::GenerateRequest& r, int count) {
    const auto tokens = leg.tokens();
    EXPECT_EQ(tokens.size(), static_cast<std::size_t>(r.n * count));
    for (int c = 0; c < r.n; ++c) {
      const auto expected = KvExecutor::reference(r, spec_of(8, 1), c, count);
      for (int i = 0; i < count; ++i) {
        const auto it = tokens.find({c, static_cast<std::int32_t>(r.ids.size()) + i});
        ASSERT_TRUE(it != tokens.end()) << "choice " << c << " token " << i << " is missing";
        ASSERT_EQ(it->second, expected[static_cast<std::size_t>(i)]) << "choice " << c << " token " << i;
      }
    }
  }

  net::EventLoop loop_;
  std::unique_ptr<net::HttpClient> client_ = net::HttpClient::create(loop_);
  std::function<void()> poll_;
  std::vector<std::shared_ptr<LegCall>> legs_;
  int requests_ = 0;
  std::uint64_t decode_legs_ = 0;
};

}  // namespace baton::worker::testing
