#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/test_worker.h"

namespace baton::worker {
namespace {

using ::testing::HasSubstr;
using testing::KvExecutor;
using testing::LegCall;
using testing::Proxy;
using testing::spec_of;
using testing::TestWorker;
using testing::WorkerTest;

TEST_F(WorkerTest, HandedOverTokensAreThoseOfTheReference) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  int i = 0;
  for (int n_prompt : {1, 7, 16, 63, 200}) {
    for (int n : {1, 3}) {
      SCOPED_TRACE(std::to_string(n_prompt) + " tokens, n " + std::to_string(n));
      const auto r = request(n_prompt, 5, n, static_cast<std::uint64_t>(100 + ++i));
      auto dl = decode(d, r);
      auto pl = prefill(p, d, r, lease_of(*dl));
      ASSERT_TRUE(until([&] { return dl->done && pl->done; }));
      expect_reference(*dl, r, 5);
      expect_reference(*pl, r, 1);
      EXPECT_EQ(dl->finishes(), n);
      ASSERT_TRUE(pl->find<wire::Committed>());
      EXPECT_TRUE(std::holds_alternative<wire::Done>(dl->events.back()));
      EXPECT_TRUE(std::holds_alternative<wire::Done>(pl->events.back()));
      const auto* served = pl->last<wire::Served>();
      EXPECT_EQ(served->kv_bytes, static_cast<std::int64_t>(spec_of(8, 1).bytes_per_token()) * n_prompt);
      EXPECT_LE(served->kv_bytes_early, served->kv_bytes);
      EXPECT_TRUE(until([&] { return p.idle() && d.idle(); }));
    }
  }
  EXPECT_EQ(p.worker->status().handoffs_ok, 10u);
  EXPECT_EQ(d.worker->status().handoffs_ok, 10u);
  EXPECT_EQ(d.worker->status().kv_bytes, p.worker->status().kv_bytes);
}

TEST_F(WorkerTest, AggregatedLegAndManyAtOnce) {
  TestWorker p(loop_, "p", 16, 200), d(loop_, "d", 8, 400);
  std::vector<wire::GenerateRequest> requests;
  std::vector<std::shared_ptr<LegCall>> legs;
  for (int i = 0; i < 24; ++i) {
    requests.push_back(request(5 + i * 4, 6, 1, static_cast<std::uint64_t>(i)));
    legs.push_back(decode(d, requests.back(), i % 3 == 0));
  }
  for (int i = 0; i < 24; ++i) {
    if (i % 3 != 0) legs.push_back(prefill(p, d, requests[static_cast<std::size_t>(i)], lease_of(*legs[static_cast<std::size_t>(i)])));
  }
  ASSERT_TRUE(until([&] { return std::all_of(legs.begin(), legs.end(), [](const auto& l) { return l->done.has_value(); }); }));
  for (std::size_t i = 0; i < 24; ++i) expect_reference(*legs[i], requests[i], 6);
  EXPECT_TRUE(legs[0]->find<wire::Started>());
  EXPECT_TRUE(until([&] { return p.idle() && d.idle(); }));
}

TEST_F(WorkerTest, OnlyWhatTheTargetLacksTravels) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  auto r = request(100, 4);
  for (int turn = 0; turn < 2; ++turn) {
    auto dl = decode(d, r);
    auto pl = prefill(p, d, r, lease_of(*dl));
    ASSERT_TRUE(until([&] { return dl->done && pl->done; }));
    expect_reference(*dl, r, 4);
    const auto bytes = pl->last<wire::Served>()->kv_bytes;
    const auto per_token = static_cast<std::int64_t>(spec_of(8, 1).bytes_per_token());
    EXPECT_EQ(bytes, per_token * (turn == 0 ? 100 : 100 - 96)) << "12 of D's blocks of 8 are cached";
    r.id = "again";
  }
}

TEST_F(WorkerTest, FirstTokenThatEndsTheRequestSendsNoKv) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  for (bool known : {true, false}) {
    auto r = request(40, known ? 1 : 10, 1, known ? 5 : 6);
    if (!known) r.sampling.eos_ids = {KvExecutor::reference(r, spec_of(8, 1), 0, 1)[0]};
    auto dl = decode(d, r);
    auto pl = prefill(p, d, r, lease_of(*dl));
    ASSERT_TRUE(until([&] { return pl->done.has_value(); }));
    EXPECT_EQ(pl->finishes(), 1);
    EXPECT_TRUE(std::holds_alternative<wire::Done>(pl->events.back()));
    EXPECT_EQ(pl->last<wire::Served>()->kv_bytes, 0);
    dl->call.reset();  // the gateway has everything
    EXPECT_TRUE(until([&] { return p.idle() && d.idle(); }));
  }
}

