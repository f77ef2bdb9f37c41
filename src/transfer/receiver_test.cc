// Single rules of the ledger that the simulation passes by: what is refused, what is said again, what each deadline does.

#include "transfer/receiver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "transfer/relayout.h"

namespace baton::transfer {
namespace {

using ::testing::HasSubstr;
using State = Receiver::State;

constexpr LeaseId kLease{5};
constexpr LinkId kP{1}, kQ{2};
constexpr int kTokens = 10, kBlock = 4;

LocalWorker local() {
  LocalWorker w;
  w.incarnation = Incarnation(9);
  w.model_digest = "m";
  w.kv = {2, 2, 4, "bf16"};
  w.block_tokens = kBlock;
  return w;
}
Hello hello() {
  Hello h;
  h.model_digest = "m";
  h.kv = {2, 2, 4, "bf16"};
  const auto view = device::KvView::dense({2, 2, 4, device::DType::kBF16, kBlock, 8});
  h.region.parts = {{1, view.spec.bytes(), view, {0, 2}}};
  return h;
}

class ReceiverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (LinkId link : {kP, kQ}) {
      r_.link_up(now_, link);
      r_.message(now_, link, hello());
      r_.peer_opened(now_, link, Status());
    }
    ASSERT_TRUE(r_.reserve(now_, {kLease, "req", kTokens, {1, 2}, 0, 1, now_ + std::chrono::hours(1)}).ok());
    (void)r_.take_actions();
  }
  Key key(int attempt, std::uint64_t epoch = 0) const { return {kLease, Attempt(static_cast<std::uint32_t>(attempt)), Epoch(epoch)}; }
  void attach(LinkId link, int attempt) { r_.message(now_, link, Attach{key(attempt), "req", kTokens, {1, 2}}); }
  // Attaches and grants; returns the epoch.
  Key grant(LinkId link, int attempt, std::int32_t cached = 4) {
    attach(link, attempt);
    if (r_.state(kLease) == State::kGranting) r_.granted(now_, kLease, Receiver::Blocks{cached, {BlockId(0), BlockId(1), BlockId(2)}});
    return sent<Grant>().value_or(Grant{}).key;
  }
  void chunk(LinkId link, const Key& k, int layer, Range tokens, Range heads = {0, 2}) {
    r_.message(now_, link, Chunk{k, layer, heads, tokens, {3, 3}, "locator"});
  }
  void commit(LinkId link, const Key& k, int position = kTokens) {
    r_.message(now_, link, Commit{k, {{{0, position, 17, std::nullopt, {}}, std::nullopt}}});
  }
  void collect() {
    for (auto& a : r_.take_actions()) actions_.push_back(std::move(a));
  }
  // The last message of a type that was sent since the last call of clear().
  template <class T>
  std::optional<T> sent() {
    collect();
    std::optional<T> found;
    for (const auto& a : actions_) {
      if (const auto* s = std::get_if<Receiver::SendTo>(&a)) {
        if (const auto* m = std::get_if<T>(&s->message)) found = *m;
      }
    }
    return found;
  }
  template <class T>
  std::vector<T> did() {
    collect();
    std::vector<T> found;
    for (const auto& a : actions_) {
      if (const auto* x = std::get_if<T>(&a)) found.push_back(*x);
    }
    return found;
  }
  void clear() {
    collect();
    actions_.clear();
  }
  void fetch_all(Digest digest = {3, 3}) {
    for (const auto& f : did<Receiver::Fetch>()) r_.fetched(now_, f.id, digest);
    clear();
  }
  Key committed() {
    const Key k = grant(kP, 1);
    for (int layer = 0; layer < 2; ++layer) chunk(kP, k, layer, {4, kTokens});
    fetch_all();
    commit(kP, k);
    return k;
  }

  TimePoint now_{};
  Receiver r_{local(), {}};
  std::vector<Receiver::Action> actions_;
};

