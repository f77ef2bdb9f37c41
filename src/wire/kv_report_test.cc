#include "wire/kv_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace baton::wire {
namespace {

using ::testing::HasSubstr;

KvReport report() {
  KvReport r;
  r.name = "d0", r.incarnation = Incarnation(0xffffffffffffffffu);
  r.block_tokens = 16, r.total = 100, r.free = 80, r.cached = 10, r.held = 10, r.promised = 3;
  r.holds.push_back({.owner = "lease",
                     .state = "receiving",
                     .request = "req-1",
                     .attempt = 2,
                     .epoch = Epoch(9),
                     .peer = "p0",
                     .blocks = 7,
                     .since_ms = 12.5,
                     .idle_ms = 1.25,
                     .deadline_ms = 30000.0});
  r.holds.push_back({.owner = "lease",
                     .state = "aborting",
                     .request = "req-2",
                     .attempt = 1,
                     .epoch = Epoch(0),
                     .peer = "",
                     .blocks = 3,
                     .since_ms = 5,
                     .idle_ms = 5,
                     .deadline_ms = {}});
  return r;
}

TEST(KvReport, ArrivesAsItWasSent) {
  const auto back = kv_report_from_json(to_json(report()));
  ASSERT_TRUE(back.ok()) << back.status().to_string();
  EXPECT_EQ(to_json(*back), to_json(report()));
  EXPECT_EQ(back->holds[0].deadline_ms, 30000.0);
  EXPECT_FALSE(back->holds[1].deadline_ms) << "nothing but its last copy ends an abort";
}

TEST(KvReport, KeepsTheOldestAndCountsTheRest) {
  KvReport r = report();
  r.holds.clear();
  for (int i = 0; i < 300; ++i) {
    KvHold& hold = r.holds.emplace_back();
    hold.request = std::to_string(i), hold.blocks = 2, hold.idle_ms = i;
  }
  r.trim();
  ASSERT_EQ(r.holds.size(), KvReport::kHoldsMax);
  EXPECT_EQ(r.holds.front().request, "299");
  EXPECT_EQ(r.holds.back().request, "44");
  EXPECT_EQ(r.more, 44);
  EXPECT_EQ(r.more_blocks, 88);
}

TEST(KvReport, GarbageIsRefusedByName) {
  const std::string good = to_json(report());
  std::string bad = good;
  bad.replace(bad.find("\"held\":10"), 9, "\"held\":-1");
  EXPECT_THAT(kv_report_from_json(bad).status().message(), HasSubstr("held"));
  EXPECT_FALSE(kv_report_from_json("[]").ok());
  EXPECT_FALSE(kv_report_from_json(good.substr(0, good.size() / 2)).ok());
  KvReport many = report();
  many.holds.resize(KvReport::kHoldsMax + 1);
  EXPECT_FALSE(kv_report_from_json(to_json(many)).ok());
}

}  // namespace
}  // namespace baton::wire