// The connections are closed after any number of computed layers, on both sides in either order, and before any.
TEST_F(WorkerTest, ClosingCancelsInEveryState) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  for (int layers = 0; layers < 14; ++layers) {
    for (int order = 0; order < 3; ++order) {
      SCOPED_TRACE(std::to_string(layers) + " layers, order " + std::to_string(order));
      p.executor->set_budget(layers);
      d.executor->set_budget(std::max(0, layers - 8));
      const auto r = request(100, 50, 2, static_cast<std::uint64_t>(layers * 10 + order));
      auto dl = decode(d, r);
      auto pl = prefill(p, d, r, lease_of(*dl));
      ASSERT_TRUE(until([&] { return p.executor->stalled() || d.executor->stalled() || pl->done; }));
      if (order != 1) pl->call.reset();
      if (order != 2) dl->call.reset();
      p.executor->run_on();
      d.executor->run_on();
      if (order == 1) {
        ASSERT_TRUE(until([&] { return pl->done.has_value(); })) << "a dead lease ends the prefill";
      }
      pl->call.reset();
      dl->call.reset();
      ASSERT_TRUE(until([&] { return p.idle() && d.idle(); }));
    }
  }
  // And both still work.
  const auto r = request(50, 5, 1, 9999);
  auto dl = decode(d, r);
  auto pl = prefill(p, d, r, lease_of(*dl));
  ASSERT_TRUE(until([&] { return dl->done && pl->done; }));
  expect_reference(*dl, r, 5);
}

// Of two requests the second waits, for blocks or for its turn after a preemption, while the first computes: closing it costs no step.
TEST_F(WorkerTest, ClosingCancelsWhatWaitsForBlocks) {
  TestWorker p(loop_, "p", 16, 16), d(loop_, "d", 8, 160);
  const auto r1 = request(200, 5), r2 = request(200, 5, 1, 2);
  p.executor->set_budget(0);
  auto d1 = decode(d, r1), d2 = decode(d, r2);
  auto p1 = prefill(p, d, r1, lease_of(*d1));
  ASSERT_TRUE(until([&] { return p.executor->stalled(); }));
  auto p2 = prefill(p, d, r2, lease_of(*d2));
  ASSERT_TRUE(until([&] { return p.worker->status().waiting == 1; }));
  const auto reserved = d.engine->status().blocks_reserved;
  p2->call.reset();
  EXPECT_TRUE(until([&] { return p.worker->status().waiting == 0; }));
  d2->call.reset();
  EXPECT_TRUE(until([&] { return d.engine->status().blocks_reserved < reserved; })) << "what was reserved for it is free";
  EXPECT_TRUE(p.executor->stalled()) << "all that within the step";
  p.executor->run_on();
  ASSERT_TRUE(until([&] { return d1->done && p1->done; }));
  expect_reference(*d1, r1, 5);
  EXPECT_TRUE(until([&] { return p.idle() && d.idle(); }));
}

TEST_F(WorkerTest, ClosingCancelsWhatIsPreempted) {
  TestWorker w(loop_, "w", 8, 24);  // both need 18 blocks in the end
  const auto r1 = request(40, 100), r2 = request(40, 100, 1, 2);
  auto first = decode(w, r1, true), second = decode(w, r2, true);
  ASSERT_TRUE(until([&] {
    if (second->find<wire::Preempted>() == nullptr) return false;
    w.executor->set_budget(0);
    return w.executor->stalled();
  }));
  ASSERT_EQ(w.worker->status().waiting, 1) << "it gave its blocks back and waits";
  second->call.reset();
  EXPECT_TRUE(until([&] { return w.worker->status().waiting == 0; }));
  EXPECT_TRUE(w.executor->stalled()) << "within the step";
  w.executor->run_on();
  ASSERT_TRUE(until([&] { return first->done.has_value(); }));
  expect_reference(*first, r1, 100);
  EXPECT_TRUE(until([&] { return w.idle(); }));
}

TEST_F(WorkerTest, ACutLinkNacksAndAHigherAttemptGoesOn) {
  TestWorker p(loop_, "p", 16, 64), q(loop_, "q", 32, 64), d(loop_, "d", 8, 160);
  Proxy proxy(loop_, d.worker->link_port());
  for (int frames = 0; frames < 12; ++frames) {
    SCOPED_TRACE("cut after frame " + std::to_string(frames));
    int seen = 0;
    proxy.to_d = [&](transfer::Message& m) {
      if (!std::holds_alternative<transfer::Hello>(m) && seen++ == frames) proxy.cut();
    };
    const auto r = request(90, 5, 1, static_cast<std::uint64_t>(500 + frames));
    auto dl = decode(d, r);
    const LeaseId lease = lease_of(*dl);
    auto first = prefill(p, d, r, lease, 1, proxy.port());
    ASSERT_TRUE(until([&] { return first->done || first->find<wire::Retained>(); }));
    if (!dl->find<wire::Committed>()) {
      const auto* retained = first->find<wire::Retained>();
      ASSERT_TRUE(retained) << first->body;
      EXPECT_TRUE(retryable(retained->reason->code()));
      auto second = prefill(q, d, r, lease, 2);
      ASSERT_TRUE(until([&] { return second->done.has_value(); }));
      EXPECT_TRUE(second->find<wire::Committed>()) << second->body;
    }
    ASSERT_TRUE(until([&] { return dl->done.has_value(); }));
    expect_reference(*dl, r, 5);
    first->call.reset();
    EXPECT_TRUE(until([&] { return p.idle() && q.idle() && d.idle(); }));
  }
}

