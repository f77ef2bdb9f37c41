#include "gateway/pairs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gateway/test_core.h"

namespace baton::gateway {
namespace {

using testing::healthy;
using testing::request_of;
using ::testing::UnorderedElementsAre;
using wire::Role;

class PairsTest : public ::testing::Test {
 protected:
  PairsTest() : registry_({}, {{"p0", "h", 1, Role::kPrefill}, {"d0", "h", 2, Role::kDecode}}) {
    registry_.on_status(now_, kP, healthy("p0", Role::kPrefill));
    registry_.on_status(now_, kD, healthy("d0", Role::kDecode));
  }
  bool avoided() const { return pairs_.avoid(now_, kP, kD); }

  static constexpr WorkerId kP{0}, kD{1};
  TimePoint now_{};
  Registry registry_;
  Pairs pairs_{registry_};
};

TEST_F(PairsTest, AWayThatFailedIsAvoidedLongerEachTimeButAlwaysTriedAgain) {
  EXPECT_FALSE(avoided());
  Duration pause = Pairs::kFirstPause;
  for (int i = 0; i < 8; ++i) {
    SCOPED_TRACE(i);
    pairs_.failed(now_, kP, kD);
    pairs_.failed(now_, kP, kD);  // of a request that was on its way too: no second offence
    now_ += pause - Duration(1);
    EXPECT_TRUE(avoided());
    now_ += Duration(1);
    EXPECT_FALSE(avoided()) << "somebody must try";
    pairs_.on_used(now_, kP, kD);
    EXPECT_TRUE(avoided()) << "one is enough";
    pause = std::min(2 * pause, Pairs::kLastPause);
  }
  EXPECT_EQ(pause, Pairs::kLastPause);
  pairs_.worked(kP, kD);
  EXPECT_FALSE(avoided());
}

TEST_F(PairsTest, WhoTriedAndWasNeverHeardOfKeepsNobodyAwayForEver) {
  pairs_.failed(now_, kP, kD);
  now_ += Pairs::kFirstPause;
  pairs_.on_used(now_, kP, kD);  // cancelled by its client
  now_ += Pairs::kFirstPause;
  EXPECT_FALSE(avoided());
}

TEST_F(PairsTest, AWorkerThatStartsAnewHasNoPast) {
  pairs_.failed(now_, kP, kD);
  wire::WorkerStatus anew = healthy("d0", Role::kDecode);
  anew.incarnation = Incarnation(2);
  registry_.on_status(now_, kD, anew);
  EXPECT_FALSE(avoided());
}

class CorePairsTest : public testing::CoreTest {
 protected:
  // The hand-off of the latest prefill leg comes to nothing, and so do those that follow it on the same way.
  void hand_off_fails() { event(prefill(), wire::Nacked{Status(Code::kUnavailable, "the link broke")}); }
  std::string prefill_worker() const { return worker(prefills_.back().worker); }
};

TEST_F(CorePairsTest, OthersDoNotGoTheWayThatFailedOne) {
  start({{"p0", Role::kPrefill}, {"p1", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  const std::string bad = prefill_worker();
  hand_off_fails();
  EXPECT_NE(prefill_worker(), bad);
  for (std::uint64_t i = 0; i < 6; ++i) {
    submit(request_of({10, 20, 30 + static_cast<TokenId>(i)}));
    event(decode(), wire::Reserved{LeaseId(100 + i)});
    EXPECT_NE(prefill_worker(), bad) << i;
  }
  now_ += Pairs::kFirstPause;  // then one tries it, since it is the idle one
  int tried = 0;
  for (std::uint64_t i = 0; i < 4; ++i) {
    submit(request_of({5, 6, 7 + static_cast<TokenId>(i)}));
    event(decode(), wire::Reserved{LeaseId(200 + i)});
    tried += prefill_worker() == bad;
  }
  EXPECT_EQ(tried, 1);
}

TEST_F(CorePairsTest, ADecodeWorkerThatNobodyReachesIsALastResort) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  const std::string bad = worker(decode_worker());
  hand_off_fails();
  for (std::uint64_t i = 0; i < 6; ++i) {
    submit(request_of({10, 20, 30 + static_cast<TokenId>(i)}));
    EXPECT_NE(worker(decode_worker()), bad) << i;
  }
}

TEST_F(CorePairsTest, TheOnlyWayIsTakenWhateverItsPast) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  hand_off_fails();
  ASSERT_EQ(prefills_.size(), 2u);
  event(prefill(), wire::Started{});
  event(prefill(), wire::Tokens{{token(3, 50)}});
  event(decode(), wire::Committed{prefills_.back().body.attempt, {token(3, 50)}});
  EXPECT_THAT(tokens_[0], UnorderedElementsAre(50));
}

}  // namespace
}  // namespace baton::gateway
