// The shell against fake workers in the same process: real HTTP over loopback, workers that do as the test says.

#include "gateway/gateway.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "gateway/line_splitter.h"
#include "net/test_util.h"
#include "wire/kv_report.h"

namespace baton::gateway {
namespace {

using ::testing::HasSubstr;
using wire::Role;

// What the model says at a position: any worker continues a stream alike.
TokenId oracle(std::int32_t position) { return (position * 7919) % 1000; }
wire::TokenEvent token_at(std::int32_t position, int choice = 0) { return {choice, position, oracle(position), {}, {}}; }

// A worker's HTTP side. Legs that arrive are kept in order; by default nothing is answered but the status.
class FakeWorker {
 public:
  struct Leg {
    bool prefill = false;
    wire::DecodeLeg decode;
    wire::PrefillLeg prefill_leg;
    std::shared_ptr<net::HttpResponder> responder;
    bool closed = false;  // by the gateway

    void say(const wire::LegEvent& event) const { responder->write(wire::to_json(event) + "\n"); }
    void end() const { responder->end(); }
  };

  FakeWorker(net::EventLoop& loop, std::string name, Role role) : loop_(loop) {
    status.name = std::move(name);
    status.role = role;
    status.incarnation = Incarnation(1);
    status.model_digest = "m", status.numerics_id = "x";
    status.kv = {2, 2, 64, "bf16"};
    status.ready = true;
    status.link_port = 7;
    status.block_tokens = 16, status.blocks_total = status.blocks_free = 1000, status.max_num_seqs = 16;
    listen(0);
  }
  void listen(int port) {
    net::HttpServerOptions options;
    options.port = port;
    auto server = net::HttpServer::listen(
        loop_, options, [this](net::HttpRequest request, std::shared_ptr<net::HttpResponder> responder) { handle(request, responder); });
    BATON_CHECK_MSG(server.ok(), server.status().to_string());
    server_ = std::move(*server);
    port_ = server_->port();
  }
  // As kill -9 looks from outside: the port is closed and every connection is cut.
  void die() {
    for (auto& leg : legs) leg->responder.reset();
    held_.clear();
    server_.reset();
  }
  WorkerConfig config() const { return {status.name, "127.0.0.1", port_, status.role}; }
  int port() const { return port_; }

  wire::WorkerStatus status;
  bool hold_status = false;                          // polls get no answer
  std::function<void(std::shared_ptr<Leg>)> on_leg;  // after the stream has been started
  std::function<bool(net::HttpResponder&)> refuse;   // answers instead; true if it did
  std::vector<std::shared_ptr<Leg>> legs;
  std::vector<std::string> finish_choices;
  std::string kv;  // the answer to /internal/kv
  bool hold_kv = false;
  int kv_asked = 0;

 private:
  void handle(const net::HttpRequest& request, const std::shared_ptr<net::HttpResponder>& responder) {
    if (request.path == "/internal/status") {
      if (hold_status) return held_.push_back(responder);
      return responder->respond(200, {}, wire::to_json(status));
    }
    if (request.path == "/internal/kv") {
      ++kv_asked;
      if (hold_kv) return held_.push_back(responder);
      return responder->respond(200, {}, kv);
    }
    if (request.path == "/internal/finish_choice") {
      finish_choices.push_back(request.query);
      return responder->respond(204, {}, "");
    }
    if (refuse && refuse(*responder)) return;
    auto leg = std::make_shared<Leg>();
    leg->prefill = request.path == "/internal/prefill";
    if (leg->prefill) {
      auto parsed = wire::prefill_leg_from_json(request.body);
      ASSERT_TRUE(parsed.ok()) << parsed.status().to_string();
      leg->prefill_leg = *parsed;
    } else {
      auto parsed = wire::decode_leg_from_json(request.body);
      ASSERT_TRUE(parsed.ok()) << parsed.status().to_string();
      leg->decode = *parsed;
    }
    leg->responder = responder;
    responder->start_stream(200, {});
    responder->on_close([weak = std::weak_ptr<Leg>(leg)] {
      if (const auto l = weak.lock()) l->closed = true;
    });
    legs.push_back(leg);
    if (on_leg) on_leg(leg);
  }

