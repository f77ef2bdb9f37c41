#include "gateway/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>

#include "base/rng.h"

namespace baton::gateway {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TimePoint at(Duration d) { return TimePoint{} + d; }

Tenant tenant(std::string name, int weight = 1) {
  Tenant t;
  t.name = std::move(name);
  t.weight = weight;
  return t;
}

class Queue {
 public:
  explicit Queue(std::vector<Tenant> tenants = {}) : admission(std::move(tenants)) {}
  // The number of the one that waits now.
  std::uint64_t add(int tenant, TimePoint due, std::int64_t cost = 100, bool continues = false) {
    const RequestKey key(++last_);
    costs[key.value] = cost;
    tenants_[key.value] = tenant;
    EXPECT_TRUE(admission.add({key, 0}, {.tenant = tenant, .continues = continues, .due = due, .tokens = cost, .cost = cost}));
    return key.value;
  }
  std::uint64_t take() {
    const auto next = admission.next();
    if (!next) return 0;
    admission.erase(*next);
    admission.charge(tenants_[next->first.value], costs[next->first.value]);
    return next->first.value;
  }
  int tenant_of(std::uint64_t number) const { return tenants_.at(number); }

  Admission admission;
  std::map<std::uint64_t, std::int64_t> costs;

 private:
  std::map<std::uint64_t, int> tenants_;
  std::uint64_t last_ = 0;
};

// --- due times

TEST(DueTime, IsTheArrivalPlusABoundedTime) {
  const TimePoint arrival = at(seconds(1000));
  EXPECT_EQ(due_time(arrival, kNever, milliseconds(0), 0), arrival + seconds(10));
  EXPECT_EQ(due_time(arrival, kNever, milliseconds(500), 0), arrival + seconds(12));
  EXPECT_EQ(due_time(arrival, kNever, seconds(3600), 0), arrival + seconds(30));
  EXPECT_EQ(due_time(arrival, kNever, milliseconds(0), -1), arrival);
  EXPECT_EQ(due_time(arrival, kNever, milliseconds(0), 1'000'000), arrival + seconds(70));
  EXPECT_EQ(due_time(arrival, kNever, milliseconds(0), -1'000'000), arrival - seconds(50));
  EXPECT_EQ(due_time(arrival, arrival + seconds(5), seconds(1), 0), arrival + seconds(4)) << "its latest start";
  EXPECT_EQ(due_time(arrival, arrival + seconds(5), seconds(9), 0), arrival) << "late already";
}

TEST(DueTime, WhoCameAgeingBeforeAnotherIsAheadOfIt) {
  Rng rng(7);
  for (int i = 0; i < 20'000; ++i) {
    const auto draw = [&](TimePoint arrival) {
      const Duration expected(rng.below(60'000'000));
      const TimePoint deadline = rng.below(3) == 0 ? kNever : arrival + Duration(rng.below(200'000'000));
      return due_time(arrival, deadline, expected, static_cast<int>(rng.below(40)) - 20);
    };
    const TimePoint first = at(Duration(rng.below(1'000'000'000)));
    EXPECT_LE(draw(first), draw(first + kAgeing));
  }
}

// --- order

TEST(Admission, WhatContinuesComesFirstThenWhatIsDue) {
  Queue q;
  const auto late = q.add(0, at(seconds(30))), soon = q.add(0, at(seconds(10))), urgent = q.add(0, at(-seconds(50)));
  const auto second = q.add(0, at(seconds(400)), 100, true), first = q.add(0, at(seconds(300)), 100, true);
  EXPECT_EQ(q.admission.size(), 5u);
  std::vector<std::uint64_t> order;
  while (const auto n = q.take()) order.push_back(n);
  EXPECT_THAT(order, ElementsAre(first, second, urgent, soon, late));
  EXPECT_TRUE(q.admission.empty());
}

TEST(Admission, WhoWaitsAlreadyIsNotAddedTwice) {
  Admission a({});
  EXPECT_TRUE(a.add({RequestKey(1), 0}, {.due = at(seconds(5)), .tokens = 10, .cost = 10}));
  EXPECT_FALSE(a.add({RequestKey(1), 0}, {.due = at(seconds(1)), .tokens = 10, .cost = 10}));
  a.erase({RequestKey(1), 0});
  a.erase({RequestKey(1), 0});
  EXPECT_TRUE(a.empty());
  EXPECT_EQ(a.ahead(0, kNever).tokens, 0);
}

// Requests come faster than they are dispatched, and all of them are more urgent than one: it goes when it has aged.
TEST(Admission, AStreamOfMoreUrgentRequestsDelaysNobodyForEver) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    Queue q;
    const auto patient = q.add(0, due_time(at(Duration(0)), kNever, seconds(60), 6));
    Duration now{};
    std::deque<Duration> ahead;
    bool gone = false;
    while (!gone && now < seconds(1000)) {
      now += milliseconds(100 + static_cast<int>(rng.below(400)));
      // As many as are dispatched, of the most urgent kind there is.
      q.add(0, due_time(at(now), at(now + seconds(1)), Duration(0), -6));
      gone = q.take() == patient;
    }
    EXPECT_TRUE(gone);
    EXPECT_LE(now, kAgeing + seconds(1));
    EXPECT_GT(now, seconds(100)) << "the stream was not urgent enough to show anything";
  }
}

// The queue is full of long ones, and more come all the time: a short one overtakes those that came shortly before it, and all after it.
TEST(Admission, ShortRequestsProgressAmongLongOnes) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    Queue q;
    Duration now{};
    std::uint64_t brief = 0, overtaken = 0;
    Duration came{}, went{};
    for (int i = 0; i < 600 && went == Duration(0); ++i) {
      now += seconds(1);
      q.add(0, due_time(at(now), kNever, seconds(5 + static_cast<int>(rng.below(30))), 0), 20'000);
      if (i == 100) brief = q.add(0, due_time(at(now), kNever, milliseconds(20), 0), 20), came = now;
      if (i % 2 == 0) continue;  // half of what comes is dispatched: the queue only grows
      const auto n = q.take();
      if (n == brief) went = now;
      if (brief != 0 && n > brief) ++overtaken;
    }
    ASSERT_NE(went, Duration(0)) << "it waits for ever behind long ones";
    EXPECT_EQ(overtaken, 0u);
    // Fifty long ones waited when it came; those of the last twenty seconds were overtaken.
    EXPECT_LE(went - came, seconds(2 * 35));
  }
}

// --- shares

// Whatever the costs: over any time in which two tenants have something waiting, what they get by weight differs by one request each at
// most.
TEST(Admission, TenantsShareByWeight) {
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    std::vector<Tenant> tenants;
    const int n = 2 + static_cast<int>(rng.below(5));
    for (int t = 0; t < n; ++t) tenants.push_back(tenant(std::to_string(t), 1 + static_cast<int>(rng.below(8))));
    Queue q(tenants);
    std::vector<std::int64_t> most(static_cast<std::size_t>(n)), got(static_cast<std::size_t>(n)), low(most.size() * most.size()),
        high(most.size() * most.size());
    const auto feed = [&](int t) {
      const auto cost = static_cast<std::int64_t>(1 + rng.below(rng.below(5) == 0 ? 5000 : 200));
      most[static_cast<std::size_t>(t)] = std::max(most[static_cast<std::size_t>(t)], cost);
      q.add(t, at(Duration(rng.below(1'000'000))), cost);
    };
    // The first is there long before the others.
    for (int i = 0; i < 50; ++i) feed(0), q.take();
    std::fill(got.begin(), got.end(), 0);
    for (int t = 0; t < n; ++t)
      for (int i = 0; i < 3; ++i) feed(t);
    for (int i = 0; i < 500; ++i) {
      const auto number = q.take();
      const int t = q.tenant_of(number);
      got[static_cast<std::size_t>(t)] += q.costs[number];
      feed(t);  // each always has something waiting
      for (std::size_t a = 0; a < got.size(); ++a) {
        for (std::size_t b = 0; b < got.size(); ++b) {
          // Work by weight; over every interval it moves by what separates its extremes at most.
          const std::int64_t lead = got[a] * 1000 / tenants[a].weight - got[b] * 1000 / tenants[b].weight;
          auto &lo = low[a * got.size() + b], &hi = high[a * got.size() + b];
          lo = std::min(lo, lead), hi = std::max(hi, lead);
          const std::int64_t bound = most[a] * 1000 / tenants[a].weight + most[b] * 1000 / tenants[b].weight + 1000;
          ASSERT_LE(hi - lo, 2 * bound) << "tenants " << a << " and " << b;
        }
      }
    }
  }
}

