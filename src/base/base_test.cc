#include <gtest/gtest.h>

#include <thread>

#include "base/bounded_queue.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/rng.h"
#include "base/status.h"

namespace baton {
namespace {

// Known-answer vectors of the Random123 distribution (kat_vectors, philox4x32 10 rounds).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, BelowStaysInRangeAndReachesAll) {
  Rng rng(7);
  bool seen[5] = {};
  for (int i = 0; i < 200; ++i) seen[rng.below(5)] = true;
  for (bool s : seen) EXPECT_TRUE(s);
}

TEST(Status, NamesRoundTrip) {
  for (int i = 0; i <= static_cast<int>(Code::kInternal); ++i) {
    const Code code = static_cast<Code>(i);
    EXPECT_EQ(code_from_string(to_string(code)), code);
  }
  EXPECT_EQ(Status(Code::kNotFound, "x").with_context("y").to_string(), "not_found: y: x");
}

TEST(Result, CarriesValueOrStatus) {
  const Result<int> good(3);
  EXPECT_EQ(*good, 3);
  const Result<int> bad(Code::kDataLoss, "digest");
  EXPECT_FALSE(bad.ok());
  EXPECT_EQ(bad.status().code(), Code::kDataLoss);
}

TEST(BoundedQueue, RefusesWhenFullAndDrainsAfterClose) {
  BoundedQueue<int> queue(2);
  int a = 1, b = 2, c = 3;
  EXPECT_TRUE(queue.try_push(a));
  EXPECT_TRUE(queue.try_push(b));
  EXPECT_FALSE(queue.try_push(c));
  queue.close();
  EXPECT_EQ(queue.pop(), 1);
  EXPECT_EQ(queue.pop(), 2);
  EXPECT_EQ(queue.pop(), std::nullopt);
}

TEST(ManualClock, MovesOnlyByHand) {
  ManualClock clock;
  const TimePoint t = clock.now();
  clock.advance(Duration(5));
  EXPECT_EQ(clock.now() - t, Duration(5));
}

}  // namespace
}  // namespace baton