  net::EventLoop& loop_;
  std::unique_ptr<net::HttpServer> server_;
  int port_ = 0;
  std::vector<std::shared_ptr<net::HttpResponder>> held_;
};

struct Client final : wire::GenerateSink {
  void on_served(const wire::Served& s) override { served = s; }
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>>) override { ++prompt_logprobs; }
  void on_token(wire::TokenEvent e) override {
    EXPECT_FALSE(done.has_value());
    tokens.push_back(e.token);
    positions.push_back(e.position);
    if (each_token) each_token();
  }
  void on_finish(wire::FinishEvent) override { ++finishes; }
  void on_done(Status status) override {
    EXPECT_FALSE(done.has_value()) << "one terminal outcome";
    done = std::move(status);
  }
  wire::Served served;
  std::vector<TokenId> tokens;
  std::vector<std::int32_t> positions;
  int finishes = 0, prompt_logprobs = 0;
  std::optional<Status> done;
  std::function<void()> each_token;
};

class GatewayTest : public ::testing::Test {
 protected:
  ~GatewayTest() override {
    loop_.run([this] {
      calls_.clear();
      gateway_.reset();
      client_.reset();
      workers_.clear();
    });
  }

  FakeWorker& add(const std::string& name, Role role) {
    return *loop_.run([&] { return workers_.emplace_back(std::make_unique<FakeWorker>(loop_.loop(), name, role)).get(); });
  }
  void start(GatewayOptions options = {}) {
    options.poll_interval = std::chrono::milliseconds(5);
    loop_.run([&] {
      for (const auto& w : workers_) options.workers.push_back(w->config());
      client_ = net::HttpClient::create(loop_.loop());
      gateway_ = std::make_unique<Gateway>(loop_.loop(), *client_, options);
    });
  }
  bool all_alive() {
    for (const Worker& w : gateway_->workers())
      if (w.liveness != Liveness::kAlive) return false;
    return true;
  }
  void start_ready(GatewayOptions options = {}) {
    start(std::move(options));
    ASSERT_TRUE(loop_.eventually([&] { return all_alive(); })) << loop_.run([&] { return gateway_->not_ready().value_or("ready"); });
  }
  std::shared_ptr<Client> generate(std::vector<TokenId> prompt, int max_tokens, int n = 1) {
    auto client = std::make_shared<Client>();
    loop_.run([&] {
      wire::GenerateRequest r;
      r.id = "req-" + std::to_string(++requests_);
      r.n_prompt = static_cast<std::int32_t>(prompt.size());
      r.ids = std::move(prompt);
      r.sampling.max_tokens = max_tokens;
      r.n = n;
      r.timeout = std::chrono::seconds(60);
      calls_.push_back(gateway_->generate(std::move(r), client));
      EXPECT_FALSE(client->done.has_value()) << "never before it returns";
    });
    return client;
  }
  bool eventually(const std::function<bool()>& condition) { return loop_.eventually(condition); }