TEST_F(ReceiverTest, SaysWhenEachLayerWasVerifiedAndHowMuchOfIt) {
  const auto ms = [](int n) { return std::chrono::milliseconds(n); };
  const auto at = [&](int n) { now_ = TimePoint(ms(n)); };
  at(2);
  Key k = grant(kP, 1);
  chunk(kP, k, 0, {4, kTokens});
  at(5);
  fetch_all();
  at(6);
  ASSERT_EQ(r_.held().size(), 1u);
  EXPECT_EQ(r_.held()[0].state, State::kReceiving);
  EXPECT_EQ(r_.held()[0].blocks, 3);
  EXPECT_EQ(r_.held()[0].progress_at, TimePoint(ms(5)));
  EXPECT_EQ(r_.stats(now_).idle_blocks, ms(1));
  r_.link_down(now_, kP);
  const auto failed = did<Receiver::AttemptFailed>();
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].times.attempt, Attempt(1));
  EXPECT_EQ(failed[0].times.attached_us, 2'000);
  EXPECT_EQ(failed[0].times.ended_us, 6'000);
  ASSERT_TRUE(failed[0].times.failure);
  EXPECT_THAT(failed[0].times.failure->message(), HasSubstr("link"));
  const std::int64_t rows = (kTokens - 4) * 2 * 2 * 8;
  EXPECT_EQ(failed[0].times.verified_us, (std::vector<std::int64_t>{5'000, -1}));
  EXPECT_EQ(failed[0].times.verified_bytes, (std::vector<std::int64_t>{rows, 0}));

  at(10);
  k = grant(kQ, 2);
  for (int layer = 0; layer < 2; ++layer) {
    at(12 + layer);
    chunk(kQ, k, layer, {4, kTokens});
    fetch_all();
  }
  at(20);
  commit(kQ, k);
  const auto done = did<Receiver::StartDecode>();
  ASSERT_EQ(done.size(), 1u);
  const wire::HandoffTimes& t = done[0].times;
  EXPECT_EQ(t.attempt, Attempt(2));
  EXPECT_EQ(t.epoch, k.epoch);
  EXPECT_EQ(t.attached_us, 10'000);
  EXPECT_EQ(t.granted_us, 10'000);
  EXPECT_EQ(t.verified_us, (std::vector<std::int64_t>{12'000, 13'000}));
  EXPECT_EQ(t.verified_bytes, (std::vector<std::int64_t>{rows, rows})) << "of the attempt that ended nothing counts";
  EXPECT_EQ(t.commit_us, 20'000);
  EXPECT_EQ(t.ended_us, 20'000);
  EXPECT_FALSE(t.failure);
  EXPECT_TRUE(r_.held().empty()) << "the engine's from here on";
}

TEST_F(ReceiverTest, CommitsWhatIsProvenAndAcksAgain) {
  const Key k = committed();
  ASSERT_EQ(did<Receiver::StartDecode>().size(), 1u);
  EXPECT_EQ(did<Receiver::StartDecode>()[0].kv_bytes, 2u * 2 * 6 * 2 * 8);
  EXPECT_TRUE(sent<Ack>());
  clear();
  commit(kP, k);
  EXPECT_TRUE(sent<Ack>());
  EXPECT_TRUE(did<Receiver::StartDecode>().empty());
  attach(kQ, 2);
  EXPECT_THAT(sent<Refuse>()->status.message(), HasSubstr("committed"));
  r_.cancel(now_, kLease, Status());
  EXPECT_FALSE(r_.state(kLease));
  EXPECT_TRUE(did<Receiver::FreeLease>().empty()) << "its blocks are the engine's";
}

TEST_F(ReceiverTest, AttemptsOnlyGrow) {
  const Key k = grant(kP, 3);
  clear();
  for (int stale : {3, 2}) {
    attach(kQ, stale);
    EXPECT_THAT(sent<Refuse>()->status.message(), HasSubstr("not newer"));
    EXPECT_EQ(r_.state(kLease), State::kReceiving);
    EXPECT_FALSE(sent<Nack>());
    clear();
  }
  chunk(kP, k, 0, {4, kTokens});
  const auto fetches = did<Receiver::Fetch>();
  ASSERT_EQ(fetches.size(), 1u);
  attach(kQ, 4);
  EXPECT_EQ(sent<Nack>()->key, k);
  EXPECT_FALSE(sent<Grant>() && sent<Grant>()->key.attempt == Attempt(4)) << "not while a fetch of attempt 3 may write";
  r_.fetched(now_, fetches[0].id, Digest{3, 3});
  ASSERT_TRUE(sent<Grant>());
  EXPECT_EQ(sent<Grant>()->key.attempt, Attempt(4));
  EXPECT_GT(sent<Grant>()->key.epoch, k.epoch);
  clear();
  commit(kP, k);
  EXPECT_TRUE(sent<Nack>()) << "the fenced attempt hears that it is over";
  EXPECT_EQ(r_.state(kLease), State::kReceiving);
}

TEST_F(ReceiverTest, ChunksOfOthersAreNothing) {
  const Key k = grant(kP, 1);
  clear();
  chunk(kQ, k, 0, {4, kTokens});
  chunk(kP, {kLease, k.attempt, Epoch(k.epoch.value + 1)}, 0, {4, kTokens});
  chunk(kP, {LeaseId(6), k.attempt, k.epoch}, 0, {4, kTokens});
  EXPECT_TRUE(did<Receiver::Fetch>().empty());
  EXPECT_EQ(r_.state(kLease), State::kReceiving);
  EXPECT_EQ(r_.stats(now_).stale, 3u);
}

TEST_F(ReceiverTest, RangesThatOverlapOrLeaveAreNacked) {
  int attempt = 0;
  const auto nacked = [&](const std::function<void(const Key&)>& say, const std::string& why) {
    clear();
    const Key k = grant(kP, ++attempt);
    say(k);
    ASSERT_TRUE(sent<Nack>()) << why;
    EXPECT_THAT(sent<Nack>()->status.message(), HasSubstr(why));
    fetch_all();
    EXPECT_EQ(r_.state(kLease), State::kAwaitingAttempt);
  };
  nacked([&](const Key& k) { chunk(kP, k, 0, {3, 6}); }, "outside");
  nacked([&](const Key& k) { chunk(kP, k, 0, {4, kTokens + 1}); }, "outside");
  nacked([&](const Key& k) { chunk(kP, k, 2, {4, 6}); }, "no such layer");
  nacked([&](const Key& k) { chunk(kP, k, 0, {4, 6}, {0, 3}); }, "no such head");
  nacked(
      [&](const Key& k) {
        chunk(kP, k, 1, {4, 8}, {1, 2});
        chunk(kP, k, 1, {7, 9}, {0, 2});
      },
      "announced twice");
  nacked(
      [&](const Key& k) {
        chunk(kP, k, 0, {4, kTokens});
        chunk(kP, k, 1, {4, kTokens - 1});
        commit(kP, k);
      },
      "does not cover");
  nacked(
      [&](const Key& k) {
        for (int layer = 0; layer < 2; ++layer) chunk(kP, k, layer, {4, kTokens});
        commit(kP, k, kTokens + 1);
      },
      "first tokens");
}

TEST_F(ReceiverTest, LegsThatDisagreeAboutTheIdsAreRefused) {
  r_.message(now_, kP, Attach{key(1), "req", kTokens, {1, 3}});
  EXPECT_THAT(sent<Refuse>()->status.message(), HasSubstr("same tokens"));
  r_.message(now_, kP, Attach{key(1), "req", kTokens - 1, {1, 2}});
  r_.message(now_, kP, Attach{key(1), "other", kTokens, {1, 2}});
  EXPECT_EQ(r_.state(kLease), State::kReserved);
  EXPECT_TRUE(grant(kP, 1).epoch != Epoch(0));
}

TEST_F(ReceiverTest, EveryStateHasItsDeadline) {
  const auto fire = [&] {
    now_ = r_.next_deadline();
    ASSERT_NE(now_, kNever);
    r_.tick(now_);
  };
  const Key k = grant(kP, 1);
  fire();  // nothing announced for too long
  EXPECT_EQ(r_.state(kLease), State::kAwaitingAttempt);
  EXPECT_EQ(sent<Nack>()->key, k);
  EXPECT_TRUE(retryable(sent<Nack>()->status.code()));
  fire();  // no next attempt
  EXPECT_FALSE(r_.state(kLease));
  EXPECT_EQ(did<Receiver::LeaseFailed>().size(), 1u);
  EXPECT_EQ(did<Receiver::FreeLease>().size(), 1u);
  EXPECT_EQ(r_.next_deadline(), kNever);
}

TEST_F(ReceiverTest, CancelFreesOnlyAtThePhysicalEnd) {
  const Key k = grant(kP, 1);
  chunk(kP, k, 0, {4, kTokens});
  const auto fetches = did<Receiver::Fetch>();
  r_.message(now_, kP, Abort{k});
  EXPECT_FALSE(sent<AbortAck>());
  r_.cancel(now_, kLease, Status(Code::kCancelled, "gone"));
  r_.cancel(now_, kLease, Status(Code::kCancelled, "gone"));
  EXPECT_TRUE(did<Receiver::FreeLease>().empty());
  EXPECT_EQ(did<Receiver::CancelFetch>().size(), 1u);
  r_.fetched(now_, fetches[0].id, Status(Code::kCancelled, "cancelled"));
  EXPECT_EQ(did<Receiver::FreeLease>().size(), 1u);
  EXPECT_TRUE(sent<AbortAck>());
  EXPECT_TRUE(did<Receiver::LeaseFailed>().empty()) << "whoever cancels knows";
}

TEST_F(ReceiverTest, StrangersKeepNobodyOut) {
  ReceiverOptions options;
  options.links_max = 3;
  Receiver r(local(), options);
  const auto closed = [&] {
    std::vector<LinkId> out;
    for (const auto& a : r.take_actions()) {
      if (const auto* c = std::get_if<Receiver::CloseLink>(&a)) out.push_back(c->link);
    }
    return out;
  };
  r.link_up(now_, LinkId(1));
  r.message(now_, LinkId(1), hello());
  r.peer_opened(now_, LinkId(1), Status());
  for (std::uint64_t i = 2; i <= 10; ++i) r.link_up(now_, LinkId(i));
  EXPECT_THAT(closed(), ::testing::ElementsAre(LinkId(2), LinkId(3), LinkId(4), LinkId(5), LinkId(6), LinkId(7), LinkId(8)));
  EXPECT_EQ(r.stats(now_).links, 3u);
  for (std::uint64_t i : {9u, 10u}) {
    r.message(now_, LinkId(i), hello());
    r.peer_opened(now_, LinkId(i), Status());
  }
  r.link_up(now_, LinkId(11));
  EXPECT_THAT(closed(), ::testing::ElementsAre(LinkId(11))) << "every place is a known worker's";
}

TEST(Hello, NamesTheDifference) {
  const auto why = [](const std::function<void(Hello&)>& change) {
    Hello h = hello();
    change(h);
    return check_hello(local(), h).to_string();
  };
  EXPECT_EQ(why([](Hello&) {}), "ok");
  EXPECT_EQ(why([](Hello& h) { h.numerics_id = "other"; }), "ok") << "valid, but tokens may differ";
  EXPECT_THAT(why([](Hello& h) { h.model_digest = "x"; }),
              HasSubstr("model digest differs: prefill worker has 'x', decode worker has 'm'"));
  EXPECT_THAT(why([](Hello& h) { h.kv.head_dim = 8; }),
              HasSubstr("KV schema differs: prefill worker has '2 layers x 2 KV heads x 8 bf16'"));
  EXPECT_EQ(why([](Hello& h) {
              h.kv.dtype = "f32";
              auto& part = h.region.parts[0];
              part.view = device::KvView::dense({2, 2, 4, device::DType::kF32, kBlock, 8});
              part.bytes = part.view.spec.bytes();
            }),
            "ok")
      << "converted on the way";
  EXPECT_THAT(why([](Hello& h) { h.kv.dtype = "f32"; }), HasSubstr("shape"));
  EXPECT_THAT(why([](Hello& h) { h.region.parts[0].bytes -= 1; }), HasSubstr("leaves its region"));
  EXPECT_THAT(why([](Hello& h) { h.region.parts[0].heads = {1, 3}; }), HasSubstr("shape"));
}

}  // namespace
}  // namespace baton::transfer
