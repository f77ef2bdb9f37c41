#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/fake_device.h"

namespace baton::engine {
namespace {

using testing::HasSubstr;

EngineOptions small_options() {
  EngineOptions o;
  o.max_model_len = 256;
  o.max_num_seqs = 8;
  o.max_num_batched_tokens = 64;
  o.max_step = Duration(0);
  o.kv_blocks = 32;
  o.block_tokens = 8;
  return o;
}

class SchedulerTest : public testing::Test {
 protected:
  explicit SchedulerTest(EngineOptions options = small_options()) { reset(options); }
  void reset(const EngineOptions& options) {
    options_ = options;
    scheduler_.emplace(options);
    device_.emplace(options.kv_blocks, options.block_tokens);
  }
  SeqId add(wire::GenerateRequest r, Purpose purpose = Purpose::kGenerate) {
    Result<SeqId> id = scheduler_->add(std::move(r), purpose, TimePoint{});
    EXPECT_TRUE(id.ok()) << id.status().to_string();
    return *id;
  }
  // One whole step; the tokens of each row, or nothing when there is nothing to do.
  std::vector<std::int32_t> step() {
    const StepPlan* plan = scheduler_->schedule();
    if (plan == nullptr) return {};
    std::vector<std::int32_t> chunks;
    for (const StepRow& row : plan->rows) chunks.push_back(row.end - row.begin);
    device_->run(*plan, result_);
    scheduler_->on_result(result_);
    EXPECT_TRUE(device_->errors().empty()) << device_->errors().front();
    const Status status = scheduler_->check();
    EXPECT_TRUE(status.ok()) << status.to_string();
    return chunks;
  }
  template <class Event>
  std::vector<Event> events(SeqId id) {
    std::vector<Event> out;
    for (const Output& o : scheduler_->outputs()) {
      if (o.request == id && std::holds_alternative<Event>(o.event)) out.push_back(std::get<Event>(o.event));
    }
    return out;
  }
  std::vector<TokenId> tokens(SeqId id, int choice = 0) {
    std::vector<TokenId> out;
    for (const auto& t : events<wire::TokenEvent>(id)) {
      if (t.choice == choice) out.push_back(t.token);
    }
    return out;
  }
  std::vector<TokenId> reference(const wire::GenerateRequest& r, int choice = 0) const {
    return FakeDevice::reference(r, choice, options_.max_model_len);
  }

