#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/fake_device.h"

namespace baton::engine {
namespace {

using testing::ElementsAre;

EngineOptions small_options() {
  EngineOptions o;
  o.max_model_len = 256;
  o.max_num_seqs = 8;
  o.max_num_batched_tokens = 16;
  o.max_step = Duration(0);
  o.kv_blocks = 32;
  o.block_tokens = 8;
  return o;
}

struct Sink final : wire::GenerateSink {
  std::vector<std::string> log;  // kinds, in order
  std::vector<TokenId> tokens;
  wire::Served served;
  std::optional<Status> done;
  std::function<void()> on_each_token;
  void on_served(const wire::Served& s) override {
    log.push_back("served");
    served = s;
  }
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>>) override { log.push_back("prompt_logprobs"); }
  void on_token(wire::TokenEvent event) override {
    log.push_back("token");
    tokens.push_back(event.token);
    if (on_each_token) on_each_token();
  }
  void on_finish(wire::FinishEvent) override { log.push_back("finish"); }
  void on_done(Status status) override {
    EXPECT_FALSE(done.has_value());
    log.push_back("done");
    done = std::move(status);
  }
};

struct Source final : PrefillSink {
  std::vector<std::string> log;
  std::vector<FirstToken> first;
  std::optional<Status> failed;
  void on_started(std::int32_t cached) override { log.push_back("started " + std::to_string(cached)); }
  void on_layer(int layer, std::int32_t begin, std::int32_t end) override {
    log.push_back("layer " + std::to_string(layer) + " " + std::to_string(begin) + ".." + std::to_string(end));
  }
  void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>>) override { log.push_back("prompt_logprobs"); }
  void on_first(std::vector<FirstToken> tokens) override {
    log.push_back("first");
    first = std::move(tokens);
  }
  void on_failed(Status status) override {
    log.push_back("failed");
    failed = std::move(status);
  }
};

struct Rig {
  explicit Rig(ManualLoop& loop, const EngineOptions& options = small_options()) : device(options.kv_blocks, options.block_tokens) {
    auto owned = std::make_unique<FakeExecutor>(loop, device);
    executor = owned.get();
    engine = Engine::create(loop, std::move(owned), options);
  }
  FakeDevice device;
  FakeExecutor* executor;
  std::unique_ptr<Engine> engine;
};

class EngineTest : public testing::Test {
 protected:
  void run(Duration d = std::chrono::seconds(1)) { loop_.advance(d); }
  ManualLoop loop_;
  Rig rig_{loop_};
};

TEST_F(EngineTest, GeneratesInOrderAndNeverBeforeReturning) {
  const auto r = request(20, 3);
  const auto sink = std::make_shared<Sink>();
  const auto call = rig_.engine->generate(r, sink);
  EXPECT_TRUE(sink->log.empty());
  run();
  EXPECT_THAT(sink->log, ElementsAre("served", "served", "token", "token", "token", "finish", "done"));
  EXPECT_EQ(sink->tokens, FakeDevice::reference(r, 0, 256));
  EXPECT_TRUE(sink->done->ok());
  EXPECT_EQ(sink->served.prompt_tokens, 20);
  // Two chunks, 16 and 4 tokens, of 200 us and 100 us a token.
  EXPECT_EQ(sink->served.prefill_start_ms, 0.0);
  EXPECT_EQ(sink->served.first_token_ms, 2.4);
  EXPECT_EQ(rig_.engine->status().blocks_free + rig_.engine->status().blocks_cached, 32);
}

TEST_F(EngineTest, TheAgeOfAStepAndWhatItMayTakeAreKnown) {
  EXPECT_EQ(rig_.engine->status().step_running, Duration(0));
  const auto sink = std::make_shared<Sink>();
  const auto call = rig_.engine->generate(request(20, 3), sink);
  run(Duration(150));
  EXPECT_EQ(rig_.engine->status().step_running, Duration(150));
  EXPECT_GE(rig_.engine->status().step_budget, std::chrono::seconds(10)) << "nobody knows yet what a prefill takes here";
  run();
  EXPECT_TRUE(sink->done.has_value());
  EXPECT_EQ(rig_.engine->status().step_running, Duration(0));
  EXPECT_GT(rig_.engine->status().step_budget, Duration(0));
  EXPECT_LE(rig_.engine->status().step_budget, Duration(1800)) << "the longest step took that";
}

TEST_F(EngineTest, ARefusalComesAsDoneAfterReturning) {
  const auto sink = std::make_shared<Sink>();
  const auto call = rig_.engine->generate(request(300, 3), sink);
  EXPECT_TRUE(sink->log.empty());
  run();
  EXPECT_THAT(sink->log, ElementsAre("done"));
  EXPECT_EQ(sink->done->code(), Code::kInvalidArgument);
  const auto dropped = std::make_shared<Sink>();
  rig_.engine->generate(request(300, 3), dropped).reset();
  run();
  EXPECT_TRUE(dropped->log.empty());
}

TEST_F(EngineTest, DestroyingTheCallCancelsWithinAStepAndSilently) {
  const auto sink = std::make_shared<Sink>();
  std::unique_ptr<wire::GenerateCall> call = rig_.engine->generate(request(20, 100), sink);
  sink->on_each_token = [&] {
    if (sink->tokens.size() == 5) call.reset();  // from inside an event
  };
  run();
  EXPECT_EQ(sink->tokens.size(), 5u);
  EXPECT_FALSE(sink->done.has_value());
  EXPECT_EQ(rig_.engine->status().running, 0);
  EXPECT_EQ(rig_.engine->status().blocks_free + rig_.engine->status().blocks_cached, 32);
  EXPECT_EQ(rig_.executor->plans().size(), 2u + 5u);  // two chunks, four decodes, and the one that ran when it was cancelled
}

