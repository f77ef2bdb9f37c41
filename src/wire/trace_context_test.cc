#include "wire/trace_context.h"

#include <gtest/gtest.h>

#include <set>

namespace baton::wire {
namespace {

const std::string kTrace = "4bf92f3577b34da6a3ce929d0e0e4736", kParent = "00f067aa0ba902b7";

TEST(TraceContext, AValidHeaderIsReadAndWrittenBack) {
  const auto c = parse_traceparent("00-" + kTrace + "-" + kParent + "-01");
  ASSERT_TRUE(c);
  EXPECT_EQ(c->trace_id, kTrace);
  EXPECT_EQ(c->parent, 0x00f067aa0ba902b7u);
  EXPECT_TRUE(c->sampled);
  EXPECT_EQ(to_traceparent(*c), "00-" + kTrace + "-" + kParent + "-01");
  EXPECT_EQ(trace_id_of(to_traceparent(*c)), kTrace);
}

TEST(TraceContext, OnlyTheSampledFlagIsKept) {
  EXPECT_FALSE(parse_traceparent("00-" + kTrace + "-" + kParent + "-00")->sampled);
  const auto c = parse_traceparent("00-" + kTrace + "-" + kParent + "-fe");
  ASSERT_TRUE(c);
  EXPECT_FALSE(c->sampled);
  EXPECT_EQ(to_traceparent(*c).substr(53), "00");
}

TEST(TraceContext, ALaterVersionIsReadAsFarAsOursGoes) {
  for (const char* tail : {"", "-", "-what-the-future-brings"}) {
    const auto c = parse_traceparent("cc-" + kTrace + "-" + kParent + "-01" + tail);
    ASSERT_TRUE(c) << tail;
    EXPECT_EQ(to_traceparent(*c), "00-" + kTrace + "-" + kParent + "-01");
  }
  EXPECT_FALSE(parse_traceparent("cc-" + kTrace + "-" + kParent + "-01.future"));
}

TEST(TraceContext, WhatTheStandardForbidsIsNoContext) {
  const std::string zeros(32, '0');
  for (const std::string& bad : {std::string(), std::string("00"), "ff-" + kTrace + "-" + kParent + "-01",  // a version that cannot be
                                 "00-" + zeros + "-" + kParent + "-01", "00-" + kTrace + "-" + zeros.substr(16) + "-01",  // all zero
                                 "00-" + kTrace + "-" + kParent + "-01-", "00-" + kTrace + "-" + kParent + "-01 ",  // version 00 ends there
                                 "00-" + kTrace + "-" + kParent + "-1", "00-" + kTrace + "-" + kParent,             // too short
                                 "00-4BF92F3577B34DA6A3CE929D0E0E4736-" + kParent + "-01",                          // upper case
                                 "0x-" + kTrace + "-" + kParent + "-01", "00-" + kTrace + "-" + kParent + "-0x",    // not hex
                                 "00_" + kTrace + "_" + kParent + "_01", "00-" + kTrace + "-" + kParent + "+01",    // separators
                                 " 00-" + kTrace + "-" + kParent + "-01"}) {
    EXPECT_FALSE(parse_traceparent(bad)) << bad;
    EXPECT_EQ(trace_id_of(bad), "") << bad;
  }
}

TEST(TraceContext, EachHopHasAParentOfItsOwnInTheSameTrace) {
  const TraceContext client{kTrace, 7, true};
  std::set<std::uint64_t> parents = {client.parent};
  for (std::uint64_t hop = 0; hop < 100; ++hop) {
    const TraceContext next = next_hop(client, hop);
    EXPECT_EQ(next.trace_id, client.trace_id);
    EXPECT_TRUE(next.sampled);
    EXPECT_NE(next.parent, 0u);
    EXPECT_TRUE(parents.insert(next.parent).second);
    EXPECT_EQ(next, next_hop(client, hop)) << "a function of its arguments";
    EXPECT_TRUE(parse_traceparent(to_traceparent(next)));
  }
}

}  // namespace
}  // namespace baton::wire