  EngineOptions options_;
  std::optional<Scheduler> scheduler_;
  std::optional<FakeDevice> device_;
  StepResult result_;
};

using Chunks = std::vector<std::int32_t>;

TEST_F(SchedulerTest, DecodesFirstThenChunksUpToTheBudget) {
  add(request(10, 20));
  EXPECT_EQ(step(), (Chunks{10}));
  add(request(100, 20, 50));
  EXPECT_EQ(step(), (Chunks{1, 63}));
  add(request(30, 20, 90));
  EXPECT_EQ(step(), (Chunks{1, 37, 26}));
  EXPECT_EQ(step(), (Chunks{1, 1, 4}));
  EXPECT_EQ(step(), (Chunks{1, 1, 1}));
}

class WholePrompts : public SchedulerTest {
 protected:
  static EngineOptions options() {
    EngineOptions o = small_options();
    o.chunked_prefill = false;
    o.max_num_seqs = 3;
    o.max_chunk = 4;             // neither counts here
    o.max_step = Duration(100);  // one token's time
    return o;
  }
  WholePrompts() : SchedulerTest(options()) {}
};

TEST_F(WholePrompts, RunBeforeAnyDecodeStepAndApart) {
  add(request(10, 20));
  EXPECT_EQ(step(), (Chunks{10}));
  EXPECT_EQ(step(), (Chunks{1}));
  add(request(100, 3, 50));  // longer than max_num_batched_tokens: alone
  add(request(30, 3, 90));
  EXPECT_EQ(step(), (Chunks{100}));
  EXPECT_EQ(step(), (Chunks{30}));
  EXPECT_EQ(step(), (Chunks{1, 1, 1}));
  const SeqId late = add(request(5, 2, 130));  // no place for a fourth sequence: the others decode until one ends
  EXPECT_EQ(step(), (Chunks{1, 1, 1}));
  EXPECT_EQ(step(), (Chunks{5}));
  EXPECT_EQ(events<wire::TokenEvent>(late).size(), 1u);
  EXPECT_EQ(step(), (Chunks{1, 1}));
}

TEST_F(WholePrompts, SeveralShareAStepInOrderUpToItsTokens) {
  for (const int length : {30, 30, 5}) add(request(length, 5, 3 * length));  // the third would fit, but the second comes before it
  add(request(10, 5, 7));
  EXPECT_EQ(step(), (Chunks{30, 30}));
  EXPECT_EQ(step(), (Chunks{5}));
}

TEST_F(WholePrompts, PromptsThatLackBlocksLetOthersDecode) {
  reset([] {
    EngineOptions o = options();
    o.kv_blocks = 10;
    return o;
  }());
  add(request(40, 9));
  add(request(40, 2, 100));
  EXPECT_EQ(step(), (Chunks{40}));
  for (int i = 0; i < 8; ++i) EXPECT_EQ(step(), (Chunks{1})) << i;
  EXPECT_EQ(step(), (Chunks{40}));
}

TEST_F(WholePrompts, AreCutOnlyWhereRowsOfLogitsEnd) {
  reset([] {
    EngineOptions o = options();
    o.max_logit_rows = 12;
    return o;
  }());
  auto r = request(30, 2);
  r.sampling.prompt_logprobs = 2;
  add(r);
  add(request(9, 3, 60));
  EXPECT_EQ(step(), (Chunks{12}));
  EXPECT_EQ(step(), (Chunks{12}));
  EXPECT_EQ(step(), (Chunks{6, 9}));
  EXPECT_EQ(step(), (Chunks{1, 1}));
}

// Its step is longer than max_step: whoever watches steps is told how long it may be.
TEST_F(WholePrompts, SayHowLongTheirStepMayTake) {
  add(request(50, 1));
  step();
  add(request(200, 1, 60));
  ASSERT_NE(scheduler_->schedule(), nullptr);
  EXPECT_EQ(scheduler_->status().step_expected, Duration(200 * (200 + 50 * 100) / 50));  // what the device took for the first, a token
}

TEST_F(SchedulerTest, ChunksFollowMeasuredSpeed) {
  EngineOptions o = small_options();
  o.max_num_batched_tokens = 1000;
  o.kv_blocks = 1000;
  o.max_model_len = 4000;
  o.max_step = Duration(5000);
  reset(o);
  add(request(2000, 5));
  EXPECT_EQ(step(), (Chunks{128}));  // nothing is known yet
  // The device takes 200 us and 100 us a token: 128 tokens in 13 ms, 101.5 us each, so that 49 fit in 5 ms.
  EXPECT_EQ(step(), (Chunks{49}));
  for (int i = 0; i < 20; ++i) step();
  const std::int32_t chunk = step().front();
  EXPECT_LE(Duration(200 + 100 * chunk), o.max_step);
  EXPECT_GE(chunk, 44);
}

// A long prompt stands back by the time that it takes alone, and no more.
TEST_F(SchedulerTest, AShortPromptDoesNotWaitBehindALongOne) {
  reset([] {
    EngineOptions o = small_options();
    o.max_model_len = 2000;
    o.kv_blocks = 400;
    return o;
  }());
  const auto arrive = [&](int length, Duration at) {
    return scheduler_->add(request(length, 2, length), Purpose::kHandoffSource, TimePoint{} + at).value();
  };
  arrive(64, Duration(0));
  EXPECT_EQ(step(), (Chunks{64}));  // 100 us and a little for each token: the device's own speed is known now
  arrive(1000, Duration(0));
  EXPECT_EQ(step(), (Chunks{64}));
  arrive(20, std::chrono::milliseconds(50));
  arrive(30, std::chrono::milliseconds(60));
  EXPECT_EQ(step(), (Chunks{20, 30, 14})) << "they go first, and the long one gets what is left";
  arrive(40, std::chrono::milliseconds(90));
  arrive(40, std::chrono::milliseconds(150));
  EXPECT_EQ(step(), (Chunks{40, 24}));
  EXPECT_EQ(step(), (Chunks{64})) << "not the one that came later than the long one should have ended";
}

TEST_F(SchedulerTest, FirstComeFirstServedWithinAPriority) {
  EngineOptions o = small_options();
  o.max_num_seqs = 1;
  reset(o);
  const SeqId running = add(request(4, 1));
  auto late = request(4, 1, 10);
  const SeqId second = add(late), third = add(late);
  auto urgent = request(4, 1, 20);
  urgent.priority = -1;
  const SeqId first = add(urgent);
  std::vector<SeqId> order;
  while (!step().empty()) {
    for (const Output& o2 : scheduler_->outputs()) {
      if (std::holds_alternative<Output::Started>(o2.event)) order.push_back(o2.request);
    }
    scheduler_->outputs().clear();
  }
  EXPECT_EQ(order, (std::vector<SeqId>{first, running, second, third}));
}

// Priority is worth a bounded time: a stream of urgent requests delays the others, and does not starve them.
TEST_F(SchedulerTest, PriorityIsWorthABoundedTime) {
  EngineOptions o = small_options();
  o.max_num_seqs = 1;
  reset(o);
  const auto add_at = [&](std::chrono::seconds at, int priority, TokenId start) {
    auto r = request(10, 1, start);
    r.priority = priority;
    return *scheduler_->add(std::move(r), Purpose::kGenerate, TimePoint{at});
  };
  using std::chrono::seconds;
  const SeqId patient = add_at(seconds(0), 1'000'000, 10);
  const SeqId just_ahead = add_at(seconds(119), -1'000'000, 20), late = add_at(seconds(121), -1'000'000, 30);
  const SeqId plain = add_at(seconds(61), 0, 40), behind = add_at(seconds(59), 0, 50);
  std::vector<SeqId> order;
  while (!scheduler_->idle()) {
    step();
    for (const Output& out : scheduler_->outputs())
      if (std::holds_alternative<Output::Done>(out.event)) order.push_back(out.request);
    scheduler_->outputs().clear();
  }
  EXPECT_EQ(order, (std::vector<SeqId>{just_ahead, behind, patient, late, plain}));
}

// A client waits amid its stream: what continues is computed before what begins, and is not preempted for it.
TEST_F(SchedulerTest, WhatContinuesComesBeforeWhatBegins) {
  EngineOptions o = small_options();
  o.max_num_seqs = 1;
  reset(o);
  const SeqId first = add(request(10, 4, 10), Purpose::kHandoffSource);
  wire::GenerateRequest urgent = request(12, 4, 30), resumed = request(14, 9, 50);
  urgent.priority = -6;
  resumed.n_prompt = 10;
  const SeqId second = add(std::move(urgent), Purpose::kHandoffSource), continued = add(std::move(resumed), Purpose::kHandoffSource);
  const auto is_first = [&](SeqId id) { return !events<Output::First>(id).empty(); };
  step();
  EXPECT_TRUE(is_first(continued));
  EXPECT_FALSE(is_first(first) || is_first(second));
  step();
  EXPECT_TRUE(is_first(second));
}

TEST_F(SchedulerTest, APrefixHitSkipsFullBlocksButNeverTheLastToken) {
  const auto r = request(32, 4);
  const SeqId a = add(r);
  while (!step().empty()) {
  }
  const SeqId b = add(r);
  EXPECT_EQ(step(), (Chunks{8}));  // all four blocks are cached; the last is computed again for its logits
  while (!step().empty()) {
  }
  EXPECT_EQ(events<Output::Started>(b).at(0).cached_tokens, 24);
  EXPECT_EQ(tokens(a), tokens(b));
  EXPECT_EQ(tokens(a), reference(r));
  EXPECT_EQ(scheduler_->status().prefix_hits, 24u);
  EXPECT_EQ(scheduler_->status().prefix_queries, 64u);
}

TEST_F(SchedulerTest, GeneratedTokensArePublishedOnceTheirBlockIsFull) {
  const auto first = request(10, 30);
  const SeqId a = add(first);
  while (!step().empty()) {
  }
  auto turn2 = first;  // the conversation so far, and something new
  for (const TokenId t : tokens(a)) turn2.ids.push_back(t);
  turn2.ids.push_back(3);
  turn2.n_prompt = static_cast<std::int32_t>(turn2.ids.size());
  const SeqId b = add(turn2);
  step();
  EXPECT_EQ(events<Output::Started>(b).at(0).cached_tokens, 32);  // of 39 computed
}

TEST_F(SchedulerTest, SaltsSeparateTenants) {
  auto r = request(32, 1);
  add(r);
  step();
  r.cache_salt = "other";
  const SeqId b = add(r);
  EXPECT_EQ(step(), (Chunks{32}));
  EXPECT_EQ(events<Output::Started>(b).at(0).cached_tokens, 0);
}

TEST_F(SchedulerTest, SeveralChoicesAreOnePrefillAndForkedBlocks) {
  auto r = request(20, 12);
  r.n = 4;
  const SeqId id = add(r);
  EXPECT_EQ(step(), (Chunks{20}));
  EXPECT_EQ(device_->computed_tokens(), 20);
  // Two full blocks are shared, the third is there once a choice.
  EXPECT_EQ(scheduler_->status().blocks_total - scheduler_->status().blocks_free, 2 + 4);
  const StepPlan* plan = scheduler_->schedule();
  ASSERT_NE(plan, nullptr);
  EXPECT_EQ(plan->copies.size(), 3u);
  device_->run(*plan, result_);
  scheduler_->on_result(result_);
  while (!step().empty()) {
  }
  for (int choice = 0; choice < 4; ++choice) EXPECT_EQ(tokens(id, choice), reference(r, choice)) << choice;
  EXPECT_EQ(events<wire::FinishEvent>(id).size(), 4u);
  EXPECT_EQ(events<Output::Done>(id).size(), 1u);
}

TEST_F(SchedulerTest, PreemptsTheLatestAndItsTokensStayTheSame) {
  EngineOptions o = small_options();
  o.kv_blocks = 12;  // two sequences of 80 tokens need 20
  reset(o);
  const auto r1 = request(30, 50), r2 = request(30, 50, 100);
  const SeqId a = add(r1), b = add(r2);
  while (!step().empty()) {
  }
  EXPECT_GT(scheduler_->status().preemptions, 0u);
  EXPECT_TRUE(events<Output::Preempted>(a).empty());
  EXPECT_EQ(events<Output::Preempted>(b).size(), scheduler_->status().preemptions) << "whoever waits for it is told";
  EXPECT_EQ(tokens(a), reference(r1));
  EXPECT_EQ(tokens(b), reference(r2));
  // The earlier one was never disturbed: it finished first.
  std::vector<SeqId> done;
  for (const Output& out : scheduler_->outputs()) {
    if (std::holds_alternative<Output::Done>(out.event)) done.push_back(out.request);
  }
  EXPECT_EQ(done, (std::vector<SeqId>{a, b}));
}

TEST_F(SchedulerTest, RefusesWhatCanNeverRun) {
  const auto refusal = [&](const wire::GenerateRequest& r) {
    const Result<SeqId> id = scheduler_->add(r, Purpose::kGenerate, TimePoint{});
    return id.ok() ? std::string("accepted") : std::string(to_string(id.status().code())) + ": " + id.status().message();
  };
  EXPECT_THAT(refusal(request(256, 1)), HasSubstr("maximum context length is 256 tokens"));
  EXPECT_THAT(refusal(request(0, 1)), HasSubstr("empty"));
  EXPECT_THAT(refusal(request(4, 0)), HasSubstr("max_tokens"));
  auto many = request(4, 4);
  many.n = 9;
  EXPECT_THAT(refusal(many), HasSubstr("--max-num-seqs"));
  auto over = request(8, 3);
  over.n_prompt = 5;
  EXPECT_THAT(refusal(over), HasSubstr("generated already"));

  EngineOptions o = small_options();
  o.kv_blocks = 10;  // 80 tokens
  o.vocab = 100;
  reset(o);
  EXPECT_THAT(refusal(request(60, 22)), HasSubstr("--kv-cache-memory-bytes"));
  EXPECT_EQ(refusal(request(60, 21)), "accepted");  // the last token is never computed
  EXPECT_THAT(refusal(request(10, 1, 95)), HasSubstr("token id 100 is outside"));
  o.max_waiting = 0;
  reset(o);
  EXPECT_THAT(refusal(request(1, 1)), HasSubstr("queue is full"));
}

TEST_F(SchedulerTest, FinishConditions) {
  const auto r = request(6, 40);
  const std::vector<TokenId> free_run = reference(r);
  const auto finish = [&](wire::GenerateRequest q) {
    const SeqId id = add(std::move(q));
    while (!step().empty()) {
    }
    return std::pair(tokens(id).size(), events<wire::FinishEvent>(id).at(0));
  };
  {
    const auto [count, f] = finish(r);
    EXPECT_EQ(count, 40u);
    EXPECT_EQ(f.reason, wire::FinishReason::kLength);
  }
  const std::size_t at = static_cast<std::size_t>(std::find(free_run.begin(), free_run.end(), free_run[9]) - free_run.begin());
  {
    auto q = r;
    q.sampling.eos_ids = {free_run[9]};
    const auto [count, f] = finish(q);
    EXPECT_EQ(count, at + 1);
    EXPECT_EQ(f.reason, wire::FinishReason::kStop);
    EXPECT_EQ(f.stop_token, free_run[9]);
    q.sampling.ignore_eos = true;
    EXPECT_EQ(finish(q).first, 40u);
    q.sampling.stop_token_ids = q.sampling.eos_ids;
    EXPECT_EQ(finish(q).first, at + 1);
    q.sampling.min_tokens = 40;
    EXPECT_EQ(finish(q).second.reason, wire::FinishReason::kLength);
  }
  {
    EngineOptions o = small_options();
    o.max_model_len = 20;
    reset(o);
    const auto [count, f] = finish(r);
    EXPECT_EQ(count, 14u);
    EXPECT_EQ(f.reason, wire::FinishReason::kLength);
  }
}

TEST_F(SchedulerTest, AContinuationGoesOnWithTheSameTokens) {
  const auto r = request(12, 30);
  const std::vector<TokenId> all = reference(r);
  auto rest = r;
  rest.ids.insert(rest.ids.end(), all.begin(), all.begin() + 11);
  const SeqId id = add(rest);
  while (!step().empty()) {
  }
  EXPECT_EQ(tokens(id), std::vector<TokenId>(all.begin() + 11, all.end()));
  EXPECT_EQ(events<wire::TokenEvent>(id).front().position, 23);
}

TEST_F(SchedulerTest, BlocksOfARunningStepComeBackWhenItEnds) {
  const SeqId id = add(request(16, 4));
  const StepPlan* plan = scheduler_->schedule();
  ASSERT_NE(plan, nullptr);
  scheduler_->release(id);
  EXPECT_EQ(scheduler_->status().blocks_free, 30);
  EXPECT_TRUE(scheduler_->check().ok());
  device_->run(*plan, result_);
  scheduler_->on_result(result_);
  EXPECT_EQ(scheduler_->status().blocks_free, 32);
  EXPECT_TRUE(events<wire::TokenEvent>(id).empty());
  EXPECT_EQ(scheduler_->schedule(), nullptr);
}

TEST_F(SchedulerTest, ASourceHoldsItsBlocksUntilRelease) {
  auto r = request(20, 5);
  r.n = 2;
  const SeqId id = add(r, Purpose::kHandoffSource);
  EXPECT_EQ(step(), (Chunks{20}));
  EXPECT_EQ(step(), Chunks{});
  const auto first = events<Output::First>(id);
  ASSERT_EQ(first.size(), 1u);
  ASSERT_EQ(first[0].tokens.size(), 2u);
  for (int c = 0; c < 2; ++c) {
    EXPECT_EQ(first[0].tokens[static_cast<std::size_t>(c)].token.token, reference(r, c).front());
    EXPECT_EQ(first[0].tokens[static_cast<std::size_t>(c)].token.position, 20);
  }
  EXPECT_EQ(scheduler_->blocks(id).size(), 3u);
  EXPECT_EQ(scheduler_->next_deadline(), kNever);  // its holder answers for it now
  scheduler_->release(id);
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_TRUE(scheduler_->check().ok());
}

TEST_F(SchedulerTest, CreditIsNeverLentOut) {
  const auto r = request(100, 1);
  ASSERT_TRUE(scheduler_->reserve(LeaseId(1), r).ok());
  EXPECT_EQ(scheduler_->status().blocks_reserved, 14);
  ASSERT_TRUE(scheduler_->reserve(LeaseId(2), r).ok());
  const Status refused = scheduler_->reserve(LeaseId(3), r);
  EXPECT_EQ(refused.code(), Code::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("KV blocks free: 4, wanted: 14"));
  // 4 blocks are left for others: a prompt of 33 tokens waits, until credit is given back.
  const SeqId id = add(request(33, 4, 100));
  EXPECT_EQ(step(), Chunks{});
  const Result<Grant> grant = scheduler_->grant(LeaseId(1), r, TimePoint{});
  ASSERT_TRUE(grant.ok()) << grant.status().to_string();
  EXPECT_EQ(grant->blocks.size(), 13u);
  scheduler_->unreserve(LeaseId(2));
  EXPECT_EQ(step(), (Chunks{33}));
  EXPECT_EQ(scheduler_->grant(LeaseId(2), r, TimePoint{}).status().code(), Code::kNotFound);
  scheduler_->release(grant->seq);
  scheduler_->release(id);
  EXPECT_TRUE(scheduler_->check().ok());
}

TEST_F(SchedulerTest, ATargetPublishesOnlyOnceItDecodes) {
  const auto r = request(24, 6);
  ASSERT_TRUE(scheduler_->reserve(LeaseId(1), r).ok());
  const Result<Grant> grant = scheduler_->grant(LeaseId(1), r, TimePoint{});
  ASSERT_TRUE(grant.ok());
  EXPECT_EQ(grant->cached_tokens, 0);
  ASSERT_TRUE(scheduler_->reserve(LeaseId(2), r).ok());
  const Result<Grant> too_early = scheduler_->grant(LeaseId(2), r, TimePoint{});
  EXPECT_EQ(too_early->cached_tokens, 0);  // nothing is known to have arrived
  scheduler_->release(too_early->seq);

  // What a transfer would have written.
  FakeDevice source(8, 8);
  Scheduler p([] {
    EngineOptions o = small_options();
    o.kv_blocks = 8;
    return o;
  }());
  const SeqId at_p = *p.add(r, Purpose::kHandoffSource, TimePoint{});
  source.run(*p.schedule(), result_);
  p.on_result(result_);
  device_->copy_from(source, p.blocks(at_p), grant->blocks, 0, 24);
  const auto tokens_at_p = std::get<Output::First>(p.outputs().back().event).tokens;

  auto wrong = tokens_at_p;
  wrong[0].token.position = 23;
  EXPECT_EQ(scheduler_->start_decode(grant->seq, wrong).code(), Code::kInvalidArgument);
  ASSERT_TRUE(scheduler_->start_decode(grant->seq, tokens_at_p).ok());
  EXPECT_EQ(scheduler_->start_decode(grant->seq, tokens_at_p).code(), Code::kNotFound);
  while (!step().empty()) {
  }
  std::vector<TokenId> all = {tokens_at_p[0].token.token};
  for (const TokenId t : tokens(grant->seq)) all.push_back(t);
  EXPECT_EQ(all, reference(r));

  ASSERT_TRUE(scheduler_->reserve(LeaseId(3), r).ok());
  const Result<Grant> again = scheduler_->grant(LeaseId(3), r, TimePoint{});
  EXPECT_EQ(again->cached_tokens, 24);  // of a target, the whole prompt may be: its first token comes from P
  scheduler_->release(again->seq);
  EXPECT_TRUE(scheduler_->check().ok());
}

// The time that a prompt took elsewhere is part of its request's.
TEST_F(SchedulerTest, ATargetsDeadlineCountsFromItsGrant) {
  auto r = request(24, 100);
  r.timeout = Duration(1000);
  ASSERT_TRUE(scheduler_->reserve(LeaseId(1), r).ok());
  const Result<Grant> grant = scheduler_->grant(LeaseId(1), r, TimePoint(Duration(500)));
  ASSERT_TRUE(grant.ok());
  EXPECT_EQ(scheduler_->next_deadline(), kNever) << "until it decodes, its lease has one";
  FirstToken first{.token = {.choice = 0, .position = 24, .token = 7, .logprob = {}, .top = {}}, .finish = {}};
  ASSERT_TRUE(scheduler_->start_decode(grant->seq, {first}).ok());
  EXPECT_EQ(scheduler_->next_deadline(), TimePoint(Duration(1500)));
  scheduler_->expire(TimePoint(Duration(1500)));
  EXPECT_EQ(events<Output::Done>(grant->seq).front().status.code(), Code::kDeadlineExceeded);
  EXPECT_TRUE(scheduler_->idle());
}

TEST_F(SchedulerTest, FinishChoiceEndsOneAndTheOthersGoOn) {
  auto r = request(10, 20);
  r.n = 2;
  const SeqId id = add(r);
  step();
  step();
  scheduler_->finish_choice(id, 0);
  scheduler_->finish_choice(id, 0);
  EXPECT_EQ(step(), (Chunks{1}));
  while (!step().empty()) {
  }
  EXPECT_EQ(tokens(id, 0).size(), 2u);
  EXPECT_EQ(tokens(id, 1), reference(r, 1));
  ASSERT_EQ(events<wire::FinishEvent>(id).size(), 2u);
  EXPECT_EQ(events<wire::FinishEvent>(id)[0].reason, wire::FinishReason::kStop);
  EXPECT_EQ(events<Output::Done>(id).size(), 1u);
}

TEST_F(SchedulerTest, DeadlinesEndRequestsInEveryState) {
  EngineOptions o = small_options();
  o.max_num_seqs = 1;
  reset(o);
  auto r = request(10, 100);
  r.timeout = std::chrono::milliseconds(5);
  const SeqId running = add(r), waiting = add(r), source = add(r, Purpose::kHandoffSource);
  step();
  EXPECT_EQ(scheduler_->next_deadline(), TimePoint{} + std::chrono::milliseconds(5));
  scheduler_->expire(TimePoint{} + Duration(4999));
  EXPECT_TRUE(events<Output::Done>(running).empty());
  scheduler_->expire(TimePoint{} + Duration(5000));
  for (const SeqId id : {running, waiting, source}) {
    ASSERT_EQ(events<Output::Done>(id).size(), 1u);
    EXPECT_EQ(events<Output::Done>(id)[0].status.code(), Code::kDeadlineExceeded);
  }
  EXPECT_EQ(scheduler_->schedule(), nullptr);
  EXPECT_FALSE(scheduler_->idle());
  scheduler_->release(source);
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_TRUE(scheduler_->check().ok());
}

TEST_F(SchedulerTest, PromptLogprobsAreOfEveryTokenAndBypassTheCache) {
  EngineOptions o = small_options();
  o.max_logit_rows = 12;
  reset(o);
  auto r = request(30, 2);
  add(r);
  while (!step().empty()) {
  }
  r.sampling.prompt_logprobs = 2;
  const SeqId id = add(r);
  EXPECT_EQ(step(), (Chunks{12}));
  EXPECT_EQ(step(), (Chunks{12}));
  EXPECT_EQ(step(), (Chunks{6}));
  EXPECT_EQ(events<Output::Started>(id).at(0).cached_tokens, 0);
  const auto logprobs = events<Output::PromptLogprobs>(id);
  ASSERT_EQ(logprobs.size(), 1u);
  ASSERT_EQ(logprobs[0].entries.size(), 30u);
  EXPECT_FALSE(logprobs[0].entries[0].has_value());
  for (std::size_t i = 1; i < 30; ++i) {
    EXPECT_EQ(logprobs[0].entries[i]->token, r.ids[i]);
    EXPECT_EQ(logprobs[0].entries[i]->position, static_cast<std::int32_t>(i));
  }
}

TEST_F(SchedulerTest, ADeadDeviceEndsEverything) {
  const SeqId a = add(request(10, 5)), b = add(request(10, 5));
  ASSERT_TRUE(scheduler_->reserve(LeaseId(1), request(10, 5)).ok());
  scheduler_->schedule();
  result_.step = scheduler_->plan().step;
  result_.status = Status(Code::kInternal, "attention: gone");
  scheduler_->on_result(result_);
  for (const SeqId id : {a, b}) {
    ASSERT_EQ(events<Output::Done>(id).size(), 1u);
    EXPECT_EQ(events<Output::Done>(id)[0].status.code(), Code::kUnavailable) << "another worker may do it";
    EXPECT_THAT(events<Output::Done>(id)[0].status.message(), HasSubstr("attention: gone"));
  }
  EXPECT_TRUE(scheduler_->status().failed);
  EXPECT_EQ(scheduler_->add(request(1, 1), Purpose::kGenerate, TimePoint{}).status().code(), Code::kUnavailable);
  EXPECT_TRUE(scheduler_->check().ok());
}

TEST_F(SchedulerTest, SaysWhoHoldsBlocks) {
  EXPECT_TRUE(scheduler_->holds().empty());
  wire::GenerateRequest two = request(20, 8);
  two.id = "two", two.n = 2, two.timeout = std::chrono::seconds(30);
  const TimePoint t(std::chrono::seconds(5));
  const Result<SeqId> id = scheduler_->add(two, Purpose::kGenerate, t);
  ASSERT_TRUE(id.ok());
  EXPECT_TRUE(scheduler_->holds().empty()) << "who waits has none";
  step();
  step();
  const auto holds = scheduler_->holds();
  ASSERT_EQ(holds.size(), 1u);
  EXPECT_EQ(holds[0].request_id, "two");
  EXPECT_EQ(holds[0].state, "running");
  EXPECT_EQ(holds[0].blocks, scheduler_->pool().held()) << "blocks that two choices share count once";
  EXPECT_EQ(holds[0].since, t);
  EXPECT_EQ(holds[0].deadline, t + std::chrono::seconds(30));

  // A hand-off's blocks are the affair of its own ledger.
  add(request(20, 8, 100), Purpose::kHandoffSource);
  step();
  EXPECT_EQ(scheduler_->holds().size(), 1u);

  ASSERT_NE(scheduler_->schedule(), nullptr);
  scheduler_->release(*id);
  ASSERT_EQ(scheduler_->holds().size(), 1u);
  EXPECT_EQ(scheduler_->holds()[0].state, "ending") << "the running step has its blocks";
  EXPECT_TRUE(scheduler_->status().balanced);
}

}  // namespace
}  // namespace baton::engine