  // A decode worker that reserves, and a prefill worker that hands over to the decode worker of the leg; tokens follow up to max_tokens or
  // `stop_after` of them in this stream.
  void serve_decode(FakeWorker& d) {
    d.on_leg = [](const std::shared_ptr<FakeWorker::Leg>& leg) { leg->say(wire::Reserved{LeaseId(42)}); };
  }
  void serve_prefill(FakeWorker& p) {
    p.on_leg = [this](const std::shared_ptr<FakeWorker::Leg>& leg) {
      const wire::PrefillLeg& body = leg->prefill_leg;
      const auto at = static_cast<std::int32_t>(body.request.ids.size());
      leg->say(wire::Started{});
      leg->say(wire::Tokens{{token_at(at)}});
      commit(body);
      wire::Served served;
      served.kv_bytes = 1000 * at;
      leg->say(wire::Committed{body.attempt, {token_at(at)}});
      leg->say(served);
      leg->say(wire::Done{});
      leg->end();
    };
  }
  void commit(const wire::PrefillLeg& body) {
    for (const auto& d : workers_) {
      if (d->status.name != body.decode_worker) continue;
      const auto leg = d->legs.back();
      const auto at = static_cast<std::int32_t>(body.request.ids.size());
      leg->say(wire::Committed{body.attempt, {token_at(at)}});
      const std::int32_t end = body.request.n_prompt + body.request.sampling.max_tokens;
      std::int32_t stop = end;
      if (stop_after >= 0) stop = std::min(stop, at + std::exchange(stop_after, -1));
      for (std::int32_t position = at + 1; position < stop; ++position) leg->say(wire::Tokens{{token_at(position)}});
      if (stop < end) return;
      leg->say(wire::FinishEvent{0, wire::FinishReason::kLength, {}});
      leg->say(wire::Done{});
      leg->end();
    }
  }
  static std::vector<TokenId> expected(std::int32_t n_prompt, int tokens) {
    std::vector<TokenId> out;
    for (int i = 0; i < tokens; ++i) out.push_back(oracle(n_prompt + i));
    return out;
  }

