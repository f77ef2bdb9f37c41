// Collectives over hosts: of the hosts alone, and of hosts with several ranks each.

#include "device/gloo/gloo_links.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <future>
#include <latch>
#include <map>
#include <mutex>

#include "base/rng.h"
#include "base/team.h"
#include "device/cpu/group.h"
#include "device/cpu/memory.h"
#include "device/gloo/test_nodes.h"
#include "device/node_group.h"

namespace baton::device::gloo {
namespace {

using ::testing::HasSubstr;
using testing::with_links;

constexpr Duration kLong = std::chrono::seconds(60);
// Messages so short that most operations take several.
const LinksOptions kShort{.deadline = kLong, .message_bytes = 64 + 256};

std::vector<float> values_of(int rank, std::uint64_t round, std::size_t n) {
  Rng rng(1000 * round + static_cast<std::uint64_t>(rank));
  std::vector<float> out(n);
  for (float& v : out) v = static_cast<float>((rng.uniform() - 0.5) * std::exp2(static_cast<double>(rng.below(40)) - 20));
  return out;
}

void add(std::vector<float>& to, const std::vector<float>& x) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += x[i];
}

TEST(Nodes, SumInTheirOrderOnEachOfThem) {
  for (const int nodes : {2, 3}) {
    with_links(nodes, kShort, [&](std::unique_ptr<NodeLinks> links) {
      NodeGroup group(std::move(links));
      constexpr std::size_t kSizes[] = {1, 63, 64, 65, 576, 1000};
      for (std::uint64_t round = 0; round < 60; ++round) {
        const std::size_t n = kSizes[round % std::size(kSizes)];
        std::vector<float> x = values_of(group.node(), round, n), wanted = values_of(0, round, n);
        for (int other = 1; other < nodes; ++other) add(wanted, values_of(other, round, n));
        const Status status = group.sum(x);
        ASSERT_TRUE(status.ok()) << status.to_string();
        ASSERT_EQ(std::memcmp(x.data(), wanted.data(), n * sizeof(float)), 0) << nodes << " nodes, round " << round;
      }
    });
  }
}

TEST(Nodes, BroadcastAndVote) {
  with_links(3, kShort, [](std::unique_ptr<NodeLinks> links) {
    NodeGroup group(std::move(links));
    for (const std::size_t n : {0, 1, 64, 65, 1000, 3}) {
      std::vector<std::int32_t> words(group.node() == 0 ? n : 7, 5);
      for (std::size_t i = 0; i < words.size() && group.node() == 0; ++i) words[i] = static_cast<std::int32_t>(i * i);
      ASSERT_TRUE(group.broadcast(words, 1000).ok());
      ASSERT_EQ(words.size(), n);
      for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(words[i], static_cast<std::int32_t>(i * i));
      const auto least = group.least(10 - group.node());
      ASSERT_TRUE(least.ok());
      EXPECT_EQ(*least, 8);
      ASSERT_TRUE(group.barrier().ok());
    }
    std::vector<std::int32_t> words(10);
    const Status status = group.broadcast(words, 9);
    if (group.node() != 0) {
      EXPECT_EQ(status.code(), Code::kDataLoss);
    }
  });
}

// Two hosts with three ranks each and three with two, against the plain sum in the order that collective.h states.
TEST(Nodes, WithSeveralRanksEach) {
  for (const auto& [nodes, local] : {std::pair(2, 3), std::pair(3, 2), std::pair(2, 1)}) {
    SCOPED_TRACE(::testing::Message() << nodes << " nodes of " << local);
    with_links(nodes, kShort, [&, nodes = nodes, local = local](std::unique_ptr<NodeLinks> links) {
      const auto shared = std::make_shared<NodeGroup>(std::move(links));
      cpu::Group group(local, kLong, shared);
      std::vector<std::jthread> threads;
      for (int r = 0; r < local; ++r) {
        threads.emplace_back([&, r] {
          Team team({});
          const auto collective = group.join(r, team);
          ASSERT_EQ(collective->size(), nodes * local);
          ASSERT_EQ(collective->rank().value, shared->node() * local + r);
          for (std::uint64_t round = 0; round < 30; ++round) {
            const std::size_t n = 1 + round * 37;
            std::vector<float> wanted;
            for (int node = 0; node < nodes; ++node) {
              std::vector<float> part = values_of(node * local, round, n);
              for (int other = 1; other < local; ++other) add(part, values_of(node * local + other, round, n));
              if (node == 0) wanted = part;
              if (node != 0) add(wanted, part);
            }
            std::vector<float> x = values_of(collective->rank().value, round, n);
            cpu::CpuBuffer buffer(x.data(), x.size() * sizeof(float));
            collective->all_reduce(Tensor::contiguous(&buffer, DType::kF32, {static_cast<std::int64_t>(n)}));
            ASSERT_EQ(std::memcmp(x.data(), wanted.data(), n * sizeof(float)), 0) << "round " << round;
            collective->barrier();
          }
        });
      }
      threads.clear();
      EXPECT_TRUE(group.status().ok()) << group.status().to_string();
    });
  }
}

TEST(Nodes, GatherColumnsOfAnyWidth) {
  constexpr std::int64_t kRows = 5, kWidths[] = {33, 7, 16, 0, 21, 40}, kAll = 117;
  for (const auto& [nodes, local] : {std::pair(2, 3), std::pair(3, 2)}) {
    with_links(nodes, kShort, [&, local = local](std::unique_ptr<NodeLinks> links) {
      cpu::Group group(local, kLong, std::make_shared<NodeGroup>(std::move(links)));
      std::vector<std::jthread> threads;
      for (int r = 0; r < local; ++r) {
        threads.emplace_back([&, r] {
          Team team({});
          const auto collective = group.join(r, team);
          const int rank = collective->rank().value;
          const std::int64_t width = kWidths[rank];
          for (std::uint64_t round = 0; round < 30; ++round) {
            std::vector<float> x = values_of(rank, round, static_cast<std::size_t>(kRows * width) + 1), out(kRows * kAll);
            cpu::CpuBuffer from(x.data(), x.size() * sizeof(float)), to(out.data(), out.size() * sizeof(float));
            collective->gather_columns(Tensor::contiguous(&from, DType::kF32, {kRows, width}),
                                       rank == 0 ? Tensor::contiguous(&to, DType::kF32, {kRows, kAll}) : Tensor());
            std::int64_t at = 0;
            for (int other = 0; rank == 0 && other < 6; at += kWidths[other++]) {
              const std::vector<float> wanted = values_of(other, round, static_cast<std::size_t>(kRows * kWidths[other]) + 1);
              for (std::int64_t row = 0; row < kRows; ++row) {
                const auto begin = wanted.begin() + row * kWidths[other];
                ASSERT_TRUE(std::equal(begin, begin + kWidths[other], out.begin() + row * kAll + at)) << "rank " << other;
              }
            }
          }
        });
      }
      threads.clear();
      EXPECT_TRUE(group.status().ok()) << group.status().to_string();
    });
  }
}

// The states of three hosts after the last of them has done `end` instead of a second sum.
std::map<int, Status> after(const LinksOptions& options, const std::function<void(NodeGroup&)>& end) {
  std::map<int, Status> states;
  std::mutex mutex;
  std::promise<void> others_done;
  std::latch summed(3);
  with_links(3, options, [&](std::unique_ptr<NodeLinks> links) {
    NodeGroup group(std::move(links));
    std::vector<float> x(1000, 1);
    EXPECT_TRUE(group.sum(x).ok());
    summed.arrive_and_wait();
    if (group.node() == 2) {
      end(group);
      others_done.get_future().wait_for(std::chrono::seconds(60));  // its links stay as they are
      return;
    }
    const Status status = group.sum(x);
    EXPECT_EQ(group.sum(x).message(), status.message()) << "at once, and for good";
    const std::lock_guard lock(mutex);
    states[group.node()] = status;
    if (states.size() == 2) others_done.set_value();
  });
  return states;
}

TEST(Nodes, WhoDiesIsNamed) {
  for (const auto& [node, status] : after(kShort, [](NodeGroup& group) { group.fail({Code::kInternal, "an op failed"}); })) {
    EXPECT_EQ(status.code(), Code::kUnavailable) << node;
    EXPECT_THAT(status.message(), ::testing::ContainsRegex("node [012] is gone")) << node;
  }
}

TEST(Nodes, WhoHangsIsFoundWithinTheDeadline) {
  LinksOptions options = kShort;
  options.deadline = std::chrono::milliseconds(300);
  bool named = false;
  for (const auto& [node, status] : after(options, [](NodeGroup&) {})) {
    EXPECT_THAT(status.code(), ::testing::AnyOf(Code::kDeadlineExceeded, Code::kUnavailable)) << node;
    named = named || status.message() == "node 2 did not come to a collective within 300 ms";  // whoever waited out cut the links
  }
  EXPECT_TRUE(named);
}

TEST(Nodes, WhoComesToAnotherCollectiveIsFound) {
  with_links(2, kShort, [](std::unique_ptr<NodeLinks> links) {
    NodeGroup group(std::move(links));
    std::vector<float> x(10);
    const Status status = group.node() == 0 ? group.sum(x) : group.barrier();
    EXPECT_FALSE(status.ok());
  });
}

TEST(Nodes, ARankThatFailsIsAllHostsFailure) {
  std::promise<void> seen;
  with_links(2, kShort, [&](std::unique_ptr<NodeLinks> links) {
    const auto shared = std::make_shared<NodeGroup>(std::move(links));
    cpu::Group group(2, kLong, shared);
    std::vector<std::jthread> threads;
    for (int r = 0; r < 2; ++r) {
      threads.emplace_back([&, r] {
        Team team({});
        const auto collective = group.join(r, team);
        if (shared->node() == 0 && r == 1) return collective->fail(Status(Code::kInternal, "an op failed"));
        collective->barrier();
        collective->barrier();
      });
    }
    threads.clear();
    EXPECT_THAT(group.status().message(), HasSubstr(shared->node() == 0 ? "rank 1: an op failed" : "node 0 is gone"));
    if (shared->node() == 1) return seen.set_value();
    const auto told = seen.get_future().wait_for(std::chrono::seconds(30));  // while these links still exist
    EXPECT_EQ(told, std::future_status::ready);
  });
}

}  // namespace
}  // namespace baton::device::gloo