TEST(Admission, AKeyThatFloodsDoesNotDelayAnotherBeyondItsShare) {
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    Queue q({tenant("none"), tenant("flood"), tenant("calm", 1 + static_cast<int>(rng.below(4)))});
    for (int i = 0; i < 2000; ++i) q.add(1, at(-seconds(60)), 1 + static_cast<std::int64_t>(rng.below(600)));
    for (int i = 0; i < 20; ++i) {
      for (std::uint64_t k = rng.below(50); k > 0; --k) q.take();
      const auto calm = q.add(2, at(seconds(90)), 1 + static_cast<std::int64_t>(rng.below(600)));
      // What it had before it is paid for by now: one of the flood at most comes between.
      int before = 0;
      while (q.take() != calm) ++before;
      EXPECT_LE(before, 1 + 600) << "not even by its cost";
      if (i == 0) {
        EXPECT_LE(before, 1);
      }
    }
  }
}

TEST(Admission, WhoWasIdleHasSavedNothingUp) {
  Queue q({tenant("none"), tenant("busy"), tenant("idle")});
  for (int i = 0; i < 100; ++i) q.add(1, at(seconds(1))), q.take();
  for (int i = 0; i < 10; ++i) q.add(1, at(seconds(1))), q.add(2, at(seconds(2)));
  EXPECT_EQ(q.admission.ahead(1, at(seconds(0))).sequences, 1) << "the other one's turn, not all that it has";
  int busy = 0;
  for (int i = 0; i < 10; ++i) busy += q.tenant_of(q.take()) == 1;
  EXPECT_EQ(busy, 5) << "they take turns from now on";
}