TEST_F(EngineTest, FinishChoiceEndsTheCallWhenItWasTheLast) {
  const auto sink = std::make_shared<Sink>();
  const auto call = rig_.engine->generate(request(20, 100), sink);
  sink->on_each_token = [&] {
    if (sink->tokens.size() == 4) call->finish_choice(0);
  };
  run();
  EXPECT_EQ(sink->tokens.size(), 4u);
  EXPECT_TRUE(sink->done->ok());
}

TEST_F(EngineTest, ADeadlineIsATimer) {
  auto r = request(4, 200);
  r.timeout = std::chrono::milliseconds(3);
  const auto sink = std::make_shared<Sink>();
  const auto call = rig_.engine->generate(r, sink);
  run(Duration(2999));
  EXPECT_FALSE(sink->done.has_value());
  run(Duration(1));
  ASSERT_TRUE(sink->done.has_value());
  EXPECT_EQ(sink->done->code(), Code::kDeadlineExceeded);
  EXPECT_GT(sink->tokens.size(), 0u);
}

TEST_F(EngineTest, AFailedDeviceFailsEveryRequestAndTheNext) {
  const auto a = std::make_shared<Sink>();
  const auto b = std::make_shared<Source>();
  const auto call = rig_.engine->generate(request(4, 200), a);
  const auto seq = rig_.engine->prefill(request(100, 2), b);
  ASSERT_TRUE(seq.ok());
  rig_.executor->fail_next();
  run();
  EXPECT_EQ(a->done->code(), Code::kUnavailable);
  EXPECT_EQ(b->failed->code(), Code::kUnavailable);
  EXPECT_TRUE(rig_.engine->status().failed);
  const auto c = std::make_shared<Sink>();
  const auto late = rig_.engine->generate(request(4, 2), c);
  run();
  EXPECT_EQ(c->done->code(), Code::kUnavailable);
}

TEST_F(EngineTest, AnEngineMayGoWhileItsStepRunsAndItsCallsLive) {
  const auto sink = std::make_shared<Sink>();
  std::unique_ptr<wire::GenerateCall> call;
  {
    ManualLoop loop;
    Rig rig(loop);
    call = rig.engine->generate(request(20, 3), sink);
    rig.engine.reset();
    loop.run_posted();
  }
  call->finish_choice(0);
  call.reset();
  EXPECT_TRUE(sink->log.empty());
}

TEST_F(EngineTest, HandsOffBetweenTwoEngines) {
  Rig d(loop_);
  auto r = request(40, 12);
  r.n = 2;
  // Turn one leaves three blocks of the prompt in P's cache, and two in D's.
  const auto warm = std::make_shared<Sink>(), warm_d = std::make_shared<Sink>();
  const auto call_p = rig_.engine->generate(request(24, 1), warm);
  const auto call_d = d.engine->generate(request(16, 1), warm_d);
  run();

  ASSERT_TRUE(d.engine->reserve(LeaseId(7), r).ok());
  const auto source = std::make_shared<Source>();
  const Result<SeqId> at_p = rig_.engine->prefill(r, source);
  ASSERT_TRUE(at_p.ok());
  run();
  // A chunk of 16 tokens after the cached 24: its layers are reported from 0 on, since all of that is in the pool.
  EXPECT_THAT(source->log, ElementsAre("started 24", "layer 0 0..40", "layer 1 0..40", "first"));
  const Result<Grant> grant = d.engine->grant(LeaseId(7), r);
  ASSERT_TRUE(grant.ok());
  EXPECT_EQ(grant->cached_tokens, 16);
  d.device.copy_from(rig_.device, rig_.engine->blocks(*at_p), grant->blocks, 16, 40);
  rig_.engine->release(*at_p);

  const auto sink = std::make_shared<Sink>();
  std::vector<std::vector<TokenId>> choices(2);
  const auto decode = d.engine->start_decode(grant->seq, source->first, sink);
  EXPECT_TRUE(sink->log.empty());
  run();
  EXPECT_TRUE(sink->done->ok());
  // Tokens of the two choices alternate, after the first ones which P gave.
  for (int c = 0; c < 2; ++c) {
    std::vector<TokenId> got = {source->first[static_cast<std::size_t>(c)].token.token};
    for (std::size_t i = static_cast<std::size_t>(c); i < sink->tokens.size(); i += 2) got.push_back(sink->tokens[i]);
    EXPECT_EQ(got, FakeDevice::reference(r, c, 256));
  }
  for (const Rig* rig : {&rig_, &d}) {
    EXPECT_TRUE(rig->device.errors().empty());
    EXPECT_EQ(rig->engine->status().blocks_free + rig->engine->status().blocks_cached, 32);
  }
}

TEST_F(EngineTest, ChunksOfAHandOffAreReportedLayerByLayer) {
  const auto source = std::make_shared<Source>();
  const Result<SeqId> seq = rig_.engine->prefill(request(20, 3), source);
  run();
  EXPECT_THAT(source->log, ElementsAre("started 0", "layer 0 0..16", "layer 1 0..16", "layer 0 16..20", "layer 1 16..20", "first"));
  rig_.engine->release(*seq);
  rig_.engine->release(*seq);
}

TEST_F(EngineTest, AReleasedSourceIsHeardOfNoMore) {
  const auto source = std::make_shared<Source>();
  const Result<SeqId> seq = rig_.engine->prefill(request(20, 3), source);
  loop_.run_posted();
  rig_.engine->release(*seq);
  run();
  EXPECT_THAT(source->log, ElementsAre("started 0"));
  EXPECT_EQ(rig_.engine->status().blocks_free, 32);
}

}  // namespace
}  // namespace baton::engine
