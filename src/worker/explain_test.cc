// What a worker says of itself: when each layer of a hand-off moved, who holds its KV, and that its books add up.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>

#include <sstream>

#include "base/log.h"
#include "wire/kv_report.h"
#include "worker/test_worker.h"

namespace baton::worker {
namespace {

using ::testing::Each;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Pair;
using testing::Proxy;
using ::testing::SizeIs;
using testing::spec_of;
using testing::TestWorker;

using namespace std::string_literals;

constexpr std::size_t kLayers = 4;

class ExplainTest : public testing::WorkerTest {
 protected:
  wire::KvReport kv(const TestWorker& w) {
    const auto leg = call(w, "GET", "/internal/kv");
    EXPECT_TRUE(until([&] { return leg->done.has_value(); }));
    auto report = wire::kv_report_from_json(leg->body);
    EXPECT_TRUE(report.ok()) << report.status().to_string();
    return report.ok() ? *report : wire::KvReport();
  }
  wire::WorkerStatus polled(const TestWorker& w) {
    const auto leg = call(w, "GET", "/internal/status");
    EXPECT_TRUE(until([&] { return leg->done.has_value(); }));
    auto status = wire::worker_status_from_json(leg->body);
    EXPECT_TRUE(status.ok()) << status.status().to_string();
    return status.ok() ? *status : wire::WorkerStatus();
  }
  // What the leg's worker reported, in order.
  static std::vector<wire::HandoffTimes> times(const testing::LegCall& leg) {
    std::vector<wire::HandoffTimes> out;
    for (const auto& e : leg.events) {
      const auto* served = std::get_if<wire::Served>(&e);
      if (served != nullptr && served->handoff) out.push_back(*served->handoff);
    }
    return out;
  }
};

TEST_F(ExplainTest, BothSidesSayWhenEachLayerWasThere) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  const auto r = request(100, 5);  // two steps: 64 tokens a step
  auto dl = decode(d, r);
  auto pl = prefill(p, d, r, lease_of(*dl), 7);
  ASSERT_TRUE(until([&] { return dl->done && pl->done; }));
  const auto from_p = times(*pl), from_d = times(*dl);
  ASSERT_THAT(from_p, SizeIs(1));
  ASSERT_THAT(from_d, SizeIs(1));
  const wire::HandoffTimes &at_p = from_p[0], &at_d = from_d[0];
  for (const auto* side : {&at_p, &at_d}) {
    EXPECT_EQ(side->attempt, Attempt(7));
    EXPECT_NE(side->epoch, Epoch());
    EXPECT_EQ(side->epoch, at_p.epoch);
    EXPECT_FALSE(side->failure);
    EXPECT_LE(0, side->attached_us);
    EXPECT_LE(side->attached_us, side->granted_us);
    EXPECT_LE(side->granted_us, side->commit_us);
    EXPECT_LE(side->commit_us, side->ended_us);
  }
  EXPECT_LE(at_p.started_us, at_p.computed_us);
  EXPECT_LE(at_p.computed_us, at_p.first_token_us);
  EXPECT_THAT(at_p.ready_us, SizeIs(kLayers));
  EXPECT_THAT(at_p.announced_us, SizeIs(kLayers));
  for (std::size_t layer = 0; layer < kLayers; ++layer) EXPECT_LE(at_p.ready_us[layer], at_p.announced_us[layer]);
  EXPECT_THAT(at_p.chunks, ::testing::ElementsAre(Pair(64, Ge(0)), Pair(100, at_p.computed_us)));
  EXPECT_THAT(at_d.verified_us, SizeIs(kLayers));
  EXPECT_THAT(at_d.verified_us, Each(Ge(at_d.granted_us)));
  EXPECT_THAT(at_d.verified_bytes, ::testing::AllOf(SizeIs(kLayers), Each(spec_of(8, 1).bytes_per_token() * 100 / kLayers)));