TEST_F(WorkerTest, ADigestThatDoesNotMatchIsNeverDecoded) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  Proxy proxy(loop_, d.worker->link_port());
  int chunks = 0;
  proxy.to_d = [&](transfer::Message& m) {
    auto* chunk = std::get_if<transfer::Chunk>(&m);
    if (chunk != nullptr && ++chunks == 3) chunk->digest.low ^= 1;
  };
  const auto r = request(90, 5);
  auto dl = decode(d, r);
  const LeaseId lease = lease_of(*dl);
  auto first = prefill(p, d, r, lease, 1, proxy.port());
  ASSERT_TRUE(until([&] { return first->find<wire::Retained>() != nullptr; }));
  EXPECT_EQ(first->find<wire::Retained>()->reason->code(), Code::kDataLoss);
  EXPECT_FALSE(dl->find<wire::Committed>());
  const auto computed = p.executor->prompt_tokens();
  auto second = prefill(p, d, r, lease, 2, proxy.port(), wire::hold_of(lease));
  ASSERT_TRUE(until([&] { return dl->done && second->done && first->done; }));
  expect_reference(*dl, r, 5);
  EXPECT_TRUE(second->find<wire::Claimed>()->found);
  EXPECT_EQ(p.executor->prompt_tokens(), computed) << "what was damaged on its way was right where it came from";
  EXPECT_EQ(dl->find<wire::Committed>()->attempt, Attempt(2));
  EXPECT_EQ(d.worker->status().handoffs_failed, 1u);
}

TEST_F(WorkerTest, BackpressureBeginsAtTheReservation) {
  TestWorker d(loop_, "d", 8, 16);
  auto first = decode(d, request(80, 20));
  (void)lease_of(*first);
  auto second = decode(d, request(80, 20));
  ASSERT_TRUE(until([&] { return second->done.has_value(); }));
  EXPECT_EQ(second->status, 429);
  EXPECT_EQ(second->retry_after, "1");
  EXPECT_TRUE(std::holds_alternative<wire::Failed>(*wire::leg_event_from_json(second->body)));
  first->call.reset();
  ASSERT_TRUE(until([&] { return d.idle(); }));
  (void)lease_of(*decode(d, request(80, 20)));
}

TEST_F(WorkerTest, AnInstanceOverSeveralHostsTakesWholeRequestsOnly) {
  TestWorker w(loop_, "w", 8, 160, [](WorkerOptions& o) { o.takes_handoffs = false; }), d(loop_, "d", 8, 160);
  EXPECT_FALSE(w.worker->status().takes_handoffs);
  const auto r = request(30, 5);
  const auto target = decode(w, r), lease = decode(d, r);
  const auto source = prefill(w, d, r, lease_of(*lease));
  ASSERT_TRUE(until([&] { return target->done.has_value() && source->done.has_value(); }));
  for (const auto& refused : {target, source}) {
    EXPECT_EQ(refused->status, 503);
    EXPECT_THAT(refused->body, HasSubstr("whole requests only"));
  }
  const auto whole = decode(w, r, true);
  ASSERT_TRUE(until([&] { return whole->done.has_value(); }));
  expect_reference(*whole, r, 5);
}

TEST_F(WorkerTest, PairsThatCannotWorkAreRefusedByName) {
  TestWorker p(loop_, "p", 16, 64, [](WorkerOptions& o) { o.model_digest = "other"; }), d(loop_, "d", 8, 160);
  const auto r = request(30, 5);
  auto dl = decode(d, r);
  auto pl = prefill(p, d, r, lease_of(*dl));
  ASSERT_TRUE(until([&] { return pl->find<wire::Retained>() != nullptr; }));
  EXPECT_THAT(pl->find<wire::Retained>()->reason->message(), HasSubstr("model digest differs"));
  EXPECT_TRUE(retryable(pl->find<wire::Retained>()->reason->code()));
}