TEST(Admission, WhatIsDispatchedWithoutWaitingIsPaidForToo) {
  Queue q({tenant("none"), tenant("busy"), tenant("idle")});
  for (int i = 0; i < 1000; ++i) q.admission.charge(1, 100);
  q.admission.charge(2, 500);
  for (int i = 0; i < 10; ++i) q.add(1, at(seconds(2))), q.add(2, at(seconds(1)));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(q.tenant_of(q.take()), 1) << "for what five of its own cost";
}

TEST(Admission, WhatComesBackIsNotPaidFor) {
  Queue q({tenant("none"), tenant("a"), tenant("b")});
  const auto first = q.add(1, at(seconds(1)), 5000);
  q.add(2, at(seconds(2)), 100);
  EXPECT_EQ(q.take(), first);
  q.admission.refund(1, 5000);  // no worker had room
  ASSERT_TRUE(q.admission.add({RequestKey(first), 0}, {.tenant = 1, .due = at(seconds(1)), .tokens = 5000, .cost = 5000}));
  EXPECT_EQ(q.take(), first) << "its turn is not over";
}

// --- how long it takes

TEST(Admission, ExpectedWaitIsTheLongerOfPrefillAndDecode) {
  const Capacity c{.tokens_per_s = 1000, .backlog_tokens = 3000, .sequences = 4, .holding = seconds(8)};
  EXPECT_EQ(expected_wait({2000, 1}, 1, c), seconds(5));
  EXPECT_EQ(expected_wait({2000, 6}, 1, c), seconds(14)) << "seven must end";
  EXPECT_EQ(expected_wait({}, 1, c), seconds(3));
  EXPECT_EQ(expected_wait({2000, 6}, 1, {}), Duration(0)) << "nothing is known";
  const Capacity room{.sequences = 4, .free = 2, .holding = seconds(8)};
  EXPECT_EQ(expected_wait({}, 2, room), Duration(0));
  EXPECT_EQ(expected_wait({}, 3, room), seconds(2));
  EXPECT_EQ(expected_wait({0, 1}, 1, room), seconds(2)) << "it waits for something else than a place";
  EXPECT_EQ(retry_after_s(Duration(0)), 1);
  EXPECT_EQ(retry_after_s(seconds(7)), 7);
  EXPECT_EQ(retry_after_s(seconds(7) + Duration(1)), 8);
  EXPECT_EQ(retry_after_s(seconds(3600)), 60);
}

// What is said to be ahead of a newcomer is what is dispatched before it, but for one request of each tenant; of one with four times the
// weight that is worth four.
TEST(Admission, WhatIsAheadIsWhatIsDispatchedBefore) {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    const int n = 1 + static_cast<int>(rng.below(4));
    std::vector<Tenant> tenants;
    for (int t = 0; t < n; ++t) tenants.push_back(tenant(std::to_string(t), 1 + static_cast<int>(rng.below(4))));
    Queue q(tenants);
    for (int i = 0; i < 100; ++i) {
      q.add(static_cast<int>(rng.below(static_cast<std::uint64_t>(n))), at(Duration(rng.below(1000))),
            1 + static_cast<std::int64_t>(rng.below(300)), rng.below(20) == 0);
      if (rng.below(3) == 0) q.take();
    }
    const int own = static_cast<int>(rng.below(static_cast<std::uint64_t>(n)));
    const TimePoint due = at(Duration(rng.below(1000)));
    const Ahead ahead = q.admission.ahead(own, due);
    const auto newcomer = q.add(own, due, 100);
    std::int64_t tokens = 0, sequences = 0;
    for (auto next = q.take(); next != newcomer; next = q.take()) tokens += q.costs[next], ++sequences;
    EXPECT_NEAR(static_cast<double>(ahead.tokens), static_cast<double>(tokens), 4 * 300.0 * n);
    EXPECT_NEAR(static_cast<double>(ahead.sequences), static_cast<double>(sequences), 0.35 * static_cast<double>(sequences) + 4.0 * n);
  }
}

