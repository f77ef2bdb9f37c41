#include "app/bench/compare/campaign.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "app/bench/compare/arms.h"

namespace baton::app {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> names(const ArmPlan& plan) {
  std::vector<std::string> out;
  for (const Arm& arm : plan.arms) out.push_back(arm.name);
  return out;
}

std::string any(int) { return ""; }

TEST(Arms, FourOnTwoDevices) {
  const auto plan = plan_arms(2, {}, any);
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(names(*plan), ElementsAre("tp2-prefill-first", "tp2", "dp", "pd"));
  EXPECT_THAT(plan->arms[0].flags, ElementsAre("--tensor-parallel-size", "2", "--no-enable-chunked-prefill"));
  EXPECT_THAT(plan->arms[1].flags, ElementsAre("--tensor-parallel-size", "2"));
  EXPECT_THAT(plan->arms[2].flags, ElementsAre("--data-parallel-size", "2"));
  EXPECT_THAT(plan->arms[3].flags, ElementsAre("--prefill", "1", "--decode", "1"));
  EXPECT_TRUE(plan->left_out.empty());
  EXPECT_TRUE(plan->arms[3].disaggregated && !plan->arms[2].disaggregated);
}

TEST(Arms, HalvesOfEightDevicesAreGroupsOfFour) {
  const auto plan = plan_arms(8, {"pd", "dp"}, any);
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(names(*plan), ElementsAre("pd", "dp"));
  EXPECT_THAT(plan->arms[0].flags, ElementsAre("--prefill", "1xTP4", "--decode", "1xTP4"));
  EXPECT_THAT(plan->arms[1].flags, ElementsAre("--tensor-parallel-size", "4", "--data-parallel-size", "2"));
}

TEST(Arms, WhatIsNotPossibleIsLeftOutWithAReason) {
  const auto one = plan_arms(1, {}, any);
  EXPECT_THAT(names(*one), ElementsAre("tp1-prefill-first", "tp1"));
  EXPECT_THAT(one->left_out[1].why, HasSubstr("two devices"));
  const auto three = plan_arms(3, {}, any);
  EXPECT_THAT(names(*three), ElementsAre("tp3-prefill-first", "tp3"));
  EXPECT_THAT(three->left_out[0].why, HasSubstr("two equal halves"));
  const auto refused = plan_arms(4, {}, [](int degree) { return degree == 4 ? std::string("no four") : ""; });
  EXPECT_THAT(names(*refused), ElementsAre("dp", "pd"));
  EXPECT_EQ(refused->left_out[0].why, "no four");
  EXPECT_FALSE(plan_arms(1, {}, [](int) { return std::string("no"); }).ok());
}

TEST(Arms, NamedOnesMustBePossibleKnownAndNamedOnce) {
  EXPECT_THAT(names(*plan_arms(4, {"tpN", "tpN-prefill-first"}, any)), ElementsAre("tp4", "tp4-prefill-first"));
  EXPECT_THAT(plan_arms(3, {"pd"}, any).status().message(), HasSubstr("--arms pd: 3 devices"));
  EXPECT_THAT(plan_arms(2, {"tp4"}, any).status().message(), HasSubstr("`tp4` is not an arm on 2"));
  EXPECT_THAT(plan_arms(2, {"tp2", "tpN"}, any).status().message(), HasSubstr("named twice"));
  EXPECT_FALSE(plan_arms(0, {}, any).ok());
}

TEST(Arms, FlagsOfAnArmReplaceThoseOfTheSameName) {
  const std::vector<std::string> shared = {"--threads", "1", "--tensor-parallel-size", "1", "--no-prefix-caching", "--cores", "0,1"};
  EXPECT_THAT(with_flags(shared, {"--tensor-parallel-size", "2", "--x"}),
              ElementsAre("--threads", "1", "--no-prefix-caching", "--cores", "0,1", "--tensor-parallel-size", "2", "--x"));
}

// Requests that come evenly at `rate` to something that does `capacity` a second one after another, and answers `delay` after that.
std::vector<RequestOutcome> queue(std::size_t n, double rate, double capacity, double delay) {
  std::vector<RequestOutcome> out(n);
  double free = 0;
  for (std::size_t i = 0; i < n; ++i) {
    out[i].ok = true;
    out[i].start = rate > 0 ? static_cast<double>(i + 1) / rate : 0;
    free = std::max(free, out[i].start) + 1 / capacity;
    out[i].latency = free + delay - out[i].start;
  }
  return out;
}

double duration(const std::vector<RequestOutcome>& outcomes) {
  double end = 0;
  for (const RequestOutcome& o : outcomes) end = std::max(end, o.start + o.latency);
  return end;
}

KeptUp probe(double rate, double capacity, double delay, std::size_t n = 200) {
  const auto outcomes = queue(n, rate, capacity, delay);
  return kept_up(outcomes, rate, duration(outcomes));
}

TEST(KeptUp, AtMostFivePercentMayPileUpWhileRequestsCome) {
  EXPECT_TRUE(probe(1.0, 2.0, 3).sustained);
  EXPECT_TRUE(probe(2.05, 2.0, 3).sustained);
  EXPECT_FALSE(probe(2.2, 2.0, 3).sustained);
  EXPECT_NEAR(probe(4.0, 2.0, 0).completed, 2.0, 0.02);
  // The end of the run does not count: the last answers take long, but nothing piles up.
  EXPECT_TRUE(probe(10, 11, 4).sustained);
}

TEST(KeptUp, AFailureIsNotSustainedAndABurstTellsWhatWasCompleted) {
  auto outcomes = queue(100, 1, 2, 1);
  outcomes[50].ok = false;
  EXPECT_FALSE(kept_up(outcomes, 1, duration(outcomes)).sustained);
  EXPECT_NEAR(probe(0, 2.0, 1).completed, 200 / 101.0, 1e-9);
  EXPECT_FALSE(probe(0, 2.0, 1).sustained);
  EXPECT_EQ(kept_up({}, 1, 0).completed, 0);
}

TEST(SaturationSearch, FindsTheCapacityWhateverTheFirstGuess) {
  for (double capacity = 0.3; capacity < 60; capacity *= 1.17) {
    for (const double misled : {1.0, 0.5, 3.0}) {  // what the burst shows, by what is true
      SaturationSearch search{SearchOptions{}};
      int probes = 0;
      while (const auto rate = search.next()) {
        ASSERT_LE(++probes, SearchOptions{}.probes_max) << capacity;
        search.on_probe(probe(*rate, *rate > 0 ? capacity : capacity * misled, 1 / capacity));
      }
      EXPECT_TRUE(search.bracketed()) << capacity << " " << misled;
      EXPECT_LE(search.saturation(), capacity / 0.95 * 1.01);
      EXPECT_GE(search.saturation(), capacity / 1.13);
      EXPECT_EQ(search.saturation(), search.sustained());
      EXPECT_GT(search.beyond(), search.sustained());
    }
  }
}

TEST(SaturationSearch, EndsWithoutAnAnswerToo) {
  SaturationSearch never{SearchOptions{}};
  int probes = 0;
  while (const auto rate = never.next()) {
    never.on_probe({*rate, *rate / 2, false});
    if (++probes == 1) {
      EXPECT_EQ(never.next(), std::nullopt);  // a burst of which nothing succeeded: nowhere to begin
      break;
    }
  }
  SaturationSearch slow{SearchOptions{}};
  slow.on_probe({0, 4, false});
  EXPECT_EQ(slow.saturation_words("dp"), "what dp completed when all came at once");
  for (probes = 1; const auto rate = slow.next(); ++probes) slow.on_probe({*rate, *rate / 2, false});
  EXPECT_EQ(probes, SearchOptions{}.probes_max);
  EXPECT_EQ(slow.sustained(), 0);
  EXPECT_THAT(slow.saturation_words("dp"), HasSubstr("what dp completed at the least rate"));
  EXPECT_DOUBLE_EQ(slow.saturation(), slow.beyond() / 2);
  EXPECT_FALSE(slow.bracketed());
  SaturationSearch endless{SearchOptions{}};
  endless.on_probe({0, 4, false});
  for (probes = 1; const auto rate = endless.next(); ++probes) endless.on_probe({*rate, *rate, true});
  EXPECT_EQ(probes, SearchOptions{}.probes_max);
  EXPECT_EQ(endless.beyond(), 0);
  EXPECT_GT(endless.saturation(), 4);
}

struct Done {
  std::vector<Step> steps;
};

// Carries a campaign out on arms of these capacities; 0: it does not start.
Done carry_out(Campaign& campaign, const std::vector<double>& capacities) {
  Done done;
  while (const auto step = campaign.next()) {
    EXPECT_EQ(campaign.next()->rate, step->rate);  // the same until it is done
    done.steps.push_back(*step);
    if (capacities[step->arm] == 0) {
      campaign.on_failure("did not start");
    } else {
      campaign.on_run(probe(step->rate, capacities[step->arm], 0.5));
    }
  }
  return done;
}

std::vector<std::size_t> arms_of(const Done& done, Purpose purpose, int repeat = -1) {
  std::vector<std::size_t> out;
  for (const Step& s : done.steps)
    if (s.purpose == purpose && (repeat < 0 || s.repeat == repeat)) out.push_back(s.arm);
  return out;
}

TEST(Campaign, SearchesEachArmThenRepeatsAllInAnOrderThatRotates) {
  CampaignOptions options;
  options.arms = 3;
  Campaign campaign(options);
  const Done done = carry_out(campaign, {2.0, 3.0, 1.0});
  const auto searched = arms_of(done, Purpose::kSearch);
  EXPECT_TRUE(std::ranges::is_sorted(searched)) << "one arm after another";
  EXPECT_THAT(arms_of(done, Purpose::kMeasure, 0), ElementsAre(0, 1, 2));
  EXPECT_THAT(arms_of(done, Purpose::kMeasure, 1), ElementsAre(1, 2, 0));
  EXPECT_THAT(arms_of(done, Purpose::kMeasure, 2), ElementsAre(2, 0, 1));
  EXPECT_DOUBLE_EQ(campaign.rate(), 1.23 * campaign.search(0)->saturation()) << "the first arm is just overloaded";
  EXPECT_NEAR(campaign.rate(), 1.23 * 2.0, 0.3);
  EXPECT_EQ(campaign.rate_from(), 0U);
  EXPECT_EQ(campaign.search(0)->saturation_words("tp2"), "what tp2 sustains");
  for (std::size_t i = 0; i < done.steps.size(); ++i) {
    const Step& s = done.steps[i];
    if (s.purpose == Purpose::kMeasure) {
      EXPECT_TRUE(s.fresh);
      EXPECT_DOUBLE_EQ(s.rate, campaign.rate());
    } else {
      EXPECT_EQ(s.fresh, i == 0 || done.steps[i - 1].arm != s.arm);
    }
  }
  EXPECT_EQ(done.steps.back().purpose, Purpose::kMeasure);
}

TEST(Campaign, AGivenRateNeedsNoSearch) {
  CampaignOptions options;
  options.arms = 2;
  options.repeats = 2;
  options.rate = 4;
  options.sweep = true;
  options.sweep_rates = {3, 1};
  Campaign campaign(options);
  EXPECT_EQ(campaign.left(100, 2).runs, 2 * 2 + 2 * 2);
  EXPECT_NEAR(campaign.left(100, 2).seconds, 4 * (25 + 2) + 2 * (100 + 100 / 3.0 + 2 * 2), 1e-6);
  campaign.next();
  campaign.on_run(probe(4, 2, 0));  // the first arm does half of what is offered, so its second repeat takes twice the time
  EXPECT_NEAR(campaign.left(100, 2).seconds, 50 + 2 * 25 + 3 * 2 + 4 * 2 + 50 + 100 + 2 * 100 / 3.0 + 100 - 100 / 3.0, 3);
  const Done done = carry_out(campaign, {2, 3});
  EXPECT_TRUE(arms_of(done, Purpose::kSearch).empty());
  EXPECT_EQ(campaign.search(0), nullptr);
  EXPECT_EQ(campaign.rate_from(), std::nullopt);
  std::vector<double> rates;
  for (const Step& s : done.steps) rates.push_back(s.rate);
  EXPECT_THAT(rates, ElementsAre(4, 4, 4, 1, 1, 3, 3));
  EXPECT_EQ(campaign.left(100, 2).runs, 0);
}

TEST(Campaign, SweepsAllArmsAtTheSameRatesAroundTheHighestSaturation) {
  CampaignOptions options;
  options.arms = 2;
  options.repeats = 1;
  options.sweep = true;
  Campaign campaign(options);
  const Done done = carry_out(campaign, {1.0, 4.0});
  std::vector<double> rates[2];
  for (const Step& s : done.steps)
    if (s.purpose == Purpose::kSweep) rates[s.arm].push_back(s.rate);
  EXPECT_THAT(arms_of(done, Purpose::kSweep), ElementsAre(0, 1, 1, 0, 0, 1, 1, 0, 0, 1)) << "all arms at a rate before the next";
  EXPECT_EQ(rates[0], rates[1]);
  EXPECT_EQ(rates[0].size(), 5U);
  EXPECT_DOUBLE_EQ(rates[0][3], campaign.search(1)->saturation());
}

TEST(Campaign, AnArmThatFailsHasNoFurtherStepsAndTheNextOneIsTheFirst) {
  CampaignOptions options;
  options.arms = 3;
  Campaign campaign(options);
  const Done done = carry_out(campaign, {0, 2.0, 3.0});
  EXPECT_EQ(std::ranges::count(done.steps, std::size_t{0}, &Step::arm), 1);
  EXPECT_EQ(campaign.failure(0), "did not start");
  EXPECT_NEAR(campaign.rate(), 1.23 * 2.0, 0.3);
  EXPECT_EQ(campaign.rate_from(), 1U);
  EXPECT_THAT(arms_of(done, Purpose::kMeasure, 0), ElementsAre(1, 2));

  Campaign none(options);
  EXPECT_EQ(carry_out(none, {0, 0, 0}).steps.size(), 3U);
  EXPECT_EQ(none.rate(), 0);

  // All requests of a burst fail: nothing can be searched.
  Campaign broken(options);
  broken.next();
  broken.on_run({0, 0, false});
  EXPECT_THAT(broken.failure(0), HasSubstr("no request succeeded"));
  EXPECT_EQ(broken.next()->arm, 1U);
}

TEST(Campaign, TheTimeLeftIsKnownAfterTheFirstRun) {
  CampaignOptions options;
  options.arms = 2;
  Campaign campaign(options);
  EXPECT_LT(campaign.left(200, 3).seconds, 0);
  EXPECT_GT(campaign.left(200, 3).runs, 6);
  campaign.next();
  campaign.on_run(probe(0, 2.0, 0.5));
  const auto at_first = campaign.left(200, 3);
  EXPECT_GT(at_first.seconds, 200 / 2.0 * 6);
  int left = at_first.runs;
  double predicted = at_first.seconds, took = 0;
  while (const auto step = campaign.next()) {
    EXPECT_LE(campaign.left(200, 3).runs, left + SearchOptions{}.probes_max);
    left = campaign.left(200, 3).runs;
    took += step->fresh ? 3 : 0;
    const auto outcomes = queue(200, step->rate, 2.0, 0.5);
    took += duration(outcomes);
    campaign.on_run(kept_up(outcomes, step->rate, duration(outcomes)));
  }
  EXPECT_NEAR(predicted, took, 0.35 * took);
  EXPECT_EQ(campaign.left(200, 3).runs, 0);
}

}  // namespace
}  // namespace baton::app