TEST_F(WorkerTest, ARestartedDecodeWorkerIsAnotherOne) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  const auto r = request(30, 5);
  auto dl = decode(d, r);
  const LeaseId lease = lease_of(*dl);
  auto pl = call(p, "POST", "/internal/prefill",
                 wire::to_json(wire::PrefillLeg{r, Attempt(1), lease, HoldId(), "d", "127.0.0.1", d.worker->link_port(), Incarnation(4)}));
  ASSERT_TRUE(until([&] { return pl->find<wire::Retained>() != nullptr; }));
  EXPECT_THAT(pl->find<wire::Retained>()->reason->message(), HasSubstr("restarted"));
}

TEST_F(WorkerTest, DrainRefusesNewLegsAndFinishesOldOnes) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  const auto r = request(90, 5);
  p.executor->set_budget(3);
  auto dl = decode(d, r);
  auto pl = prefill(p, d, r, lease_of(*dl));
  ASSERT_TRUE(until([&] { return p.executor->stalled(); }));
  bool drained = false;
  EXPECT_FALSE(pl->find<wire::Draining>());
  p.worker->drain(std::chrono::seconds(10), [&] { drained = true; });
  EXPECT_TRUE(p.worker->status().draining);
  ASSERT_TRUE(until([&] { return pl->find<wire::Draining>() != nullptr; })) << "running legs hear of it at once";
  auto refused = prefill(p, d, request(10, 5), LeaseId(1));
  ASSERT_TRUE(until([&] { return refused->done.has_value(); }));
  EXPECT_EQ(refused->status, 503);
  EXPECT_FALSE(refused->retry_after.empty());
  EXPECT_FALSE(drained);
  p.executor->run_on();
  ASSERT_TRUE(until([&] { return drained; }));
  EXPECT_TRUE(pl->find<wire::Committed>());
  ASSERT_TRUE(until([&] { return dl->done.has_value(); }));
  expect_reference(*dl, r, 5);

  // What does not end in time fails, so that it can go on elsewhere.
  d.executor->set_budget(2);
  auto endless = decode(d, request(90, 5, 1, 77), true);
  ASSERT_TRUE(until([&] { return d.executor->stalled(); }));
  drained = false;
  d.worker->drain(std::chrono::milliseconds(1), [&] { drained = true; });
  ASSERT_TRUE(until([&] { return drained && endless->done; }));
  EXPECT_EQ(endless->find<wire::Failed>()->status.code(), Code::kUnavailable);
}

TEST_F(WorkerTest, ALegThatHasNothingToSaySaysThatItLives) {
  const auto often = [](WorkerOptions& o) { o.heartbeat = std::chrono::milliseconds(2); };
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160, often);
  const auto r = request(90, 5);
  auto dl = decode(d, r);
  const LeaseId lease = lease_of(*dl);
  const auto beats = [&] {
    return std::ranges::count_if(dl->events, [](const auto& e) { return std::holds_alternative<wire::Alive>(e); });
  };
  ASSERT_TRUE(until([&] { return beats() >= 3; })) << "a reservation that waits for its prefill";
  d.executor->set_budget(1);
  auto pl = prefill(p, d, r, lease);
  ASSERT_TRUE(until([&] { return d.executor->stalled(); }));
  const auto before = beats();
  ASSERT_TRUE(until([&] { return beats() >= before + 3; })) << "a sequence whose step takes long";
  EXPECT_GT(d.worker->status().step_running_ms, 0);
  EXPECT_GE(d.worker->status().step_budget_ms, 100) << "max_step, at least";
  d.executor->run_on();
  ASSERT_TRUE(until([&] { return dl->done.has_value(); }));
  expect_reference(*dl, r, 5);
}

TEST_F(WorkerTest, BadInputTouchesNothing) {
  TestWorker d(loop_, "d", 8, 160);
  const auto expect = [&](const std::string& method, const std::string& target, const std::string& body, int status) {
    auto c = call(d, method, target, body);
    ASSERT_TRUE(until([&] { return c->done.has_value(); }));
    EXPECT_EQ(c->status, status) << method << " " << target << ": " << c->body;
  };
  expect("POST", "/internal/decode", "{", 400);
  expect("POST", "/internal/prefill", "[]", 400);
  expect("GET", "/nothing", "", 404);
  expect("POST", "/internal/finish_choice?gateway=1&leg=1&choice=0", "", 404);
  for (const std::string query : {"", "?choice=0", "?gateway=1&leg=1&choice=x", "?gateway=1&leg=1&choice=-1", "?gateway=1&leg=1x&choice=0"})
    expect("POST", "/internal/finish_choice" + query, "", 400);
  expect("GET", "/health", "", 200);
  expect("GET", "/internal/status", "", 200);
  auto bad = request(10, 5);
  bad.n_prompt = 11;
  expect("POST", "/internal/decode", wire::to_json(wire::DecodeLeg{bad, Attempt(1), false}), 400);

  // Strangers on the link port lose their connection, whatever they say, or nothing.
  int closed = 0;
  std::vector<std::unique_ptr<net::Link>> links;
  const transfer::Key key{LeaseId(1), Attempt(1), Epoch(1)};
  for (const std::string& say :
       {std::string("GET / HTTP/1.1\r\n\r\n"), transfer::encode(transfer::Attach{key, "r", 5, {}}), std::string()}) {
    net::connect_tcp(loop_, "127.0.0.1", d.worker->link_port(), {}, [&, say](Result<std::unique_ptr<net::Link>> l) {
      links.push_back(std::move(l).value());
      links.back()->start({[](std::string_view) {}, [&](const Status&) { ++closed; }});
      if (!say.empty()) (void)links.back()->send(say);
    });
  }
  EXPECT_TRUE(until([&] { return closed == 3; }));
  EXPECT_TRUE(d.idle());
  EXPECT_EQ(d.worker->status().links_refused, 3u);
}

