// Single rules of P's attempts that the simulation passes by: what a successor starts from, and what ends without a lease.

#include "transfer/sender.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace baton::transfer {
namespace {

using State = Sender::State;
constexpr int kTokens = 10, kLayers = 2;

class SenderTest : public ::testing::Test {
 protected:
  static SenderSpec spec(std::uint64_t lease, std::uint32_t attempt) {
    return {LeaseId(lease), Attempt(attempt), "r", kTokens, {1, 2}, kLayers, {{0, 2}}, 8, 4, TimePoint(std::chrono::minutes(1)), false};
  }
  static std::vector<FirstToken> first(bool ends = false) {
    FirstToken f{{0, kTokens, 7, {}, {}}, {}};
    if (ends) f.finish = wire::FinishEvent{0, wire::FinishReason::kStop, 7};
    return {f};
  }
  static Grant grant(std::uint64_t lease, std::uint32_t attempt) { return {{LeaseId(lease), Attempt(attempt), Epoch(5)}, 0}; }
  // Its actions; digests are answered.
  void drain(Sender& s) {
    for (bool again = true; again;) {
      again = false;
      for (auto& a : s.take_actions()) {
        again = true;
        if (auto* send = std::get_if<Sender::Send>(&a)) sent_.push_back(send->message);
        if (auto* d = std::get_if<Sender::DigestChunk>(&a)) {
          if (answer_digests_) s.digested(now_, d->id, Digest{3, 4}, "");
          digests_.push_back(d->id);
        }
        if (auto* o = std::get_if<Sender::Outcome>(&a)) outcomes_.push_back(*o);
        if (std::holds_alternative<Sender::ReleaseKv>(a)) ++released_;
      }
    }
  }
  template <class T>
  int count() const {
    return static_cast<int>(std::count_if(sent_.begin(), sent_.end(), [](const Message& m) { return std::holds_alternative<T>(m); }));
  }
  void compute(Sender& s, int layers = kLayers) {
    for (int layer = 0; layer < layers; ++layer) s.layer_ready(now_, layer, 0, kTokens);
  }

  // Attached, granted, computed, with its first token: it has said everything.
  void say_everything(Sender& s) {
    s.attach(now_);
    s.message(now_, grant(1, 1));
    compute(s);
    s.first_tokens(now_, first());
    drain(s);
  }