  // Aggregated there is no hand-off, but a prefill.
  auto alone = decode(d, request(50, 3, 1, 9), true);
  ASSERT_TRUE(until([&] { return alone->done.has_value(); }));
  ASSERT_THAT(times(*alone), SizeIs(1));
  EXPECT_LE(0, times(*alone)[0].started_us);
  EXPECT_LE(times(*alone)[0].started_us, times(*alone)[0].first_token_us);
  EXPECT_THAT(times(*alone)[0].ready_us, SizeIs(0));
}

TEST_F(ExplainTest, BothSidesSayHowFarAnAttemptCameThatFailed) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  Proxy proxy(loop_, d.worker->link_port());
  int chunks = 0;
  proxy.to_d = [&](transfer::Message& m) {
    if (std::holds_alternative<transfer::Chunk>(m) && ++chunks == 3) proxy.cut();
  };
  const auto r = request(40, 5);
  auto dl = decode(d, r);
  auto pl = prefill(p, d, r, lease_of(*dl), 1, proxy.port());
  ASSERT_TRUE(until([&] { return pl->find<wire::Retained>() && !times(*dl).empty(); }));
  ASSERT_THAT(times(*pl), SizeIs(1));
  ASSERT_TRUE(times(*pl)[0].failure);
  const wire::HandoffTimes at_d = times(*dl)[0];
  ASSERT_TRUE(at_d.failure);
  EXPECT_THAT(at_d.failure->message(), HasSubstr("link"));
  EXPECT_EQ(at_d.commit_us, -1);
  EXPECT_THAT(at_d.verified_us, SizeIs(kLayers));
  EXPECT_EQ(at_d.verified_bytes.back(), 0);
  const auto retained = kv(p);
  ASSERT_THAT(retained.holds, SizeIs(1));
  EXPECT_EQ(retained.holds[0].owner, "retained");
  EXPECT_EQ(retained.holds[0].request, r.id);
  EXPECT_EQ(retained.holds[0].blocks, 3);
  ASSERT_TRUE(retained.holds[0].deadline_ms);
  EXPECT_LE(*retained.holds[0].deadline_ms, 10'000);
  ASSERT_TRUE(until([&] { return std::ranges::count(d.worker->status().leases, std::pair("awaiting_attempt"s, 1)) == 1; }));
  const auto waits = kv(d);
  ASSERT_THAT(waits.holds, SizeIs(1));
  EXPECT_EQ(waits.holds[0].state, "awaiting_attempt");
  EXPECT_THAT(polled(p).handoffs, ::testing::Contains(Pair("retained", 1)));
  EXPECT_THAT(polled(d).leases, ::testing::Contains(Pair("awaiting_attempt", 1)));
}

TEST_F(ExplainTest, WhoHoldsKvInEachStage) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  const auto r = request(40, 5);
  auto dl = decode(d, r);
  const LeaseId lease = lease_of(*dl);
  auto at_d = kv(d);
  ASSERT_THAT(at_d.holds, SizeIs(1));
  EXPECT_EQ(at_d.holds[0].owner, "lease");
  EXPECT_EQ(at_d.holds[0].state, "reserved");
  EXPECT_EQ(at_d.holds[0].request, r.id);
  EXPECT_EQ(at_d.holds[0].blocks, 0) << "credit is no block";
  EXPECT_GT(at_d.promised, 0);
  EXPECT_EQ(at_d.held, 0);

  p.executor->set_budget(2);  // of four layers
  auto pl = prefill(p, d, r, lease, 3);
  ASSERT_TRUE(until([&] {
    const auto source = p.worker->status().handoffs, target = d.worker->status().leases;
    return p.executor->stalled() && std::ranges::count(source, std::pair("streaming"s, 1)) == 1 &&
           std::ranges::count(target, std::pair("receiving"s, 1)) == 1;
  }));
  at_d = kv(d);
  EXPECT_EQ(at_d.holds[0].attempt, 3u);
  EXPECT_NE(at_d.holds[0].epoch, Epoch());
  EXPECT_EQ(at_d.holds[0].peer, "p");
  EXPECT_EQ(at_d.holds[0].blocks, 5);
  EXPECT_EQ(at_d.held, 5);
  EXPECT_EQ(at_d.promised, 0);
  EXPECT_TRUE(at_d.holds[0].deadline_ms);
  const auto at_p = kv(p);
  ASSERT_THAT(at_p.holds, SizeIs(1));
  EXPECT_EQ(at_p.holds[0].owner, "handoff");
  EXPECT_EQ(at_p.holds[0].state, "streaming");
  EXPECT_EQ(at_p.holds[0].peer, "d");
  EXPECT_EQ(at_p.holds[0].blocks, at_p.held);
  EXPECT_THAT(polled(p).handoffs, ::testing::Contains(Pair("streaming", 1)));
  const auto status = polled(d);
  EXPECT_THAT(status.leases, ::testing::AllOf(SizeIs(transfer::Receiver::kStates), ::testing::Contains(Pair("receiving", 1)),
                                              ::testing::Contains(Pair("reserved", 0))));
  EXPECT_THAT(status.held_ms, ::testing::Contains(Pair("lease", Ge(0.0))));