  net::LoopThread loop_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::unique_ptr<net::HttpClient> client_;
  std::unique_ptr<Gateway> gateway_;
  std::vector<std::unique_ptr<wire::GenerateCall>> calls_;
  int requests_ = 0;
  int stop_after = -1;  // the next decode stream falls silent after so many tokens
};

TEST_F(GatewayTest, AHandOffOverHttp) {
  FakeWorker &p = add("p0", Role::kPrefill), &d = add("d0", Role::kDecode);
  serve_prefill(p), serve_decode(d);
  start_ready();
  for (int i = 0; i < 3; ++i) {
    const auto client = generate({1, 2, 3}, 20);
    ASSERT_TRUE(eventually([&] { return client->done.has_value(); }));
    EXPECT_TRUE(client->done->ok()) << client->done->to_string();
    EXPECT_EQ(client->tokens, expected(3, 20));
    EXPECT_EQ(client->positions.front(), 3);
    EXPECT_EQ(client->finishes, 1);
    EXPECT_EQ(client->served.prefill_worker, "p0");
    EXPECT_EQ(client->served.decode_worker, "d0");
    EXPECT_EQ(client->served.kv_bytes, 3000);
    EXPECT_GE(client->served.first_token_ms, client->served.reserved_ms);
  }
  loop_.run([&] {
    EXPECT_EQ(gateway_->open_legs(), 0u);
    EXPECT_EQ(p.legs[0]->prefill_leg.lease, LeaseId(42));
    EXPECT_EQ(p.legs[0]->prefill_leg.link_host, "127.0.0.1");
    EXPECT_FALSE(d.legs[0]->closed) << "a stream that ended by itself was not cut";
    const auto record = gateway_->debug_request("req-1");
    ASSERT_TRUE(record.has_value());
    EXPECT_THAT(*record, HasSubstr(R"("event":"committed")"));
    EXPECT_EQ(gateway_->debug_request("nobody"), std::nullopt);
    EXPECT_EQ(gateway_->stats().finished, 3u);
  });
}

TEST_F(GatewayTest, FullDecodeWorkersMakeTheRequestWait) {
  FakeWorker &p = add("p0", Role::kPrefill), &d0 = add("d0", Role::kDecode), &d1 = add("d1", Role::kDecode);
  serve_prefill(p), serve_decode(d0), serve_decode(d1);
  int refusals = 0;
  const auto full = [&refusals](net::HttpResponder& r) {
    ++refusals;
    net::Headers headers;
    headers.add("Retry-After", "3");
    r.respond(429, headers, wire::to_json(wire::LegEvent(wire::Failed{Status(Code::kResourceExhausted, "12 blocks free, 40 wanted")})));
    return true;
  };
  d0.refuse = full;
  start_ready();
  const auto client = generate({1, 2}, 5);
  ASSERT_TRUE(eventually([&] { return client->done.has_value(); }));
  EXPECT_TRUE(client->done->ok()) << client->done->to_string();
  EXPECT_EQ(client->served.decode_worker, "d1");

  loop_.run([&] { d1.refuse = full; });
  const auto second = generate({1, 2}, 5);
  ASSERT_TRUE(eventually([&] { return refusals >= 4; })) << "it waits, and asks again as the workers report";
  EXPECT_FALSE(second->done.has_value());
  loop_.run([&] { d0.refuse = d1.refuse = nullptr; });
  ASSERT_TRUE(eventually([&] { return second->done.has_value(); }));
  EXPECT_TRUE(second->done->ok()) << second->done->to_string();
  loop_.run([&] { EXPECT_GE(refusals, 4); });
}

TEST_F(GatewayTest, PrefillWorkerDiesBeforeItsCommit) {
  FakeWorker &p0 = add("p0", Role::kPrefill), &p1 = add("p1", Role::kPrefill), &d = add("d0", Role::kDecode);
  serve_decode(d), serve_prefill(p1);
  start_ready();
  const auto client = generate({1, 2, 3}, 6);
  ASSERT_TRUE(eventually([&] { return p0.legs.size() == 1; }));
  loop_.run([&] { p0.die(); });
  ASSERT_TRUE(eventually([&] { return client->done.has_value(); }));
  EXPECT_TRUE(client->done->ok()) << client->done->to_string();
  EXPECT_EQ(client->tokens, expected(3, 6));
  EXPECT_EQ(client->served.prefill_worker, "p1");
  EXPECT_EQ(client->served.attempts, 2);
  loop_.run([&] { EXPECT_EQ(d.legs.size(), 1u) << "the lease was kept"; });
  EXPECT_TRUE(eventually([&] { return gateway_->workers()[0].liveness == Liveness::kDead; }));
}

TEST_F(GatewayTest, DecodeWorkerDiesMidStream) {
  FakeWorker &p = add("p0", Role::kPrefill), &d0 = add("d0", Role::kDecode), &d1 = add("d1", Role::kDecode);
  serve_prefill(p), serve_decode(d0), serve_decode(d1);
  start_ready();
  stop_after = 4;
  const auto client = generate({1, 2, 3}, 12);
  ASSERT_TRUE(eventually([&] { return client->tokens.size() == 4; }));
  loop_.run([&] { (client->served.decode_worker == "d0" ? d0 : d1).die(); });
  ASSERT_TRUE(eventually([&] { return client->done.has_value(); }));
  EXPECT_TRUE(client->done->ok()) << client->done->to_string();
  EXPECT_EQ(client->tokens, expected(3, 12)) << "no gap, no duplicate";
  EXPECT_EQ(client->finishes, 1);
  loop_.run([&] {
    EXPECT_EQ(gateway_->stats().resumed, 1u);
    EXPECT_EQ(gateway_->stats().conflicts, 0u);
    EXPECT_EQ(p.legs[1]->prefill_leg.request.n_prompt, 3);
    EXPECT_EQ(p.legs[1]->prefill_leg.request.ids.size(), 7u);
  });
}

TEST_F(GatewayTest, TheOnlyDecodeWorkerDiesAndTheClientHearsOfIt) {
  FakeWorker &p = add("p0", Role::kPrefill), &d = add("d0", Role::kDecode);
  serve_prefill(p), serve_decode(d);
  GatewayOptions options;
  options.core.fallback = Fallback::kFail;
  start_ready(options);
  stop_after = 2;
  const auto client = generate({1, 2, 3}, 12);
  ASSERT_TRUE(eventually([&] { return client->tokens.size() == 2; }));
  loop_.run([&] { d.die(); });
  ASSERT_TRUE(eventually([&] { return client->done.has_value(); }));
  EXPECT_EQ(client->done->code(), Code::kUnavailable);
  EXPECT_THAT(client->done->message(), HasSubstr("d0"));
  loop_.run([&] {
    EXPECT_FALSE(gateway_->ready());
    EXPECT_EQ(gateway_->open_legs(), 0u);
    d.listen(d.port());  // it comes back, as another incarnation
    d.status.incarnation = Incarnation(2);
  });
  EXPECT_TRUE(eventually([&] { return gateway_->ready(); }));
  const auto again = generate({1, 2, 3}, 3);
  ASSERT_TRUE(eventually([&] { return again->done.has_value(); }));
  EXPECT_TRUE(again->done->ok()) << again->done->to_string();
}

TEST_F(GatewayTest, AWorkerThatHangsIsDeadAfterMissedPolls) {
  add("p0", Role::kPrefill);
  FakeWorker& d = add("d0", Role::kDecode);
  GatewayOptions options;
  options.poll_timeout = std::chrono::milliseconds(20);
  options.core.fallback = Fallback::kFail;
  start_ready(options);
  loop_.run([&] { d.hold_status = true; });
  ASSERT_TRUE(eventually([&] { return gateway_->workers()[1].liveness == Liveness::kDead; }));
  loop_.run([&] {
    EXPECT_GE(gateway_->workers()[1].missed_polls, 3);
    EXPECT_THAT(*gateway_->not_ready(), HasSubstr("no status within 20 ms"));
    d.hold_status = false;
  });
  EXPECT_TRUE(eventually([&] { return gateway_->ready(); }));
}

TEST_F(GatewayTest, GarbageFromAWorkerTouchesOneLeg) {
  FakeWorker &p = add("p0", Role::kPrefill), &d0 = add("d0", Role::kDecode), &d1 = add("d1", Role::kDecode);
  serve_prefill(p);
  static const std::string kGarbage[] = {"{\"event\":\"tokens\"}\n", "\xff\xfe\n", "[]\n", std::string(5000, 'x'),
                                         "{\"event\":\"bogus\"}\n"};
  std::size_t next = 0;
  const auto babble = [&](const std::shared_ptr<FakeWorker::Leg>& leg) { leg->responder->write(kGarbage[next++]); };
  GatewayOptions options;
  options.line_bytes_max = 4096;
  options.core.retries_max = static_cast<int>(std::size(kGarbage)) - 1;
  d0.on_leg = d1.on_leg = babble;
  start_ready(options);
  const auto client = generate({1, 2, 3}, 4);
  ASSERT_TRUE(eventually([&] { return client->done.has_value(); }));
  EXPECT_EQ(client->done->code(), Code::kDataLoss);
  EXPECT_EQ(next, std::size(kGarbage));
  loop_.run([&] { serve_decode(d0), serve_decode(d1); });
  const auto after = generate({1, 2, 3}, 4);
  ASSERT_TRUE(eventually([&] { return after->done.has_value(); }));
  EXPECT_TRUE(after->done->ok()) << after->done->to_string();
}

TEST_F(GatewayTest, ADestroyedCallClosesBothLegs) {
  FakeWorker &p = add("p0", Role::kPrefill), &d = add("d0", Role::kDecode);
  serve_decode(d);
  start_ready();
  const auto client = generate({1, 2, 3}, 4);
  ASSERT_TRUE(eventually([&] { return p.legs.size() == 1; }));
  loop_.run([&] { calls_.clear(); });
  EXPECT_TRUE(eventually([&] { return p.legs[0]->closed && d.legs[0]->closed; }));
  loop_.run([&] {
    EXPECT_EQ(gateway_->open_legs(), 0u);
    EXPECT_FALSE(client->done.has_value());
  });
}

TEST_F(GatewayTest, ASinkMayCancelFromItsOwnCallback) {
  FakeWorker &p = add("p0", Role::kPrefill), &d = add("d0", Role::kDecode);
  serve_prefill(p), serve_decode(d);
  start_ready();
  auto client = std::make_shared<Client>();
  loop_.run([&] {
    client->each_token = [&] {
      if (client->tokens.size() == 2) calls_.clear();
    };
    wire::GenerateRequest r;
    r.id = "c";
    r.ids = {1, 2}, r.n_prompt = 2;
    r.sampling.max_tokens = 50;
    calls_.push_back(gateway_->generate(std::move(r), client));
  });
  ASSERT_TRUE(eventually([&] { return gateway_->stats().cancelled == 1; }));
  loop_.run([&] { EXPECT_EQ(client->tokens.size(), 2u); });
  EXPECT_TRUE(eventually([&] { return gateway_->open_legs() == 0; }));
}

TEST_F(GatewayTest, AChoiceIsEndedOnItsWorker) {
  FakeWorker& w = add("w0", Role::kBoth);
  w.on_leg = [](const std::shared_ptr<FakeWorker::Leg>& leg) {
    EXPECT_TRUE(leg->decode.local_prefill);
    leg->say(wire::Tokens{{token_at(2, 0), token_at(2, 1)}});
  };
  start_ready();
  const auto client = generate({1, 2}, 9, 2);
  ASSERT_TRUE(eventually([&] { return client->tokens.size() == 2; }));
  loop_.run([&] { calls_[0]->finish_choice(1); });
  ASSERT_TRUE(eventually([&] { return w.finish_choices.size() == 1; }));
  loop_.run([&] {
    EXPECT_EQ(w.finish_choices[0], "gateway=0&leg=" + std::to_string(w.legs[0]->decode.name.leg) + "&choice=1");
    EXPECT_EQ(client->finishes, 1);
    w.legs[0]->say(wire::FinishEvent{0, wire::FinishReason::kStop, {}});
    w.legs[0]->say(wire::Done{});
    w.legs[0]->end();
  });
  ASSERT_TRUE(eventually([&] { return client->done.has_value(); }));
  EXPECT_TRUE(client->done->ok());
}

TEST_F(GatewayTest, AWorkerOfAnotherModelIsNamedAndNotUsed) {
  FakeWorker &p = add("p0", Role::kPrefill), &d = add("d0", Role::kDecode);
  loop_.run([&] { d.status.model_digest = "other"; });
  start();
  ASSERT_TRUE(eventually([&] {
    return gateway_->workers()[0].liveness == Liveness::kIncompatible || gateway_->workers()[1].liveness == Liveness::kIncompatible;
  }));
  loop_.run([&] { EXPECT_THAT(*gateway_->not_ready(), HasSubstr("serves the model")); });
  const auto client = generate({1}, 1);  // the one that answered first serves alone
  ASSERT_TRUE(eventually([&] { return p.legs.size() + d.legs.size() == 1; }));
  loop_.run([&] { EXPECT_EQ(gateway_->workers()[p.legs.empty() ? 0 : 1].liveness, Liveness::kIncompatible); });
}

TEST_F(GatewayTest, ACallMayOutliveTheGateway) {
  FakeWorker& w = add("w0", Role::kBoth);
  start_ready();
  const auto client = generate({1, 2}, 9);
  ASSERT_TRUE(eventually([&] { return w.legs.size() == 1; }));
  loop_.run([&] {
    gateway_.reset();
    calls_[0]->finish_choice(0);
    calls_.clear();
  });
  EXPECT_TRUE(eventually([&] { return w.legs[0]->closed; }));
  EXPECT_FALSE(client->done.has_value());
}

TEST(LineSplitter, AnyCutGivesTheSameLines) {
  const std::string text = "a\n\nbcd\nef\n0123456789\nrest";
  for (std::size_t first = 0; first <= text.size(); ++first) {
    for (std::size_t second = first; second <= text.size(); ++second) {
      LineSplitter splitter(10);
      std::vector<std::string> lines;
      const auto keep = [&](std::string_view line) { lines.emplace_back(line); };
      ASSERT_TRUE(splitter.push(std::string_view(text).substr(0, first), keep));
      ASSERT_TRUE(splitter.push(std::string_view(text).substr(first, second - first), keep));
      ASSERT_TRUE(splitter.push(std::string_view(text).substr(second), keep));
      EXPECT_EQ(lines, (std::vector<std::string>{"a", "bcd", "ef", "0123456789"}));
      EXPECT_EQ(splitter.pending(), 4u);
    }
  }
  LineSplitter splitter(4);
  const auto ignore = [](std::string_view) {};
  EXPECT_TRUE(splitter.push("1234", ignore));
  EXPECT_FALSE(splitter.push("5", ignore));
}

TEST_F(GatewayTest, DebugKvJoinsWhatWorkersSayAndWaitsForNoneOfThem) {
  FakeWorker& p = add("p0", Role::kPrefill);
  FakeWorker& d = add("d0", Role::kDecode);
  FakeWorker& silent = add("d1", Role::kDecode);
  FakeWorker& mad = add("d2", Role::kDecode);
  GatewayOptions options;
  options.kv_timeout = std::chrono::milliseconds(200);
  start_ready(options);
  wire::KvReport report;
  report.name = "what it calls itself", report.total = 10, report.held = 3, report.free = 6, report.balanced = false,
  report.problem = "lost one";
  report.holds.resize(1);
  report.holds[0].owner = "lease", report.holds[0].state = "receiving", report.holds[0].request = "req-1", report.holds[0].blocks = 3;
  std::optional<std::string> answers[2];
  loop_.run([&] {
    p.kv = wire::to_json(wire::KvReport());
    d.kv = wire::to_json(report);
    silent.hold_kv = true;
    mad.kv = "{\"name\":7}";
    for (auto& answer : answers) gateway_->debug_kv([&answer](std::optional<std::string> json) { answer = std::move(json); });
  });
  ASSERT_TRUE(eventually([&] { return answers[0] && answers[1]; }));
  EXPECT_EQ(*answers[0], *answers[1]) << "who asks amid it gets the same";
  EXPECT_EQ(loop_.run([&] { return d.kv_asked; }), 1);
  const auto json = nlohmann::json::parse(*answers[0]);
  EXPECT_EQ(json["balanced"], false);
  ASSERT_EQ(json["workers"].size(), 4u);
  EXPECT_EQ(json["workers"][0]["name"], "p0");
  EXPECT_EQ(json["workers"][0]["balanced"], true);
  EXPECT_EQ(json["workers"][1]["name"], "d0");
  EXPECT_EQ(json["workers"][1]["role"], "decode");
  EXPECT_EQ(json["workers"][1]["liveness"], "alive");
  EXPECT_EQ(json["workers"][1]["problem"], "lost one");
  EXPECT_EQ(json["workers"][1]["holds"][0]["request"], "req-1");
  EXPECT_EQ(json["workers"][2]["name"], "d1");
  EXPECT_EQ(json["workers"][2]["error"], "no answer within 200 ms");
  EXPECT_THAT(json["workers"][3]["error"].get<std::string>(), HasSubstr("KV report"));

  // A dead one is its error too, and at once.
  std::optional<std::string> later;
  loop_.run([&] {
    silent.hold_kv = false;
    silent.kv = mad.kv = p.kv;
    d.die();
    gateway_->debug_kv([&](std::optional<std::string> text) { later = std::move(text); });
  });
  ASSERT_TRUE(eventually([&] { return later.has_value(); }));
  EXPECT_TRUE(nlohmann::json::parse(*later)["workers"][1].contains("error"));
  EXPECT_FALSE(nlohmann::json::parse(*later)["workers"][2].contains("error"));
}

TEST_F(GatewayTest, DebugKvIsBoundedAndAGatewayThatGoesAnswersNobody) {
  FakeWorker& w = add("w0", Role::kBoth);
  start_ready();
  int refused = 0, answered = 0;
  loop_.run([&] {
    w.hold_kv = true;
    for (std::size_t i = 0; i < Gateway::kKvWaitersMax + 3; ++i)
      gateway_->debug_kv([&](const std::optional<std::string>& json) { ++(json ? answered : refused); });
    EXPECT_EQ(refused, 3);
    gateway_.reset();
  });
  loop_.run([] {});
  EXPECT_EQ(answered, 0);
}

}  // namespace
}  // namespace baton::gateway
