#include "device/cpu/cores.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <map>

#include "base/rng.h"

namespace baton::device::cpu {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using Devices = std::vector<std::vector<int>>;

std::vector<Cpu> imagine(const std::string& description) {
  auto cpus = imagined_cpus(description);
  EXPECT_TRUE(cpus.ok()) << cpus.status().to_string();
  return *cpus;
}

std::vector<int> from(int first, int last) {
  std::vector<int> out;
  for (int i = first; i <= last; ++i) out.push_back(i);
  return out;
}

TEST(Cores, SeesSocketsNodesCachesCoresAndThreads) {
  const std::vector<Cpu> cpus = imagine("package:2 numa:1 l3:2 core:3 pu:2");
  ASSERT_THAT(cpus, SizeIs(24));
  EXPECT_EQ(cpus[0], (Cpu{.id = 0, .core = 0, .l3 = 0, .node = 0, .socket = 0}));
  EXPECT_EQ(cpus[7], (Cpu{.id = 7, .core = 3, .l3 = 1, .node = 0, .socket = 0}));
  EXPECT_EQ(cpus[23], (Cpu{.id = 23, .core = 11, .l3 = 3, .node = 1, .socket = 1}));
  const std::vector<Cpu> cores = physical_cores(cpus);
  EXPECT_THAT(ids_of(cores), ElementsAre(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22));
  EXPECT_THAT(imagined_cpus("package:x").status().message(), HasSubstr("package:x"));
}

TEST(Cores, ACoreWhoseFirstThreadIsForbiddenCountsByItsSecond) {
  std::vector<Cpu> cpus = imagine("core:2 pu:2");
  cpus.erase(cpus.begin());
  EXPECT_THAT(ids_of(physical_cores(cpus)), ElementsAre(1, 2));
}

TEST(PlanDevices, DealsOneNodeOutEvenly) {
  const auto cores = imagine("core:5 pu:1");
  EXPECT_EQ(plan_devices(cores, 1), (Devices{{0, 1, 2, 3, 4}}));
  EXPECT_EQ(plan_devices(cores, 2), (Devices{{0, 1}, {2, 3, 4}}));
  EXPECT_EQ(plan_devices(cores, 5), (Devices{{0}, {1}, {2}, {3}, {4}}));
}

TEST(PlanDevices, TakeTurnsWhereThereAreMoreDevicesThanCores) {
  EXPECT_EQ(plan_devices(imagine("core:2 pu:1"), 5), (Devices{{0}, {1}, {0}, {1}, {0}}));
}

TEST(PlanDevices, ADeviceStaysInItsNode) {
  const auto cores = imagine("numa:2 core:8 pu:1");
  EXPECT_EQ(plan_devices(cores, 1), (Devices{from(0, 7)})) << "the other node's cores would read this one's memory";
  EXPECT_EQ(plan_devices(cores, 2), (Devices{from(0, 7), from(8, 15)}));
  EXPECT_EQ(plan_devices(cores, 3), (Devices{from(0, 3), from(4, 7), from(8, 12)})) << "no device much larger than the others";
}

TEST(PlanDevices, ADeviceStaysInItsL3WhereThatCostsNoCore) {
  const auto cores = imagine("l3:4 core:4 pu:1");
  EXPECT_EQ(plan_devices(cores, 8), (Devices{{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}, {10, 11}, {12, 13}, {14, 15}}));
  // Within caches two cores would stay idle, and then devices would be smaller.
  EXPECT_THAT(plan_devices(cores, 6), ElementsAre(SizeIs(2), SizeIs(3), SizeIs(3), SizeIs(2), SizeIs(3), SizeIs(3)));
  EXPECT_THAT(plan_devices(cores, 5), ElementsAre(SizeIs(3), SizeIs(3), SizeIs(3), SizeIs(3), SizeIs(4)));
  EXPECT_THAT(plan_devices(cores, 3), ElementsAre(SizeIs(5), SizeIs(5), SizeIs(6)));
}

TEST(PlanDevices, UnevenNodesGetDevicesByTheirSize) {
  std::vector<Cpu> cpus = imagine("numa:2 core:6 pu:1");
  cpus.erase(cpus.begin(), cpus.begin() + 4);  // a cpuset that leaves two of the first node
  EXPECT_EQ(plan_devices(cpus, 1), (Devices{from(6, 11)}));
  EXPECT_EQ(plan_devices(cpus, 4), (Devices{{4, 5}, {6, 7}, {8, 9}, {10, 11}}));
}

// Whatever the machine, the cpuset and the number: no core twice, no device over two nodes, sizes within one, none that could be larger.
TEST(PlanDevices, HoldsItsPromisesOnAnyMachine) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    const auto draw = [&](std::uint64_t most) { return std::to_string(1 + rng.below(most)); };
    std::vector<Cpu> all =
        physical_cores(imagine("package:" + draw(2) + " numa:" + draw(3) + " l3:" + draw(3) + " core:" + draw(6) + " pu:" + draw(2)));
    std::vector<Cpu> cpus;
    for (const Cpu& cpu : all)
      if (cpus.empty() || rng.below(5) != 0) cpus.push_back(cpu);
    std::map<int, int> node_of, per_node, seen;
    for (const Cpu& cpu : cpus) {
      node_of[cpu.id] = cpu.node;
      ++per_node[cpu.node];
    }
    const int count = 1 + static_cast<int>(rng.below(static_cast<std::uint64_t>(cpus.size())));
    const Devices devices = plan_devices(cpus, count);
    ASSERT_EQ(std::ssize(devices), count);
    const bool one_node = per_node.size() == 1;
    std::size_t least = SIZE_MAX, most = 0;
    for (const auto& device : devices) {
      ASSERT_FALSE(device.empty());
      least = std::min(least, device.size());
      most = std::max(most, device.size());
      for (const int id : device) {
        EXPECT_EQ(++seen[id], 1) << "core " << id;
        EXPECT_EQ(node_of.at(id), node_of.at(device.front()));
      }
    }
    EXPECT_LE(most, least + 1);
    if (one_node) {
      EXPECT_EQ(seen.size(), cpus.size()) << "idle cores, and no node to leave";
    }
    int room = 0;  // for devices of one core more
    for (const auto& [node, size] : per_node) room += size / static_cast<int>(least + 1);
    EXPECT_LT(room, count);
  }
}

TEST(Cores, AllowedOnesAreThoseOfTheAffinityMask) {
  const std::vector<int> all = ids_of(allowed_cpus());
  ASSERT_THAT(all, testing::Not(IsEmpty()));
  {
    const OnCores here({all.back()});
    EXPECT_THAT(ids_of(allowed_cpus()), ElementsAre(all.back()));
    EXPECT_THAT(*choose_cores({}, 0), ElementsAre(all.back()));
  }
  EXPECT_EQ(ids_of(allowed_cpus()), all) << "back where it was";
  const OnCores nowhere({});
  EXPECT_EQ(ids_of(allowed_cpus()), all);
}

TEST(Cores, APlaceForMemoryIsAWish) {
  void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  for (const int node : {-1, 0, 100000}) place_on_node(page, 4096, node);
  static_cast<char*>(page)[0] = 1;
  munmap(page, 4096);
  EXPECT_EQ(home_node({}), -1);
}

}  // namespace
}  // namespace baton::device::cpu