  d.executor->set_budget(6);  // one token, and half of another
  p.executor->run_on();
  ASSERT_TRUE(until([&] { return d.executor->stalled(); }));
  at_d = kv(d);
  ASSERT_THAT(at_d.holds, SizeIs(1));
  EXPECT_EQ(at_d.holds[0].owner, "sequence");
  EXPECT_EQ(at_d.holds[0].state, "running");
  EXPECT_EQ(at_d.holds[0].request, r.id);
  EXPECT_EQ(at_d.holds[0].blocks, at_d.held);
  d.executor->run_on();
  ASSERT_TRUE(until([&] { return dl->done && pl->done && p.idle() && d.idle(); }));
  for (const TestWorker* w : {&p, &d}) {
    const auto r_end = kv(*w);
    EXPECT_THAT(r_end.holds, SizeIs(0));
    EXPECT_EQ(r_end.held, 0);
    EXPECT_EQ(r_end.free + r_end.cached, r_end.total);
    EXPECT_TRUE(r_end.balanced) << r_end.problem;
  }
}

TEST_F(ExplainTest, APrefillWorkerCountsTheLinksThatItLeftForGarbage) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  std::unique_ptr<net::Link> liar;
  const auto listener = std::move(net::TcpLinkListener::listen(loop_, "127.0.0.1", 0, -1, {}, [&](std::unique_ptr<net::Link> link) {
                          liar = std::move(link);
                          liar->start({[](std::string_view) {}, [](const Status&) {}});
                          (void)liar->send("HTTP/1.1 400 Bad Request\r\n\r\n");
                        })).value();
  const auto r = request(40, 5);
  auto dl = decode(d, r);
  auto pl = prefill(p, d, r, lease_of(*dl), 1, listener->port());
  ASSERT_TRUE(until([&] { return p.worker->status().links_refused > 0; }));
}

class Nobody final : public engine::PrefillSink {
 public:
  void on_started(std::int32_t) override {}
  void on_layer(int, std::int32_t, std::int32_t) override {}
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>>) override {}
  void on_first(std::vector<First>) override { done = true; }
  void on_failed(Status) override {}
  bool done = false;
};

// Where the log goes meanwhile.
class LogCapture {
 public:
  LogCapture() { std::swap(sinks(), kept_); }
  ~LogCapture() { std::swap(sinks(), kept_); }
  std::string text() const { return out_.str(); }

 private:
  static std::vector<spdlog::sink_ptr>& sinks() { return spdlog::default_logger_raw()->sinks(); }
  std::ostringstream out_;
  std::vector<spdlog::sink_ptr> kept_{std::make_shared<spdlog::sinks::ostream_sink_mt>(out_)};
};

int count(const std::string& text, const std::string& what) {
  int n = 0;
  for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

// The leak: a sequence that no leg, lease or hand-off knows of.
TEST_F(ExplainTest, BooksThatDoNotAddUpAreAnAlarmOnce) {
  TestWorker w(loop_, "w", 16, 64, [](WorkerOptions& o) { o.unbalanced_is_fatal = false; });
  LogCapture log;
  EXPECT_TRUE(polled(w).balanced);
  EXPECT_EQ(log.text(), "");
  const auto nobody = std::make_shared<Nobody>();
  const auto leak = w.engine->prefill(request(40, 5), nobody);
  ASSERT_TRUE(leak.ok());
  ASSERT_TRUE(until([&] { return nobody->done; }));
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(polled(w).balanced);
  EXPECT_EQ(count(log.text(), "the books of the KV pool do not add up"), 1) << log.text();
  EXPECT_THAT(log.text(),
              ::testing::AllOf(HasSubstr("warning"), HasSubstr("64 in all, 61 free, 0 cached, 3 held, 0 promised; 1 sequences")));
  EXPECT_FALSE(kv(w).balanced);
  EXPECT_THAT(kv(w).problem, HasSubstr("no leg"));
  w.engine->release(*leak);
  EXPECT_TRUE(polled(w).balanced);
  EXPECT_TRUE(kv(w).balanced);
  EXPECT_EQ(count(log.text(), "add up again"), 1) << log.text();
}

TEST_F(ExplainTest, BooksThatDoNotAddUpAreFatalWhereDefectsAreLookedFor) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  TestWorker w(loop_, "w", 16, 64, [](WorkerOptions& o) { o.unbalanced_is_fatal = true; });
  const auto nobody = std::make_shared<Nobody>();
  ASSERT_TRUE(w.engine->prefill(request(40, 5), nobody).ok());
  ASSERT_TRUE(until([&] { return nobody->done; }));
  EXPECT_DEATH((void)polled(w), "no leg, lease or hand-off is left");
}

}  // namespace
}  // namespace baton::worker