TEST_F(WorkerTest, AChoiceCanEndEarly) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  const auto r = request(30, 100, 2);
  d.executor->set_budget(4 * 5);
  auto dl = decode(d, r);
  auto pl = prefill(p, d, r, lease_of(*dl));
  ASSERT_TRUE(until([&] { return d.executor->stalled(); }));
  auto end = call(d, "POST", "/internal/finish_choice?gateway=5&leg=1&choice=1");
  ASSERT_TRUE(until([&] { return end->done.has_value(); }));
  EXPECT_EQ(end->status, 204);
  d.executor->run_on();
  ASSERT_TRUE(until([&] { return dl->done.has_value(); }));
  const auto tokens = dl->tokens();
  EXPECT_EQ(std::count_if(tokens.begin(), tokens.end(), [](const auto& t) { return t.first.first == 0; }), 100);
  EXPECT_LT(std::count_if(tokens.begin(), tokens.end(), [](const auto& t) { return t.first.first == 1; }), 20);
  EXPECT_EQ(dl->finishes(), 2);
}

// The decode worker dies after any number of computed layers. Another one claims what P has, whether P knows of the death or not, and
// nothing is computed twice.
TEST_F(WorkerTest, KvOutlivesTheDecodeWorkerThatItWasFor) {
  TestWorker p(loop_, "p", 16, 64);
  for (int layers = 0; layers < 9; ++layers) {
    for (const bool told : {false, true}) {
      SCOPED_TRACE(std::to_string(layers) + " layers, " + (told ? "P knows" : "P does not know"));
      TestWorker d(loop_, "d", 8, 160), e(loop_, "e", 32, 60);
      const auto r = request(100, 6, 1 + layers % 3, static_cast<std::uint64_t>(700 + layers * 2 + told));
      const auto before = p.executor->prompt_tokens();
      p.executor->set_budget(layers);
      auto dl = decode(d, r);
      const LeaseId lease = lease_of(*dl);
      auto first = prefill(p, d, r, lease);
      ASSERT_TRUE(until([&] { return p.executor->stalled() || first->done || dl->find<wire::Committed>(); }));
      if (first->done || dl->find<wire::Committed>()) break;
      d.worker.reset();
      if (told) {
        ASSERT_TRUE(until([&] { return first->find<wire::Retained>() != nullptr; })) << first->body;
        EXPECT_GT(p.worker->status().blocks_retained, 0);
      }
      auto el = decode(e, r);
      auto second = prefill(p, e, r, lease_of(*el), 2, 0, wire::hold_of(lease));
      ASSERT_TRUE(until([&] { return second->find<wire::Claimed>() != nullptr; }));
      EXPECT_TRUE(second->find<wire::Claimed>()->found);
      p.executor->run_on();
      ASSERT_TRUE(until([&] { return el->done && second->done && first->done; }));
      expect_reference(*el, r, 6);
      expect_reference(*second, r, 1);
      EXPECT_TRUE(second->find<wire::Committed>()) << second->body;
      EXPECT_EQ(el->find<wire::Committed>()->attempt, Attempt(2));
      EXPECT_EQ(p.executor->prompt_tokens() - before, 99) << "the prompt is computed once (its last token is not counted)";
      EXPECT_TRUE(until([&] { return p.idle() && e.idle(); }));
      EXPECT_EQ(p.worker->status().blocks_retained, 0);
    }
  }
  EXPECT_GT(p.worker->status().holds_claimed, 5u);
}

