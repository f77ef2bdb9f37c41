// Whether an arm kept up, judged on queues of known capacity under random arrivals, over many seeds.

#include <gtest/gtest.h>

#include <cmath>
#include <queue>

#include "app/bench/arrivals.h"
#include "app/bench/compare/campaign.h"
#include "base/rng.h"

namespace baton::app {
namespace {

// So many servers, each of which takes a second for a request: all alike, or exponentially distributed.
struct Queue {
  int servers = 0;  // 0: as many as there are requests
  bool dispersed = false;
};

KeptUp run(const Queue& queue, double rate, std::uint64_t seed, std::size_t n = 200) {
  const auto times = arrival_times(n, rate, 1, seed);
  Rng rng(seed, 77);
  std::priority_queue<double, std::vector<double>, std::greater<>> free;
  for (int i = 0; i < queue.servers; ++i) free.push(0);
  std::vector<RequestOutcome> out(n);
  double end = 0;
  for (std::size_t i = 0; i < n; ++i) {
    double begin = times[i];
    if (queue.servers > 0) {
      begin = std::max(begin, free.top());
      free.pop();
    }
    const double done = begin + (queue.dispersed ? -std::log(1 - rng.uniform()) : 1.0);
    if (queue.servers > 0) free.push(done);
    out[i].ok = true;
    out[i].start = times[i];
    out[i].latency = done - times[i];
    end = std::max(end, done);
  }
  return kept_up(out, rate, end);
}

// As the search decides: a narrow case twice.
bool sustained(const Queue& queue, double rate, std::uint64_t seed, std::size_t n = 200) {
  const KeptUp first = run(queue, rate, seed, n);
  return first.clear() ? first.sustained : together(first, run(queue, rate, seed + 1'000'000, n)).sustained;
}

constexpr int kSeeds = 300;

double share_sustained(const Queue& queue, double rate, std::size_t n = 200) {
  int yes = 0;
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) yes += sustained(queue, rate, seed, n);
  return static_cast<double>(yes) / kSeeds;
}

TEST(KeptUp, WhatHasNoLimitIsSeldomJudgedNotSustainedHoweverManyRequestsAreOpen) {
  // Mean open requests, since each stays a second. The shorter the run beside an answer, the less it tells: 200 requests of which 40 are
  // open last five answers.
  for (const double open : {2.0, 8.0, 15.0, 25.0, 40.0}) EXPECT_GE(share_sustained({}, open), 0.95) << open;
  for (const double open : {2.0, 8.0, 15.0, 25.0}) EXPECT_GE(share_sustained({0, true}, open), 0.94) << open;
  for (const double open : {25.0, 50.0}) EXPECT_GE(share_sustained({0, true}, open, 600), 0.98) << open;
}

TEST(KeptUp, MoreThanTheCapacityIsSeldomJudgedSustained) {
  for (const int servers : {2, 8, 15}) {
    EXPECT_LE(share_sustained({servers, false}, 1.25 * servers), 0.08) << servers;
    EXPECT_LE(share_sustained({servers, true}, 1.5 * servers), 0.05) << servers;
  }
  EXPECT_LE(share_sustained({25, false}, 1.25 * 25), 0.12);
  EXPECT_LE(share_sustained({25, true}, 1.25 * 25, 600), 0.03);
  EXPECT_LE(share_sustained({40, false}, 1.5 * 40), 0.02);
}

TEST(KeptUp, WithRoomToSpareItIsSustained) {
  for (const int servers : {2, 8, 15, 25}) {
    EXPECT_GE(share_sustained({servers, false}, 0.8 * servers), 0.94) << servers;
    EXPECT_GE(share_sustained({servers, true}, 0.7 * servers), 0.92) << servers;
  }
}

TEST(KeptUp, TwoRunsTogetherKnowMore) {
  const KeptUp one = run({25, false}, 25, 1), both = together(one, run({25, false}, 25, 2));
  EXPECT_LT(both.chance, one.chance * 0.9);
  EXPECT_EQ(both.rate, one.rate);
  KeptUp failed = one;
  failed.failed = true;
  EXPECT_FALSE(together(one, failed).sustained);
  EXPECT_TRUE(failed.clear());
}

TEST(KeptUp, LongPromptsOfAMixAreNotCountedAtTheRateOfItsChats) {
  std::vector<RequestOutcome> mix(200);
  for (std::size_t i = 0; i < mix.size(); ++i) {
    mix[i].ok = true;
    mix[i].kind = i % 2 == 0 ? "chat" : "long";
    mix[i].start = static_cast<double>(i / 2 + 1);
    mix[i].latency = 0.5;
  }
  EXPECT_NEAR(kept_up(mix, 1, 100).completed, 1, 0.02);
  EXPECT_NEAR(kept_up(mix, 0, 100).completed, 1, 0.02);
}

TEST(SaturationSearch, FindsTheCapacityUnderRandomArrivalsWhateverTheSeed) {
  for (const int servers : {4, 10, 25}) {
    int near = 0;
    for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
      SaturationSearch search{SearchOptions{}};
      while (const auto rate = search.next()) {
        if (*rate == 0) {
          search.on_probe({0, static_cast<double>(servers), false});
        } else {
          search.on_probe(run({servers, false}, *rate, seed + 1'000'000 * static_cast<std::uint64_t>(search.draw())));
        }
      }
      near += search.sustained() >= 0.78 * servers && search.sustained() <= 1.25 * servers;
    }
    EXPECT_GE(near, 0.9 * kSeeds) << servers;
  }
}

TEST(SaturationSearch, ANarrowCaseIsTriedAgainWithOtherArrivals) {
  SaturationSearch search{SearchOptions{}};
  search.on_probe({0, 4, false});
  EXPECT_EQ(search.next(), 4.0);
  EXPECT_EQ(search.draw(), 0);
  KeptUp narrow{4, 3.9, false};
  narrow.growth = 5;
  narrow.borne = 4;
  search.on_probe(narrow);
  EXPECT_EQ(search.next(), 4.0) << "the same rate";
  EXPECT_EQ(search.draw(), 1);
  EXPECT_EQ(search.beyond(), 0) << "nothing is decided";
  narrow.growth = 2;
  narrow.sustained = true;
  search.on_probe(narrow);
  EXPECT_EQ(search.sustained(), 4.0) << "(5 + 2) / 2 is less than 4";
  EXPECT_EQ(search.draw(), 0);
  KeptUp far{5, 3, false};
  far.growth = 50;
  far.borne = 4;
  search.on_probe(far);
  EXPECT_EQ(search.beyond(), 5.0) << "no second run where there is no doubt";
}

}  // namespace
}  // namespace baton::app
