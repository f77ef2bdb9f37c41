#include "app/topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/devices.h"

namespace baton::app {
namespace {

using device::cpu::Cpu;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<Cpu> imagine(const std::string& description) {
  auto cpus = device::cpu::imagined_cpus(description);
  EXPECT_TRUE(cpus.ok()) << cpus.status().to_string();
  return *cpus;
}

// "p0 prefill 2, d0 decode 1" of the workers that the flags give.
std::string plan(const TopologyFlags& flags, int tensor_parallel_size = 1) {
  const auto workers = plan_topology(flags, tensor_parallel_size);
  if (!workers.ok()) return "refused: " + workers.status().message();
  std::string out;
  for (const WorkerPlan& w : *workers) out += (out.empty() ? "" : ", ") + w.name + " " + w.role + " " + std::to_string(w.ranks);
  return out;
}

TEST(Topology, InstancesAndTheirDegrees) {
  EXPECT_EQ(plan({}), "w0 both 1");
  EXPECT_EQ(plan({}, 4), "w0 both 4");
  EXPECT_EQ(plan({.prefill = "1", .decode = "2"}), "p0 prefill 1, d0 decode 1, d1 decode 1");
  EXPECT_EQ(plan({.prefill = "1xTP4", .decode = "2xTP2"}), "p0 prefill 4, d0 decode 2, d1 decode 2");
  EXPECT_EQ(plan({.prefill = "1", .decode = "1xtp3"}, 2), "p0 prefill 2, d0 decode 3") << "--tensor-parallel-size is of bare numbers";
  EXPECT_EQ(plan({.prefill = "1xTP2,2xTP1,1", .decode = "1"}), "p0 prefill 2, p1 prefill 1, p2 prefill 1, p3 prefill 1, d0 decode 1");
  EXPECT_EQ(plan({.data_parallel_size = 2}, 2), "w0 both 2, w1 both 2");
}

TEST(Topology, RefusesWhatItCannotMean) {
  for (const char* bad :
       {"0", "-1", "x", "1x", "1xT", "1xTP", "1xTP0", "1xPP2", "TP2", "1xTP2,", ",1", "1;2", "1xTP2x", "1 ", "9999", "1xTP9999"})
    EXPECT_THAT(plan({.prefill = bad, .decode = "1"}), HasSubstr(std::string("--prefill ") + bad + ": expected")) << bad;
  EXPECT_THAT(plan({.prefill = "1"}), HasSubstr("go together"));
  EXPECT_THAT(plan({.decode = "1xTP2"}), HasSubstr("go together"));
  EXPECT_THAT(plan({.prefill = "200,200", .decode = "1"}), HasSubstr("at most 256"));
  EXPECT_THAT(plan({.prefill = "1", .decode = "1", .data_parallel_size = 2}), HasSubstr("--data-parallel-size 2"));
}

// The devices of each worker, "0-3; 4-7 | 8-11", of a cluster on an imagined machine.
struct Placed {
  std::string devices;
  std::vector<std::string> notices;
};
Placed place(const std::string& machine, const TopologyFlags& flags, const EngineFlags& engine = {}) {
  const std::vector<Cpu> cpus = imagine(machine);
  auto workers = plan_topology(flags, engine.tensor_parallel_size);
  EXPECT_TRUE(workers.ok()) << workers.status().to_string();
  const auto notices = place_workers(*workers, cpus, engine);
  if (!notices.ok()) return {"refused: " + notices.status().message(), {}};
  Placed out{"", *notices};
  for (const WorkerPlan& w : *workers) out.devices += (out.devices.empty() ? "" : " | ") + describe_devices(cpus, w.devices);
  return out;
}

TEST(Topology, EachRankGetsADevice) {
  EXPECT_EQ(place("core:8 pu:2", {.prefill = "1xTP2", .decode = "2"}).devices, "0,2; 4,6 | 8,10 | 12,14");
  EXPECT_EQ(place("numa:2 core:4 pu:1", {.prefill = "1xTP2", .decode = "1xTP2"}).devices,
            "0,1 (node 0); 2,3 (node 0) | 4,5 (node 1); 6,7 (node 1)");
  EngineFlags engine;
  engine.tensor_parallel_size = 2;
  EXPECT_EQ(place("core:2 pu:1", {}, engine).devices, "0; 1");
  EXPECT_THAT(place("core:2 pu:1", {}, engine).notices, IsEmpty());
}

TEST(Topology, ThreadsAreOfAnEngineNotOfARank) {
  EngineFlags engine;
  engine.threads = 3;
  EXPECT_EQ(place("core:8 pu:1", {.prefill = "1xTP2", .decode = "1xTP2"}, engine).devices, "0; 2,3 | 4; 6,7");
  engine.threads = 1;
  EXPECT_EQ(place("core:8 pu:1", {.prefill = "1xTP2", .decode = "1xTP2"}, engine).devices, "0; 2 | 4; 6") << "one at the least";
}

TEST(Topology, MoreRanksThanCoresIsOneNotice) {
  const Placed placed = place("core:2 pu:1", {.prefill = "1xTP2", .decode = "1xTP2"});
  EXPECT_EQ(placed.devices, "0; 1 | 0; 1");
  EXPECT_THAT(placed.notices, ElementsAre(HasSubstr("4 devices share 2 cores")));
}

TEST(Topology, CoresThatStayIdleAreNamed) {
  EXPECT_THAT(place("numa:2 core:4 pu:1", {}).notices, ElementsAre(HasSubstr("cores 4-7 stay idle")));
  EXPECT_THAT(place("numa:2 core:4 pu:1", {.data_parallel_size = 2}).notices, IsEmpty());
}

TEST(Topology, CoresByHand) {
  const TopologyFlags flags{.prefill = "1xTP2", .decode = "1"};
  const auto with = [&](const char* cores) {
    EngineFlags engine;
    engine.cores = cores;
    return place("core:4 pu:2", flags, engine).devices;
  };
  EXPECT_EQ(with("0-5"), "0,1; 2,3 | 4,5") << "siblings, if they are named";
  EXPECT_EQ(with("6,0,3"), "0; 3 | 6");
  EXPECT_EQ(with("6:0,2:4"), "6; 0,2 | 4") << "just these";
  EngineFlags all;
  all.cores = "0-7";
  EXPECT_EQ(place("numa:2 core:4 pu:1", {}, all).devices, "0-7 (node 0,1)") << "one device is what it is told to be";
  EXPECT_THAT(with("0-3:2-5:6"), HasSubstr("device 0 (0-3) and device 1 (2-5) overlap: both have core 2"));
  EXPECT_THAT(with("0:1:0"), HasSubstr("device 0 (0) and device 2 (0) overlap"));
  EXPECT_THAT(with("0:1"), HasSubstr("names 2 devices, but 3 are wanted"));
  EXPECT_THAT(with("0,8"), HasSubstr("core 8 is not one that this process may use (0-7)"));
  EXPECT_THAT(with("0,1,0"), HasSubstr("core 0 is named twice"));
  EXPECT_THAT(with("0;1"), HasSubstr("is not a list of cores"));
}

// What the supervisor gives its children is what it planned, also where they share cores.
TEST(Topology, AWorkersArgumentsAreItsPlan) {
  const std::vector<Cpu> cpus = imagine("core:2 pu:1");
  EngineFlags engine;
  engine.threads = 2;
  auto workers = plan_topology({.prefill = "1xTP3", .decode = "1"}, 1);
  ASSERT_TRUE(place_workers(*workers, cpus, engine).ok());
  const auto children = child_specs("model", engine, {}, *workers, -1);
  ASSERT_EQ(children.size(), 3u);
  for (std::size_t i = 0; i < workers->size(); ++i) {
    EngineFlags seen;
    CLI::App app("test", "test");
    seen.add_to(app);
    app.allow_extras();
    const std::vector<std::string>& args = children[i + 1].args;
    ASSERT_EQ(parse_args(app, {args.begin() + 2, args.end()}), std::nullopt);
    EXPECT_EQ(seen.tensor_parallel_size, (*workers)[i].ranks);
    auto plan = plan_devices(cpus, seen, seen.tensor_parallel_size);
    ASSERT_TRUE(plan.ok()) << plan.status().to_string();
    limit_threads(plan->devices, seen.threads);
    EXPECT_EQ(plan->devices, (*workers)[i].devices);
    EXPECT_THAT(notices_of(*plan), IsEmpty()) << "the supervisor has said so already";
  }
}

TEST(Devices, TheMachineInWords) {
  const auto cpus = imagine("package:2 l3:2 core:2 pu:2");
  EXPECT_EQ(describe_machine(cpus),
            "8 usable cores (0,2,4,6,8,10,12,14): 2 sockets (0,2,4,6; 8,10,12,14), 1 NUMA node, 4 L3 caches (0,2; 4,6; 8,10; 12,14)");
  EXPECT_EQ(describe_machine(imagine("core:1 pu:1")), "1 usable core (0): 1 socket, 1 NUMA node, 1 L3 cache");
  EXPECT_EQ(describe_plans(imagine("numa:2 core:2 pu:1")),
            "1: 0,1 (node 0) | 2: 0,1 (node 0); 2,3 (node 1) | "
            "4: 0 (node 0); 1 (node 0); 2 (node 1); 3 (node 1)");
}

}  // namespace
}  // namespace baton::app
