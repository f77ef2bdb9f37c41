// Scenarios as data: drawn, written, read back, reduced.

#include "sim/scenario.h"

#include <gtest/gtest.h>

#include <set>

#include "sim/load.h"

namespace baton::sim {
namespace {

TEST(ScenarioText, IsReadBackExactly) {
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    const Scenario drawn = draw_swarm(seed);
    const auto read = scenario_from_text(to_text(drawn));
    ASSERT_TRUE(read.ok()) << read.status().to_string() << "\n" << to_text(drawn);
    EXPECT_EQ(*read, drawn) << to_text(drawn);
    EXPECT_EQ(to_text(*read), to_text(drawn));
  }
  for (const Scenario& s : scenarios()) {
    const auto read = scenario_from_text("# a comment\n\n" + to_text(s));
    ASSERT_TRUE(read.ok()) << read.status().to_string();
    EXPECT_EQ(*read, s) << to_text(s);
  }
}

TEST(ScenarioText, SaysWhatIsWrong) {
  const std::string good = "scenario name=x\nworkers count=1\n";
  ASSERT_TRUE(scenario_from_text(good).ok());
  const auto why = [](const std::string& text) {
    const auto read = scenario_from_text(text);
    return read.ok() ? "" : read.status().message();
  };
  EXPECT_EQ(why(""), "scenario: a scenario needs workers");
  EXPECT_EQ(why("workers count=1\n"), "scenario, line 1: a scenario begins with 'scenario'");
  EXPECT_EQ(why(good + "load request=5\n"), "scenario, line 3: there is no field 'request' here");
  EXPECT_EQ(why(good + "load requests=5x\n"), "scenario, line 3: 'requests=5x' has a wrong value");
  EXPECT_EQ(why(good + "load requests\n"), "scenario, line 3: 'requests' is not key=value");
  EXPECT_EQ(why(good + "weather wind=3\n"), "scenario, line 3: there is no line 'weather'");
  EXPECT_EQ(why(good + "load burst=0\n"), "scenario: the load makes no sense");
  EXPECT_EQ(why(good + "fault kind=kill host=d0\n"), "scenario: the fault 'kill' has a wrong place or value");
  EXPECT_EQ(why(good + "fault kind=fetch-lost host=w0\n"), "scenario: the fault 'fetch-lost' has a wrong place or value");
  EXPECT_EQ(why(good + "fault kind=squeeze host=gateway value=10\n"), "scenario: the fault 'squeeze' has a wrong place or value");
  EXPECT_EQ(why(good + "fault kind=cut host=w0 to=*\n"), "");
}

// A shrinker deletes faults and requests: what is left is what it was.
TEST(ScenarioReduced, LeftOutRequestsChangeNoOther) {
  Scenario s = draw_swarm(3);
  const auto all = make_load(s, 512, calm_at(s));
  s.load.skip = {0, 7, 50, 101};
  const auto some = make_load(s, 512, calm_at(s));
  ASSERT_EQ(some.size() + 4, all.size());
  std::size_t next = 0;
  for (const ClientPlan& plan : all) {
    if (std::find(s.load.skip.begin(), s.load.skip.end(), plan.number) != s.load.skip.end()) continue;
    EXPECT_EQ(some[next].number, plan.number);
    EXPECT_EQ(some[next].arrival, plan.arrival);
    EXPECT_EQ(some[next].request.ids, plan.request.ids);
    EXPECT_EQ(some[next].request.seed, plan.request.seed);
    ++next;
  }
}

// What is never drawn is never tried.
TEST(Swarm, DrawsEveryKindOfFaultAndOfCluster) {
  std::set<Fault::Kind> kinds;
  std::set<std::string> clusters;
  int calm = 0, one_way = 0, gateway = 0, everybody = 0;
  for (std::uint64_t seed = 1; seed <= 1000; ++seed) {
    const Scenario s = draw_swarm(seed);
    std::string cluster;
    for (const std::string& name : worker_names(s)) cluster += name[0];
    clusters.insert(cluster);
    calm += s.faults.empty();
    for (const Fault& f : s.faults) {
      kinds.insert(f.kind);
      gateway += f.host == "gateway" && f.kind == Fault::Kind::kKill;
      everybody += f.host == "*" || f.to == "*";
      one_way += !f.to.empty() && std::none_of(s.faults.begin(), s.faults.end(),
                                               [&](const Fault& o) { return o.kind == f.kind && o.at == f.at && o.host == f.to; });
    }
  }
  EXPECT_EQ(kinds.size(), static_cast<std::size_t>(Fault::kKinds));
  EXPECT_GT(clusters.size(), 15u);
  EXPECT_GT(calm, 40);
  EXPECT_LT(calm, 200);
  EXPECT_GT(one_way, 50);
  EXPECT_GT(gateway, 30);
  EXPECT_GT(everybody, 100);
}

}  // namespace
}  // namespace baton::sim
