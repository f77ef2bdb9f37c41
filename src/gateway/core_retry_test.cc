// How often a request is tried: what a worker lost at work costs, and what one costs that was lost while the request only waited there.

#include "gateway/core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gateway/test_core.h"

namespace baton::gateway {
namespace {

using ::testing::HasSubstr;
using testing::kLost;
using testing::request_of;
using wire::Role;

class CoreRetryTest : public testing::CoreTest {
 protected:
  // The connection of `leg` breaks; its worker answers the poll that follows.
  void cut(LegId leg, WorkerId worker_id) {
    const wire::WorkerStatus status = core_->registry().at(worker_id).status;
    ended(leg, LegEnd::Kind::kBroken, kLost);
    core_->on_status(now_, worker_id, status);
    pump();
  }
};

TEST_F(CoreRetryTest, RetriesAreBounded) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  event(decode(), wire::Reserved{LeaseId(77)});
  for (std::size_t leases = 1; leases < 50 && done_.empty();) {
    event(prefill(), wire::Failed{Status(Code::kDataLoss, "digest")});
    if (decodes_.size() > leases) event(decode(), wire::Reserved{LeaseId(77 + ++leases)});
  }
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(prefills_.size(), 1u + CoreOptions{}.retries_max);
  EXPECT_EQ(done_[0].code(), Code::kDataLoss);
  EXPECT_THAT(done_[0].message(), HasSubstr("gave up after"));
  EXPECT_EQ(core_->open_legs(), 0u);
  EXPECT_EQ(decodes_.size(), 3u) << "two failures under one lease cast doubt on D";
  EXPECT_THAT(cancelled_, ::testing::Contains(decodes_[2].leg));
}

TEST_F(CoreRetryTest, WorkersLostWhereItOnlyWaitedCostNoRetry) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}, {"d1", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  const int more = CoreOptions{}.retries_max + 3;
  for (int i = 0; i < more; ++i) cut(decode(), decode_worker());  // before a reservation
  for (int i = 0; i < more; ++i) {                                // in P's queue
    event(decode(), wire::Reserved{LeaseId(static_cast<std::uint64_t>(100 + i))});
    cut(prefill(), prefills_.back().worker);
  }
  ASSERT_TRUE(done_.empty()) << done_[0].to_string();
  event(decode(), wire::Reserved{LeaseId(99)});
  event(prefill(), wire::Started{});
  event(prefill(), wire::Tokens{{token(3, 50)}});
  EXPECT_THAT(tokens_[0], ::testing::ElementsAre(50));
}

TEST_F(CoreRetryTest, WhoBringsDownEveryWorkerThatComputesItIsGivenUp) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  for (std::uint64_t lease = 77; lease < 120 && done_.empty(); ++lease) {
    event(decode(), wire::Reserved{LeaseId(lease)});
    event(prefill(), wire::Started{});
    cut(prefill(), prefills_.back().worker);
  }
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(prefills_.size(), 1u + CoreOptions{}.retries_max);
  EXPECT_EQ(core_->open_legs(), 0u);
}

TEST_F(CoreRetryTest, LossesAreBoundedToo) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  submit(request_of({1, 2, 3}));
  int cuts = 0;
  while (done_.empty() && cuts < 1000) cut(decode(), decode_worker()), ++cuts;
  EXPECT_EQ(cuts, CoreOptions{}.losses_max + 1);
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_THAT(done_[0].message(), HasSubstr("gave up after"));
}

TEST_F(CoreRetryTest, AClusterThatStartsIsReadyOnceItIsWhole) {
  const WorkerId p(0), d(1);
  const wire::WorkerStatus prefill = testing::healthy("p0", Role::kPrefill), decode = testing::healthy("d0", Role::kDecode);
  core_ = std::make_unique<Core>(CoreOptions{}, std::vector<WorkerConfig>{{"p0", "h", 1, Role::kPrefill}, {"d0", "h", 2, Role::kDecode}});
  core_->on_status(now_, p, prefill);
  EXPECT_TRUE(core_->not_ready()) << "d0 may be a moment away";
  core_->on_status(now_, d, decode);
  EXPECT_FALSE(core_->not_ready());
  core_->on_poll_failed(now_, d, true, "refused");
  EXPECT_FALSE(core_->not_ready()) << "p0 serves alone";
  core_->on_poll_failed(now_, p, true, "refused");
  EXPECT_TRUE(core_->not_ready());
}

}  // namespace
}  // namespace baton::gateway
