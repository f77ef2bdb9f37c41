#include "base/team.h"

#include <dirent.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>

#include "device/cpu/cores.h"
#include "device/cpu/split.h"

namespace baton::device::cpu {
namespace {

// As many members as asked, on as many cores as there are: a team of this test may share cores.
std::vector<int> cores_for(int members) {
  const std::vector<int> allowed = ids_of(allowed_cpus());
  std::vector<int> cores;
  for (int i = 0; i < members; ++i) cores.push_back(allowed[static_cast<std::size_t>(i) % allowed.size()]);
  return cores;
}

TEST(Team, EveryMemberRunsEveryRegionOnce) {
  for (int members : {1, 2, 3}) {
    Team team(cores_for(members));
    ASSERT_EQ(team.size(), members);
    std::array<long, 3> runs{};  // each written by its member only
    for (long region = 1; region <= 2000; ++region) {
      team.run([&](int member) { ++runs[static_cast<std::size_t>(member)]; });
      for (int m = 0; m < members; ++m) ASSERT_EQ(runs[static_cast<std::size_t>(m)], region) << "member " << m << " of " << members;
    }
  }
}

TEST(Team, MembersRunOnTheirCores) {
  const cpu_set_t before = [] {
    cpu_set_t set;
    sched_getaffinity(0, sizeof set, &set);
    return set;
  }();
  {
    const std::vector<int> cores = cores_for(2);
    Team team(cores);
    std::array<int, 2> seen{-1, -1};
    team.run([&](int member) { seen[static_cast<std::size_t>(member)] = sched_getcpu(); });
    EXPECT_EQ(seen[0], cores[0]);
    EXPECT_EQ(seen[1], cores[1]);
  }
  cpu_set_t after;
  sched_getaffinity(0, sizeof after, &after);
  EXPECT_TRUE(CPU_EQUAL(&before, &after)) << "the caller's affinity is given back";
}

// State of each other thread of this process, from /proc: 'S' sleeps, 'R' runs or spins.
std::string other_threads() {
  std::string states;
  DIR* dir = opendir("/proc/self/task");
  while (const dirent* entry = readdir(dir)) {
    if (entry->d_name[0] == '.' || std::atoi(entry->d_name) == static_cast<int>(syscall(SYS_gettid))) continue;
    std::ifstream file(std::string("/proc/self/task/") + entry->d_name + "/stat");
    std::string text((std::istreambuf_iterator<char>(file)), {});
    if (const std::size_t end = text.rfind(')'); end != std::string::npos && end + 2 < text.size()) states += text[end + 2];
  }
  closedir(dir);
  return states;
}

TEST(Team, AnIdleTeamSleepsAndWakesAgain) {
  Team team(cores_for(2));
  for (int round = 0; round < 3; ++round) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (other_threads().find_first_not_of('S') != std::string::npos) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "a member of an idle team still runs: " << other_threads();
      std::this_thread::yield();
    }
    std::atomic<int> ran{0};
    team.run([&](int) { ++ran; });
    ASSERT_EQ(ran, 2);
  }
}

TEST(Split, SharesOutEverythingOnceInWholeGrains) {
  for (long count : {0L, 1L, 15L, 16L, 17L, 1000L})
    for (long grain : {1L, 16L})
      for (int size : {1, 2, 3, 7}) {
        long at = 0;
        for (int member = 0; member < size; ++member) {
          const Range range = split(count, grain, member, size);
          ASSERT_EQ(range.begin, at);
          ASSERT_TRUE(range.begin % grain == 0 || range.begin == count);
          at = range.end;
        }
        ASSERT_EQ(at, count);
      }
}

}  // namespace
}  // namespace baton::device::cpu