// --- limits

TEST(Admission, AKeysOwnLimits) {
  Tenant limited = tenant("alice");
  limited.requests_max = 2;
  limited.tokens_per_minute = 600;
  Admission a({tenant("none"), limited});
  TimePoint now{};
  const Duration holding = seconds(20);
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(a.within_limits(now, 1, holding).ok());
    a.arrived(now, 1, 100);
  }
  const Status many = a.within_limits(now, 1, holding);
  EXPECT_EQ(many.code(), Code::kResourceExhausted);
  EXPECT_THAT(many.message(), HasSubstr("key alice has 2 requests in flight"));
  EXPECT_EQ(many.retry_after_s(), 10) << "one of the two ends in that time";
  EXPECT_TRUE(a.within_limits(now, 0, holding).ok()) << "others are not concerned";
  a.ended(1);
  EXPECT_TRUE(a.within_limits(now, 1, holding).ok());

  a.spent(now, 1, 430);  // 630 of 600
  const Status much = a.within_limits(now, 1, holding);
  EXPECT_THAT(much.message(), HasSubstr("key alice has used its 600 tokens a minute"));
  EXPECT_EQ(much.retry_after_s(), 4) << "30 at 10 a second, and then some";
  now += seconds(3);
  EXPECT_FALSE(a.within_limits(now, 1, holding).ok());
  now += seconds(1);
  EXPECT_TRUE(a.within_limits(now, 1, holding).ok());
  now += std::chrono::hours(5);
  a.spent(now, 1, 599);
  EXPECT_TRUE(a.within_limits(now, 1, holding).ok()) << "a minute's worth is saved up";
  a.spent(now, 1, 1);
  EXPECT_FALSE(a.within_limits(now, 1, holding).ok()) << "and no more";
  EXPECT_EQ(a.stats()[1].tokens, 200u + 430u + 600u);
}

// Over any time a key gets its rate, a minute's worth, and what was under way when that was used up.
TEST(Admission, TheRateHoldsOverTime) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    Tenant limited = tenant("alice");
    limited.tokens_per_minute = 1000 + static_cast<std::int64_t>(rng.below(100'000));
    Admission a({tenant("none"), limited});
    TimePoint now{};
    std::int64_t taken = 0, largest = 0;
    while (now < at(seconds(3600))) {
      now += Duration(rng.below(2'000'000));
      if (!a.within_limits(now, 1, Duration(0)).ok()) continue;
      const auto tokens = static_cast<std::int64_t>(rng.below(20'000));
      a.arrived(now, 1, tokens);
      a.ended(1);
      taken += tokens, largest = std::max(largest, tokens);
    }
    const std::int64_t fair = limited.tokens_per_minute * now.time_since_epoch().count() / 60'000'000;
    EXPECT_LE(taken, fair + limited.tokens_per_minute + largest);
    EXPECT_GE(taken, fair * 9 / 10 - 20'000) << "the rate is there to be used";
  }
}

TEST(Admission, APlaceIsTakenFromWhoHasTheMost) {
  Queue q({tenant("none"), tenant("a"), tenant("b", 4)});
  const auto arrive = [&](int t, int count) {
    for (int i = 0; i < count; ++i) q.admission.arrived({}, t, 1);
  };
  EXPECT_EQ(q.admission.displaced_by(1), std::nullopt) << "nobody waits";
  arrive(1, 8), arrive(2, 20);
  q.add(1, at(seconds(5)));
  const auto last = q.add(1, at(seconds(9)));
  q.add(2, at(seconds(20)));
  EXPECT_EQ(q.admission.displaced_by(2), (Admission::RunId{RequestKey(last), 0})) << "8 of weight 1 are more than 21 of weight 4";
  EXPECT_EQ(q.admission.displaced_by(0), (Admission::RunId{RequestKey(last), 0}));
  EXPECT_EQ(q.admission.displaced_by(1), std::nullopt) << "it has the most itself";
  arrive(0, 7);
  EXPECT_EQ(q.admission.displaced_by(0), std::nullopt) << "it would have as many";
}

}  // namespace
}  // namespace baton::gateway