// P first: computed without a lease, claimed later.
// A decode worker that answers polls, keeps its connections, and never says what P waits for.
TEST_F(WorkerTest, ATargetThatFallsSilentIsGivenUpAndItsKvClaimed) {
  TestWorker p(loop_, "p", 16, 64, [](WorkerOptions& o) { o.sender.progress_timeout = std::chrono::milliseconds(20); });
  TestWorker silent(loop_, "s", 8, 160), d(loop_, "d", 8, 160);
  for (const bool at_attach : {true, false}) {
    Proxy proxy(loop_, silent.worker->link_port());
    proxy.to_d = [&](transfer::Message& m) {
      proxy.mute |= at_attach ? std::holds_alternative<transfer::Attach>(m) : std::holds_alternative<transfer::Chunk>(m);
    };
    const auto computed = p.executor->prompt_tokens();
    const auto r = request(100, 6, 1, at_attach ? 1 : 2);
    auto lost = decode(silent, r);
    auto first = prefill(p, silent, r, lease_of(*lost), 1, proxy.port());
    ASSERT_TRUE(until([&] { return first->find<wire::Retained>() != nullptr; }));
    EXPECT_THAT(first->find<wire::Retained>()->reason->message(), HasSubstr("makes no progress"));
    const HoldId hold = first->find<wire::Retained>()->hold;
    auto dl = decode(d, r);
    auto second = prefill(p, d, r, lease_of(*dl), 2, 0, hold);
    ASSERT_TRUE(until([&] { return dl->done && second->done && first->done; }));
    expect_reference(*dl, r, 6);
    EXPECT_EQ(p.executor->prompt_tokens() - computed, 99) << "the prompt is computed once";
    lost->call.reset();
  }
  EXPECT_TRUE(until([&] { return p.idle() && d.idle() && silent.idle(); }));
}

// No connection is closed and nothing is said: what it had is bounded by the time that its requests had left.
TEST_F(WorkerTest, AGatewayThatVanishesLeavesNothing) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  auto r = request(50, 5);
  r.timeout = std::chrono::milliseconds(300);
  auto reserved = decode(d, r);
  (void)lease_of(*reserved);
  auto held = call(p, "POST", "/internal/prefill", wire::to_json(wire::PrefillLeg{r, Attempt(1), {}, {}, "", "", 0, {}}));
  ASSERT_TRUE(until([&] { return p.worker->status().blocks_retained > 0 || held->done; }));
  EXPECT_TRUE(until([&] { return p.idle() && d.idle() && p.worker->status().blocks_retained == 0; }));
  for (const auto& leg : {reserved, held}) {
    ASSERT_TRUE(until([&] { return leg->done.has_value(); }));
    ASSERT_TRUE(leg->find<wire::Failed>());
  }
  EXPECT_EQ(reserved->find<wire::Failed>()->status.code(), Code::kDeadlineExceeded);
}

TEST_F(WorkerTest, AComputedPromptWaitsForALease) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  auto r = request(100, 6, 2);
  r.sampling.prompt_logprobs = 0;
  auto first = call(p, "POST", "/internal/prefill", wire::to_json(wire::PrefillLeg{r, Attempt(1), {}, {}, "", "", 0, {}}));
  ASSERT_TRUE(until([&] { return !first->tokens().empty() && p.worker->status().blocks_retained > 0; }));
  const auto* retained = first->find<wire::Retained>();
  ASSERT_TRUE(retained);
  EXPECT_FALSE(retained->reason.has_value());
  EXPECT_FALSE(first->done);
  const auto status = p.worker->status();
  EXPECT_EQ(status.blocks_retained, 7);
  EXPECT_EQ(status.blocks_free + status.blocks_cached, 64 - 7) << "it is held, not cached";
  auto dl = decode(d, r);
  auto second = prefill(p, d, r, lease_of(*dl), 2, 0, retained->hold);
  ASSERT_TRUE(until([&] { return dl->done && second->done && first->done; }));
  expect_reference(*dl, r, 6);
  expect_reference(*second, r, 1);
  ASSERT_TRUE(second->find<wire::PromptLogprobs>()) << "what the old leg may not have delivered is said again";
  EXPECT_EQ(second->find<wire::PromptLogprobs>()->entries.size(), 100u);
  EXPECT_EQ(p.executor->prompt_tokens(), 99);
  EXPECT_TRUE(until([&] { return p.idle() && d.idle(); }));
}

TEST_F(WorkerTest, WhatIsRetainedEndsWithItsLegOrItsDeadline) {
  TestWorker p(loop_, "p", 16, 64), q(loop_, "q", 16, 64, [](WorkerOptions& o) { o.retention.timeout = std::chrono::milliseconds(1); }),
      none(loop_, "none", 16, 64, [](WorkerOptions& o) { o.retention.timeout = Duration(0); });
  const auto leg = [&](const TestWorker& w, const wire::GenerateRequest& r) {
    return call(w, "POST", "/internal/prefill", wire::to_json(wire::PrefillLeg{r, Attempt(1), {}, {}, "", "", 0, {}}));
  };
  auto closed = leg(p, request(50, 5));
  ASSERT_TRUE(until([&] { return p.worker->status().blocks_retained == 4; }));
  closed->call.reset();
  EXPECT_TRUE(until([&] { return p.idle() && p.worker->status().blocks_retained == 0; }));

  auto late = leg(q, request(50, 5));
  ASSERT_TRUE(until([&] { return late->done.has_value(); }));
  ASSERT_TRUE(late->find<wire::Failed>());
  EXPECT_THAT(late->find<wire::Failed>()->status.to_string(), HasSubstr("unavailable: nobody claimed the KV in time"));
  EXPECT_TRUE(q.idle());
  EXPECT_EQ(q.worker->status().holds_dropped, 1u);

  auto refused = leg(none, request(50, 5));
  ASSERT_TRUE(until([&] { return refused->done.has_value(); }));
  EXPECT_EQ(refused->find<wire::Failed>()->status.code(), Code::kResourceExhausted);
  EXPECT_TRUE(none.idle());
}