  TimePoint now_{};
  bool answer_digests_ = true;
  std::vector<Message> sent_;
  std::vector<std::uint64_t> digests_;
  std::vector<Sender::Outcome> outcomes_;
  int released_ = 0;
};

TEST_F(SenderTest, ASuccessorSendsWhatIsComputedAtOnce) {
  Sender a(spec(1, 1), {});
  a.attach(now_);
  compute(a);
  a.first_tokens(now_, first());
  a.link_down(now_, Status(Code::kUnavailable, "D died"));
  drain(a);
  EXPECT_EQ(outcomes_.back().state, State::kNacked);
  sent_.clear();
  auto b = a.succeed(now_, spec(2, 2));
  drain(a);
  EXPECT_EQ(outcomes_.size(), 1u) << "an outcome comes once";
  b->attach(now_);
  b->message(now_, grant(2, 2));
  drain(*b);
  EXPECT_EQ(count<Chunk>(), kLayers);
  ASSERT_EQ(count<Commit>(), 1);
  EXPECT_EQ(std::get<Commit>(sent_.back()).first[0].token.token, 7);
  b->message(now_, Ack{b->key()});
  drain(*b);
  EXPECT_EQ(b->state(), State::kAcked);
  EXPECT_EQ(b->bytes_early(), 0u);
}

TEST_F(SenderTest, WhatIsComputedAfterTheEndIsNotForgotten) {
  Sender a(spec(1, 1), {});
  a.attach(now_);
  compute(a, 1);
  a.link_down(now_, Status(Code::kUnavailable, "D died"));
  a.layer_ready(now_, 1, 0, kTokens);
  a.first_tokens(now_, first());
  auto b = a.succeed(now_, spec(2, 2));
  b->attach(now_);
  b->message(now_, grant(2, 2));
  drain(*b);
  EXPECT_EQ(count<Commit>(), 1);
}

TEST_F(SenderTest, AClaimMidwayGoesOnWithTheComputation) {
  Sender a(spec(1, 1), {});
  a.attach(now_);
  a.message(now_, grant(1, 1));
  a.layer_ready(now_, 0, 0, kTokens);
  answer_digests_ = false;
  drain(a);
  ASSERT_EQ(digests_.size(), 1u);
  auto b = a.succeed(now_, spec(2, 2));
  drain(a);
  EXPECT_EQ(outcomes_.back().state, State::kAborted);
  EXPECT_EQ(count<Abort>(), 1) << "D is told";
  EXPECT_FALSE(a.over());
  a.message(now_, AbortAck{a.key()});
  drain(a);
  EXPECT_EQ(released_, 0) << "a digest still reads";
  a.digested(now_, digests_[0], Digest{}, "");
  drain(a);
  EXPECT_EQ(released_, 1);

  answer_digests_ = true;
  sent_.clear();
  b->attach(now_);
  b->message(now_, grant(2, 2));
  b->layer_ready(now_, 1, 0, kTokens);
  b->first_tokens(now_, first());
  drain(*b);
  EXPECT_EQ(count<Chunk>(), kLayers);
  EXPECT_EQ(count<Commit>(), 1);
  b->message(now_, Nack{a.key(), Status(Code::kCancelled, "late")});
  EXPECT_EQ(b->state(), State::kCommitting) << "words to its predecessor are not for it";
}

TEST_F(SenderTest, WithoutALeaseItWaitsToBeClaimed) {
  Sender a(spec(0, 1), {});
  a.attach(now_);
  compute(a);
  EXPECT_EQ(a.state(), State::kQueued);
  a.first_tokens(now_, first());
  drain(a);
  EXPECT_TRUE(sent_.empty());
  ASSERT_EQ(outcomes_.size(), 1u);
  EXPECT_EQ(outcomes_[0].state, State::kUnclaimed);
  EXPECT_TRUE(a.over());
  auto b = a.succeed(now_, spec(2, 2));
  b->attach(now_);
  b->message(now_, grant(2, 2));
  drain(*b);
  EXPECT_EQ(count<Commit>(), 1);

  Sender ends(spec(0, 1), {});
  compute(ends);
  ends.first_tokens(now_, first(true));
  drain(ends);
  EXPECT_EQ(outcomes_.back().state, State::kNoKv);

  Sender late(spec(0, 1), {});
  now_ += std::chrono::minutes(1);
  late.tick(now_);
  drain(late);
  EXPECT_EQ(outcomes_.back().status.code(), Code::kDeadlineExceeded);
}

TEST_F(SenderTest, ATargetThatIsNotThereEndsWhatHasNotAttached) {
  Sender a(spec(1, 1), {});
  a.link_down(now_, Status(Code::kUnavailable, "no link yet"));
  drain(a);
  EXPECT_TRUE(outcomes_.empty()) << "nothing was said: a new link will do";
  a.target_lost(now_, Status(Code::kUnavailable, "restarted"));
  drain(a);
  ASSERT_EQ(outcomes_.size(), 1u);
  EXPECT_EQ(outcomes_[0].state, State::kNacked);
  EXPECT_TRUE(sent_.empty());
  EXPECT_TRUE(a.over());
}

TEST_F(SenderTest, AfterANackTheKvStaysUntilDReadsNoMore) {
  for (const bool answered : {true, false}) {
    released_ = 0;
    Sender s(spec(1, 1), {});
    say_everything(s);
    s.message(now_, Nack{s.key(), Status(Code::kCancelled, "the decode leg was closed")});
    drain(s);
    EXPECT_EQ(outcomes_.back().state, State::kNacked) << "the logical end";
    EXPECT_EQ(released_, 0) << "a copy may still run";
    EXPECT_EQ(count<Abort>(), 1);
    if (answered) {
      s.message(now_, AbortAck{s.key()});
    } else {
      s.tick(now_ + SenderOptions().abort_timeout);
    }
    drain(s);
    EXPECT_EQ(released_, 1);
    EXPECT_TRUE(s.over());
    EXPECT_EQ(s.state(), State::kNacked);
    sent_.clear();
  }
}

TEST_F(SenderTest, SaysWhenEachLayerWasComputedAndAnnounced) {
  const auto at = [&](int ms) { now_ = TimePoint(std::chrono::milliseconds(ms)); };
  SenderSpec named = spec(1, 3);
  named.start = TimePoint(std::chrono::milliseconds(100));
  Sender s(named, {});
  at(110);
  s.started(now_);
  s.attach(now_);
  at(111);
  s.message(now_, grant(1, 3));
  drain(s);
  for (int layer = 0; layer < kLayers; ++layer) {
    at(120 + layer);
    s.layer_ready(now_, layer, 0, 6);
    drain(s);
  }
  for (int layer = 0; layer < kLayers; ++layer) {
    at(130 + layer);
    s.layer_ready(now_, layer, 6, kTokens);
    drain(s);
  }
  EXPECT_EQ(s.progress_at(), now_);
  at(140);
  s.first_tokens(now_, first());
  drain(s);
  at(141);
  s.message(now_, Ack{s.key()});
  const wire::HandoffTimes& t = s.times();
  EXPECT_EQ(t.attempt, Attempt(3));
  EXPECT_EQ(t.epoch, Epoch(5));
  EXPECT_EQ(t.started_us, 10'000);
  EXPECT_EQ(t.attached_us, 10'000);
  EXPECT_EQ(t.granted_us, 11'000);
  EXPECT_EQ(t.ready_us, (std::vector<std::int64_t>{30'000, 31'000})) << "of a layer's last part";
  EXPECT_EQ(t.announced_us, t.ready_us);
  EXPECT_EQ(t.chunks, (std::vector<std::pair<std::int32_t, std::int64_t>>{{6, 21'000}, {kTokens, 31'000}}));
  EXPECT_EQ(t.computed_us, 31'000);
  EXPECT_EQ(t.first_token_us, 40'000);
  EXPECT_EQ(t.commit_us, 40'000);
  EXPECT_EQ(t.ended_us, 41'000);
  EXPECT_FALSE(t.failure);
}

TEST_F(SenderTest, TheTimesOfADeepModelAndALongPromptAreBounded) {
  SenderSpec deep = spec(1, 1);
  deep.layers = 1000, deep.n_tokens = 500;
  Sender s(deep, {});
  for (std::int32_t token = 0; token < deep.n_tokens; ++token)
    for (std::int32_t layer = 0; layer < deep.layers; ++layer) s.layer_ready(now_, layer, token, token + 1);
  EXPECT_EQ(s.times().ready_us.size(), wire::HandoffTimes::kLayersMax);
  EXPECT_EQ(s.times().chunks.size(), wire::HandoffTimes::kChunksMax);
}

// However slowly it answers: what it owes must come nearer, and the request's own deadline ends all of it.
TEST_F(SenderTest, ATargetThatMakesNoProgressIsGivenUp) {
  const Duration limit = SenderOptions().progress_timeout;
  const auto given_up = [&](Sender& s) {
    EXPECT_EQ(s.next_deadline(), now_ + limit);
    s.tick(now_ + limit - Duration(1));
    drain(s);
    EXPECT_TRUE(outcomes_.empty());
    s.tick(now_ + limit);
    drain(s);
    ASSERT_EQ(outcomes_.size(), 1u);
    EXPECT_EQ(outcomes_[0].state, State::kNacked) << "what is computed is good for another D";
    EXPECT_TRUE(retryable(outcomes_[0].status.code()));
    outcomes_.clear();
  };
  Sender no_grant(spec(1, 1), {});
  no_grant.attach(now_);
  drain(no_grant);
  given_up(no_grant);

  Sender no_fetch(spec(1, 1), {});
  no_fetch.attach(now_);
  no_fetch.message(now_, grant(1, 1));
  EXPECT_EQ(no_fetch.next_deadline(), TimePoint(std::chrono::minutes(1))) << "nothing is owed: the computation sets the pace";
  no_fetch.layer_ready(now_, 0, 0, kTokens);
  drain(no_fetch);
  now_ += limit / 2;
  no_fetch.message(now_, Fetched{no_fetch.key(), 0});
  now_ -= limit / 2;
  given_up(no_fetch);

  Sender no_ack(spec(1, 1), {});
  say_everything(no_ack);
  ASSERT_EQ(no_ack.state(), State::kCommitting);
  for (const std::uint64_t bytes : {100u, 200u, 640u}) {
    now_ += limit - Duration(1);
    no_ack.message(now_, Fetched{no_ack.key(), bytes});
  }
  given_up(no_ack);
}
TEST_F(SenderTest, ATargetThatProvesAByteAtATimeHasTheRequestsDeadline) {
  Sender s(spec(1, 1), {});
  say_everything(s);
  for (std::uint64_t bytes = 1; outcomes_.empty(); ++bytes) {
    ASSERT_LT(bytes, 100u);
    now_ += SenderOptions().progress_timeout - Duration(1);
    s.tick(now_);
    s.message(now_, Fetched{s.key(), bytes});
    drain(s);
  }
  EXPECT_EQ(outcomes_[0].status.code(), Code::kDeadlineExceeded);
  EXPECT_GE(now_, TimePoint(std::chrono::minutes(1)));
}

}  // namespace
}  // namespace baton::transfer
