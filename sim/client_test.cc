// The clients see what they must see: a generator that does wrong, in each way that there is.

#include <gtest/gtest.h>

#include "sim/load.h"

namespace baton::sim {
namespace {

constexpr std::int64_t kMaxLen = 512;

class Script final : public wire::Generator {
 public:
  std::unique_ptr<wire::GenerateCall> generate(wire::GenerateRequest, std::shared_ptr<wire::GenerateSink> s) override {
    struct Call final : wire::GenerateCall {
      void finish_choice(int) override {}
    };
    sink = std::move(s);
    return std::make_unique<Call>();
  }
  std::shared_ptr<wire::GenerateSink> sink;
};

class ClientTest : public ::testing::Test {
 protected:
  void start(bool may_fail = false) {
    ClientPlan plan;
    plan.request.id = "r0";
    plan.request.ids = {5, 6, 7};
    plan.request.n_prompt = 3;
    plan.request.sampling.max_tokens = 4;
    plan.request.sampling.ignore_eos = true;
    plan.request.sampling.temperature = 0;
    plan.request.timeout = std::chrono::seconds(1);
    plan.may_fail = may_fail;
    client_ = std::make_shared<Client>(trace_, plan, ModelShape{2, 1}, kMaxLen, failures_);
    client_->arrive(host_, script_);
    while (queue_.run_one()) {
    }
    served_.prompt_tokens = 3;
  }
  wire::TokenEvent token(int i) const {
    return {
        .choice = 0, .position = 3 + i, .token = client_->expected(0).tokens[static_cast<std::size_t>(i)].token, .logprob = {}, .top = {}};
  }
  void tokens(int from, int to) {
    for (int i = from; i < to; ++i) client_->on_token(token(i));
  }
  std::string failed() const { return failures_.any() ? failures_.messages()[0].substr(0, failures_.messages()[0].find(' ')) : ""; }

  EventQueue queue_;
  Host host_{queue_, "gateway"};
  Trace trace_;
  Failures failures_;
  Script script_;
  std::shared_ptr<Client> client_;
  wire::Served served_;
};

TEST_F(ClientTest, WhatIsRightPasses) {
  start();
  client_->on_served(served_);
  tokens(0, 4);
  client_->on_finish(client_->expected(0).finish);
  client_->on_done({});
  EXPECT_EQ(client_->outcome(), Client::Outcome::kComplete);
  EXPECT_EQ(failed(), "") << failures_.messages()[0];
  client_->on_done({});
  EXPECT_EQ(failed(), "I8") << "an end after the end";
}
TEST_F(ClientTest, I13AGap) {
  start();
  tokens(0, 1);
  tokens(2, 3);
  EXPECT_EQ(failed(), "I13");
}
TEST_F(ClientTest, I13ARepeat) {
  start();
  tokens(0, 2);
  tokens(1, 2);
  EXPECT_EQ(failed(), "I13");
}
TEST_F(ClientTest, I13ATokenBehindTheFinish) {
  start();
  tokens(0, 4);
  client_->on_finish(client_->expected(0).finish);
  tokens(3, 4);
  EXPECT_EQ(failed(), "I13");
}
TEST_F(ClientTest, I14AWrongToken) {
  start();
  wire::TokenEvent wrong = token(0);
  wrong.token ^= 1;
  client_->on_token(wrong);
  EXPECT_EQ(failed(), "I14");
}
TEST_F(ClientTest, I14AWrongFinish) {
  start();
  tokens(0, 4);
  client_->on_finish({.choice = 0, .reason = wire::FinishReason::kStop, .stop_token = TokenId(9)});
  EXPECT_EQ(failed(), "I14");
}
TEST_F(ClientTest, I16TooFewTokens) {
  start();
  tokens(0, 3);
  client_->on_finish(client_->expected(0).finish);
  EXPECT_EQ(failed(), "I16");
}
TEST_F(ClientTest, I16AWrongCountOfThePrompt) {
  start();
  served_.prompt_tokens = 4;
  client_->on_served(served_);
  EXPECT_EQ(failed(), "I16");
}
TEST_F(ClientTest, I16MoreCachedThanThereAre) {
  start();
  served_.cached_tokens = 4;
  client_->on_served(served_);
  EXPECT_EQ(failed(), "I16");
}
TEST_F(ClientTest, I8DoneWithoutFinish) {
  start();
  client_->on_served(served_);
  tokens(0, 4);
  client_->on_done({});
  EXPECT_EQ(failed(), "I8");
}
TEST_F(ClientTest, I8ADeadlineBeforeItsTime) {
  start();
  client_->on_done({Code::kDeadlineExceeded, "early"});
  EXPECT_EQ(failed(), "I8");
}
TEST_F(ClientTest, I18AnErrorWhereNothingFails) {
  start();
  client_->on_done({Code::kUnavailable, "no worker"});
  EXPECT_EQ(failed(), "I18");
}
TEST_F(ClientTest, I18AnErrorThatDoesNotSayTryAgain) {
  start(/*may_fail=*/true);
  client_->on_done({Code::kCancelled, "somebody cancelled"});
  EXPECT_EQ(failed(), "I18");
}
TEST_F(ClientTest, AnErrorThatSaysTryAgainWhereSomethingFails) {
  start(/*may_fail=*/true);
  client_->on_done({Code::kUnavailable, "no worker"});
  EXPECT_EQ(failed(), "");
  EXPECT_EQ(client_->outcome(), Client::Outcome::kRefused);
}

}  // namespace
}  // namespace baton::sim