// Unclaimed KV never keeps a prompt waiting: it can be computed again.
TEST_F(WorkerTest, APromptThatWaitsGetsTheBlocksOfUnclaimedKv) {
  TestWorker p(loop_, "p", 16, 16), d(loop_, "d", 8, 160);
  auto unclaimed =
      call(p, "POST", "/internal/prefill", wire::to_json(wire::PrefillLeg{request(120, 5), Attempt(1), {}, {}, "", "", 0, {}}));
  ASSERT_TRUE(until([&] { return p.worker->status().blocks_retained == 8; }));
  const auto r = request(200, 5, 1, 2);
  auto dl = decode(d, r);
  auto pl = prefill(p, d, r, lease_of(*dl));
  ASSERT_TRUE(until([&] { return dl->done && pl->done && unclaimed->done; }));
  expect_reference(*dl, r, 5);
  EXPECT_THAT(unclaimed->find<wire::Failed>()->status.message(), HasSubstr("a prompt that waits needs its blocks"));
  EXPECT_TRUE(until([&] { return p.idle() && d.idle(); }));

  // So does a reservation, where one worker does both.
  auto again =
      call(p, "POST", "/internal/prefill", wire::to_json(wire::PrefillLeg{request(120, 5, 1, 3), Attempt(1), {}, {}, "", "", 0, {}}));
  ASSERT_TRUE(until([&] { return p.worker->status().blocks_retained == 8; }));
  auto reserved = decode(p, request(200, 5, 1, 4));
  (void)lease_of(*reserved);
  ASSERT_TRUE(until([&] { return again->done.has_value(); }));
  reserved->call.reset();
  EXPECT_TRUE(until([&] { return p.idle(); }));
}

// It waits already when the KV becomes unclaimed: nothing else happens that would wake it.
TEST_F(WorkerTest, APromptThatWaitsGetsTheBlocksOfAHandOffThatFails) {
  TestWorker d(loop_, "d", 8, 160), p(loop_, "p", 16, 16, [](WorkerOptions& o) {
    o.sender.progress_timeout = std::chrono::milliseconds(100);
    o.retention.timeout = std::chrono::hours(1);
  });
  Proxy proxy(loop_, d.worker->link_port());
  proxy.to_d = [&](transfer::Message& m) { proxy.mute |= std::holds_alternative<transfer::Attach>(m); };
  const auto failing = request(120, 5), waiting = request(200, 5, 1, 2);
  auto lost = decode(d, failing);
  auto first = prefill(p, d, failing, lease_of(*lost), 1, proxy.port());
  ASSERT_TRUE(until([&] { return !first->tokens().empty(); }));
  auto dl = decode(d, waiting);
  auto second = prefill(p, d, waiting, lease_of(*dl));
  ASSERT_TRUE(until([&] { return dl->done && second->done && first->done; }));
  expect_reference(*dl, waiting, 5);
  EXPECT_THAT(first->find<wire::Failed>()->status.message(), HasSubstr("a prompt that waits needs its blocks"));
  lost->call.reset();
  EXPECT_TRUE(until([&] { return p.idle() && d.idle(); }));
}

TEST_F(WorkerTest, AClaimIsForTheSameRequestOrComputesAnew) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  const auto r = request(50, 5);
  auto held = call(p, "POST", "/internal/prefill", wire::to_json(wire::PrefillLeg{r, Attempt(1), {}, {}, "", "", 0, {}}));
  ASSERT_TRUE(until([&] { return p.worker->status().blocks_retained == 4; }));
  const HoldId hold = held->find<wire::Retained>()->hold;
  auto other = r;
  other.seed ^= 1;
  auto dl = decode(d, r);
  const LeaseId lease = lease_of(*dl);
  auto refused = prefill(p, d, other, lease, 2, 0, hold);
  ASSERT_TRUE(until([&] { return refused->done.has_value(); }));
  EXPECT_EQ(refused->status, 400);
  EXPECT_THAT(refused->body, HasSubstr("seeds differ"));
  EXPECT_EQ(p.worker->status().blocks_retained, 4) << "nothing has happened to it";
  held->call.reset();
  ASSERT_TRUE(until([&] { return p.idle(); }));
  auto anew = prefill(p, d, r, lease, 3, 0, hold);
  ASSERT_TRUE(until([&] { return dl->done && anew->done; }));
  EXPECT_FALSE(anew->find<wire::Claimed>()->found);
  expect_reference(*dl, r, 5);

  auto unnamed = call(p, "POST", "/internal/prefill", wire::to_json(wire::PrefillLeg{r, Attempt(1), {}, hold, "", "", 0, {}}));
  ASSERT_TRUE(until([&] { return unnamed->done.has_value(); }));
  EXPECT_EQ(unnamed->status, 400) << "a claim is for a lease";
}

