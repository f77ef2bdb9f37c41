#include "device/cpu/group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <thread>

#include "base/rng.h"
#include "device/cpu/memory.h"

namespace baton::device::cpu {
namespace {

using ::testing::HasSubstr;

constexpr Duration kLong = std::chrono::seconds(60);

// Runs `body` as each rank, on a thread of its own.
void as_ranks(Group& group, const std::function<void(Collective&)>& body) {
  std::vector<std::jthread> threads;
  for (int r = 0; r < group.size(); ++r) {
    threads.emplace_back([&, r] {
      Team team({});
      body(*group.join(r, team));
    });
  }
}

std::vector<float> values_of(int rank, std::uint64_t round, std::size_t n) {
  Rng rng(1000 * round + static_cast<std::uint64_t>(rank));
  std::vector<float> out(n);
  for (float& v : out) v = static_cast<float>((rng.uniform() - 0.5) * std::exp2(static_cast<double>(rng.below(40)) - 20));
  return out;
}

TEST(Group, SumsInRankOrderOnEveryRank) {
  for (int size = 1; size <= 4; ++size) {
    Group group(size, kLong);
    constexpr std::size_t kSizes[] = {1, 2, 15, 16, 17, 576, 1000, 5000};
    as_ranks(group, [&](Collective& collective) {
      for (std::uint64_t round = 0; round < 200; ++round) {
        const std::size_t n = kSizes[round % std::size(kSizes)];
        std::vector<float> x = values_of(collective.rank().value, round, n), wanted = values_of(0, round, n);
        for (int other = 1; other < size; ++other) {
          const std::vector<float> y = values_of(other, round, n);
          for (std::size_t i = 0; i < n; ++i) wanted[i] += y[i];
        }
        CpuBuffer buffer(x.data(), x.size() * sizeof(float));
        collective.all_reduce(Tensor::contiguous(&buffer, DType::kF32, {static_cast<std::int64_t>(n)}));
        ASSERT_EQ(std::memcmp(x.data(), wanted.data(), n * sizeof(float)), 0) << size << " ranks, round " << round;
      }
    });
    EXPECT_FALSE(group.failed());
  }
}

TEST(Group, GathersColumnsOfAnyWidthOnTheFirstRank) {
  constexpr std::int64_t kRows = 3, kWidths[] = {33, 7, 16}, kAll = 56;
  Group group(3, kLong);
  as_ranks(group, [&](Collective& collective) {
    const int rank = collective.rank().value;
    const std::int64_t width = kWidths[rank];
    for (std::uint64_t round = 0; round < 100; ++round) {
      std::vector<float> x = values_of(rank, round, static_cast<std::size_t>(kRows * width)), out(kRows * kAll);
      CpuBuffer from(x.data(), x.size() * sizeof(float)), to(out.data(), out.size() * sizeof(float));
      collective.gather_columns(Tensor::contiguous(&from, DType::kF32, {kRows, width}),
                                rank == 0 ? Tensor::contiguous(&to, DType::kF32, {kRows, kAll}) : Tensor());
      std::int64_t at = 0;
      for (int other = 0; rank == 0 && other < 3; at += kWidths[other++]) {
        const std::vector<float> wanted = values_of(other, round, static_cast<std::size_t>(kRows * kWidths[other]));
        for (std::int64_t r = 0; r < kRows; ++r)
          ASSERT_TRUE(
              std::equal(wanted.begin() + r * kWidths[other], wanted.begin() + (r + 1) * kWidths[other], out.begin() + r * kAll + at));
      }
    }
  });
}

TEST(Group, WhoDoesNotComeFailsTheGroup) {
  Group group(3, std::chrono::milliseconds(20));
  as_ranks(group, [&](Collective& collective) {
    std::vector<float> x(100);
    CpuBuffer buffer(x.data(), x.size() * sizeof(float));
    const Tensor tensor = Tensor::contiguous(&buffer, DType::kF32, {100});
    collective.all_reduce(tensor);
    if (collective.rank() == Rank(1)) return;
    collective.all_reduce(tensor);  // returns
    collective.all_reduce(tensor);  // at once
  });
  ASSERT_TRUE(group.failed());
  EXPECT_EQ(group.status().code(), Code::kDeadlineExceeded);
  EXPECT_THAT(group.status().message(), HasSubstr("rank 1"));
}

TEST(Group, ARankThatFailsLetsTheOthersGo) {
  Group group(2, kLong);
  as_ranks(group, [&](Collective& collective) {
    if (collective.rank() == Rank(1)) return group.fail(Status(Code::kInternal, "an op failed"));
    std::vector<float> x(100);
    CpuBuffer buffer(x.data(), x.size() * sizeof(float));
    collective.all_reduce(Tensor::contiguous(&buffer, DType::kF32, {100}));
  });
  EXPECT_THAT(group.status().message(), HasSubstr("an op failed"));
}

}  // namespace
}  // namespace baton::device::cpu
