// What the core says of requests: their record, the trace that they belong to, remarks for the log.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "gateway/test_core.h"
#include "wire/trace_context.h"

namespace baton::gateway {
namespace {

using testing::CoreTest;
using ::testing::HasSubstr;
using testing::kLost;
using testing::request_of;
using wire::Role;

TEST_F(CoreTest, EachLegIsAHopOfTheClientsTraceAndTheRecordNamesIt) {
  start({{"p0", Role::kPrefill}, {"d0", Role::kDecode}});
  wire::GenerateRequest traced = request_of({1, 2, 3});
  traced.traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  submit(traced);
  event(decode(), wire::Reserved{LeaseId(77)});
  ended(prefill(), LegEnd::Kind::kBroken, kLost);
  ASSERT_EQ(prefills_.size(), 2u);
  std::set<std::string> hops = {traced.traceparent};
  for (const std::string& hop :
       {decodes_[0].body.request.traceparent, prefills_[0].body.request.traceparent, prefills_[1].body.request.traceparent}) {
    EXPECT_EQ(wire::trace_id_of(hop), "4bf92f3577b34da6a3ce929d0e0e4736");
    EXPECT_TRUE(hops.insert(hop).second) << "a retry is a hop of its own: " << hop;
  }
  EXPECT_THAT(to_json(*core_->record(now_, "req-1")), HasSubstr(R"("trace_id":"4bf92f3577b34da6a3ce929d0e0e4736")"));
  for (const Remark& remark : remarks_) {
    EXPECT_EQ(remark.request, "req-1");
    EXPECT_EQ(remark.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
    EXPECT_EQ(remark.trouble, remark.text.starts_with("prefill_failed: ")) << remark.text;
  }
  EXPECT_THAT(remarks_, ::testing::Contains(::testing::Field(&Remark::text, HasSubstr("connection reset"))));
}

TEST_F(CoreTest, WithoutATraceNothingIsPassedOn) {
  start({{"w0", Role::kBoth}});
  submit(request_of({1, 2, 3}));
  EXPECT_EQ(decodes_[0].body.request.traceparent, "");
  EXPECT_THAT(to_json(*core_->record(now_, "req-1")), ::testing::Not(HasSubstr("trace_id")));
}

}  // namespace
}  // namespace baton::gateway