// A continuation (prompt and what was emitted) at the worker that computed the prompt costs what is new.
TEST_F(WorkerTest, AContinuationComputesOnlyWhatIsNotCached) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  auto r = request(100, 20);
  auto dl = decode(d, r);
  auto pl = prefill(p, d, r, lease_of(*dl));
  ASSERT_TRUE(until([&] { return dl->done && pl->done; }));
  const auto all = KvExecutor::reference(r, spec_of(8, 1), 0, 20);
  const auto before = p.worker->status().prompt_tokens_computed;
  TestWorker e(loop_, "e", 8, 160);
  auto rest = r;
  rest.ids.insert(rest.ids.end(), all.begin(), all.begin() + 7);
  auto el = decode(e, rest);
  auto continued = prefill(p, e, rest, lease_of(*el));
  ASSERT_TRUE(until([&] { return el->done && continued->done; }));
  expect_reference(*el, rest, 13);
  EXPECT_EQ(p.worker->status().prompt_tokens_computed - before, 107u - 96) << "six blocks of 16 are cached";
}

TEST_F(WorkerTest, WhoDrainsStillGivesOutWhatItHas) {
  TestWorker p(loop_, "p", 16, 64), d(loop_, "d", 8, 160);
  const auto r = request(50, 5);
  auto held = call(p, "POST", "/internal/prefill", wire::to_json(wire::PrefillLeg{r, Attempt(1), {}, {}, "", "", 0, {}}));
  ASSERT_TRUE(until([&] { return p.worker->status().blocks_retained == 4; }));
  const HoldId hold = held->find<wire::Retained>()->hold;  // a copy: more events come
  bool drained = false;
  p.worker->drain(std::chrono::seconds(10), [&] { drained = true; });
  auto dl = decode(d, r);
  auto second = prefill(p, d, r, lease_of(*dl), 2, 0, hold);
  ASSERT_TRUE(until([&] { return dl->done && second->done && drained; }));
  expect_reference(*dl, r, 5);
}

TEST_F(WorkerTest, APeerOfAnotherVersionIsToldWhy) {
  TestWorker d(loop_, "d", 8, 160);
  std::string heard;
  bool closed = false;
  std::unique_ptr<net::Link> link;
  net::connect_tcp(loop_, "127.0.0.1", d.worker->link_port(), {}, [&](Result<std::unique_ptr<net::Link>> l) {
    link = std::move(l).value();
    link->start({[&](std::string_view bytes) { heard += bytes; }, [&](const Status&) { closed = true; }});
    std::string hello = transfer::encode(transfer::Hello());
    hello[4] = 9;
    (void)link->send(hello);
  });
  ASSERT_TRUE(until([&] { return closed; }));
  transfer::FrameReader reader;
  reader.append(heard);
  const auto message = reader.next();
  ASSERT_TRUE(message.ok() && message->has_value());
  EXPECT_THAT(std::get<transfer::Reject>(**message).status.message(), HasSubstr("link protocol 9, this worker speaks 2"));
}

// Request ids are chosen by clients: several gateways, or one client with bad luck, may use the same.
TEST_F(WorkerTest, EndingAChoiceTouchesNoOtherLegOfTheSameRequestId) {
  TestWorker w(loop_, "w", 8, 160);
  auto one = request(10, 40), other = request(10, 40);
  other.id = one.id;
  w.executor->set_budget(3);
  auto a = decode(w, one, true), b = decode(w, other, true);
  ASSERT_TRUE(until([&] { return w.executor->stalled(); }));
  auto end = call(w, "POST", "/internal/finish_choice?gateway=5&leg=2&choice=0");
  auto stranger = call(w, "POST", "/internal/finish_choice?gateway=6&leg=1&choice=0");
  ASSERT_TRUE(until([&] { return end->done.has_value() && stranger->done.has_value(); }));
  EXPECT_EQ(end->status, 204);
  EXPECT_EQ(stranger->status, 404) << "a leg of that number, but of another gateway";
  w.executor->run_on();
  ASSERT_TRUE(until([&] { return a->done && b->done; }));
  expect_reference(*a, one, 40);
  EXPECT_LT(b->tokens().size(), 40u);
}

}  // namespace
}  // namespace baton::worker
