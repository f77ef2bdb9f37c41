#include "transfer/shm/shm_fabric.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "transfer/relayout.h"
#include "transfer/test_pool.h"

namespace baton::transfer {
namespace {

using testing::random_shards;
using testing::rows_equal;
using testing::TestRanks;
using testing::write_rows;

constexpr int kHeads = 3;
constexpr Range kAllHeads{0, kHeads};

// `seed` also gives the degree: what another process with the same seed has.
std::unique_ptr<TestRanks> make_pool(std::uint64_t seed, int block_tokens) {
  Rng rng(seed);
  return std::make_unique<TestRanks>(rng, device::KvSpec{2, kHeads, 16, device::DType::kBF16, block_tokens, 12},
                                     random_shards(rng, kHeads, 1 + static_cast<int>(seed)));
}
std::vector<BlockId> first_blocks(int n) {
  std::vector<BlockId> out;
  for (int i = 0; i < n; ++i) out.push_back(BlockId(i));
  return out;
}

class ShmFabricTest : public ::testing::Test {
 protected:
  void SetUp() override {
    watchdog_ = loop_.after(std::chrono::seconds(20), [this] {
      ADD_FAILURE() << "timed out";
      loop_.stop();
    });
  }
  std::unique_ptr<Fabric> fabric_on(const TestRanks& ranks, std::size_t jobs_max = 1024) {
    return std::move(create_shm_fabric(loop_, ranks.pools(), jobs_max)).value();
  }
  Result<Digest> wait_for(const std::function<void(Fabric::Done)>& start) {
    std::optional<Result<Digest>> result;
    start([&](Result<Digest> r) {
      result = std::move(r);
      loop_.stop();
    });
    loop_.run();
    return result ? std::move(*result) : Result<Digest>(Code::kDeadlineExceeded, "no completion");
  }
  net::EventLoop loop_;
  net::EventLoop::TimerId watchdog_ = 0;
};

// A real other process owns the source pool; it is gone before the last fetch, and its memory still serves.
TEST_F(ShmFabricTest, FetchesFromAnotherProcess) {
  int ready[2], bye[2];
  ASSERT_EQ(pipe(ready), 0);
  ASSERT_EQ(pipe(bye), 0);
  const pid_t child = fork();
  if (child == 0) {
    auto pool = make_pool(1, 5);
    for (int layer = 0; layer < 2; ++layer) write_rows(*pool, first_blocks(12), 42, layer, {0, 40});
    Hello hello;
    hello.region = pool->region();
    const std::string said = encode(hello);
    char byte;
    if (write(ready[1], said.data(), said.size()) != static_cast<ssize_t>(said.size()) || read(bye[0], &byte, 1) != 1) _exit(1);
    _exit(0);
  }
  FrameReader reader;
  std::optional<Message> said;
  while (!said) {
    char buffer[4096];
    const ssize_t n = read(ready[0], buffer, sizeof buffer);
    ASSERT_GT(n, 0);
    reader.append({buffer, static_cast<std::size_t>(n)});
    said = reader.next().value();
  }
  const SourceRegion region = std::get<Hello>(*said).region;
  ASSERT_EQ(region.parts.size(), 2u);
  auto pool = make_pool(2, 8);
  auto fabric = fabric_on(*pool);
  auto peer = fabric->open(region);
  ASSERT_TRUE(peer.ok()) << peer.status().to_string();
  const auto from = first_blocks(12), to = first_blocks(12);
  for (int layer = 0; layer < 2; ++layer) {
    if (layer == 1) {
      ASSERT_EQ(write(bye[1], "x", 1), 1);
      ASSERT_EQ(waitpid(child, nullptr, 0), child);
    }
    auto plan = plan_copy({region.parts, from, 0}, {pool->parts(), to, 0}, layer, kAllHeads, {3, 40});
    ASSERT_TRUE(plan.ok());
    const auto digest = wait_for([&](Fabric::Done done) { fabric->fetch(*peer, *plan, std::move(done)); });
    ASSERT_TRUE(digest.ok()) << digest.status().to_string();
    EXPECT_TRUE(rows_equal(*pool, to, 42, layer, {3, 40}));
    const auto own = wait_for(
        [&](Fabric::Done done) { fabric->digest(*plan_local({pool->parts(), to, 0}, layer, kAllHeads, {3, 40}), std::move(done)); });
    EXPECT_EQ(*own, *digest);
  }
  for (int fd : {ready[0], ready[1], bye[0], bye[1]}) close(fd);
}

TEST_F(ShmFabricTest, OpenSaysWhyNot) {
  auto pool = make_pool(1, 5);
  auto fabric = fabric_on(*pool);
  auto region = fabric->export_pool();
  EXPECT_TRUE(fabric->open(region).ok());
  region.parts.back().bytes += 1u << 20;
  EXPECT_EQ(fabric->open(region).status().code(), Code::kUnavailable);
  region = fabric->export_pool();
  region.parts.back().fd = 9999;
  const auto bad = fabric->open(region);
  EXPECT_NE(bad.status().message().find("one host"), std::string::npos) << bad.status().to_string();
}

// The descriptor is the peer's choice: what is no sealed memory of the size that was said is not mapped, and opening it waits for nobody.
TEST_F(ShmFabricTest, OpensOnlyMemoryThatStays) {
  auto pool = make_pool(1, 5);
  auto fabric = fabric_on(*pool);
  const auto why = [&](int fd) {
    auto region = fabric->export_pool();
    region.parts[0].fd = fd;
    return fabric->open(region).status().message();
  };
  const auto bytes = static_cast<off_t>(pool->parts()[0].bytes);
  const int memory = ::memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(::ftruncate(memory, bytes), 0);
  EXPECT_NE(why(memory).find("may shrink"), std::string::npos) << why(memory);
  ASSERT_EQ(::fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_EQ(why(memory), "");
  ::close(memory);

  char name[] = "/tmp/kv-file-XXXXXX";
  const int file = ::mkstemp(name);
  ASSERT_EQ(::ftruncate(file, bytes), 0);
  EXPECT_NE(why(file).find("may shrink"), std::string::npos) << "a file on a disk has no seals";
  ::close(file);
  ::unlink(name);

  char folder[] = "/tmp/kv-pipe-XXXXXX";
  ASSERT_NE(::mkdtemp(folder), nullptr);
  const std::string fifo = std::string(folder) + "/p";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  const int path_only = ::open(fifo.c_str(), O_PATH | O_CLOEXEC);  // /proc/<pid>/fd/N then opens the pipe anew: it has no writer
  EXPECT_NE(why(path_only).find("not a memory region"), std::string::npos) << why(path_only);
  ::close(path_only);
  ::unlink(fifo.c_str());
  ::rmdir(folder);
}

TEST_F(ShmFabricTest, RunsThatLeaveARegionAreRefused) {
  auto pool = make_pool(1, 5), source = make_pool(2, 5);
  auto fabric = fabric_on(*pool), other = fabric_on(*source);
  auto peer = fabric->open(other->export_pool()).value();
  const auto bytes = static_cast<std::int64_t>(std::min(pool->parts()[0].bytes, source->parts()[0].bytes));
  for (const ByteRun bad : {ByteRun{bytes * 8, 0, 64}, ByteRun{0, bytes * 8, 64}, ByteRun{-8, 0, 64}, ByteRun{0, -8, 64}, ByteRun{0, 0, 0},
                            ByteRun{0, 0, bytes * 8}, ByteRun{0, 1, std::numeric_limits<std::int64_t>::max() - 1}, ByteRun{0, 0, 64, 9, 0},
                            ByteRun{0, 0, 64, 0, -1}}) {
    CopyPlan copy;
    copy.runs = {bad};
    EXPECT_EQ(wait_for([&](Fabric::Done done) { fabric->fetch(peer, copy, std::move(done)); }).status().code(), Code::kDataLoss);
    copy.runs = {{0, 0, 64}};
    copy.replicas = {bad};
    EXPECT_EQ(wait_for([&](Fabric::Done done) { fabric->fetch(peer, copy, std::move(done)); }).status().code(), Code::kDataLoss);
  }
}

// With a copier for each rank a small job does not wait behind a large one.
TEST_F(ShmFabricTest, RanksCopySideBySide) {
  auto pool = make_pool(2, 5);
  ASSERT_EQ(pool->size(), 3u);
  auto fabric = fabric_on(*pool);
  const auto bytes = static_cast<std::int64_t>(pool->parts()[0].bytes);
  std::vector<std::string> order;
  const auto done = [&](const char* name) {
    return [&, name](Result<Digest> r) {
      EXPECT_TRUE(r.ok());
      order.emplace_back(name);
      if (order.size() == 2) loop_.stop();
    };
  };
  fabric->digest(std::vector<ByteRun>(static_cast<std::size_t>((std::int64_t{4} << 30) / bytes), {0, 0, bytes}), done("4 GiB"));
  fabric->digest({{0, 0, 64}}, done("64 bytes"));
  loop_.run();
  EXPECT_EQ(order, (std::vector<std::string>{"64 bytes", "4 GiB"}));
}

// Every job completes exactly once: run, cancelled or refused at the bound.
TEST_F(ShmFabricTest, CompletionsAlwaysCome) {
  auto pool = make_pool(1, 5);
  auto fabric = fabric_on(*pool, 16);
  int completions = 0, refused = 0;
  std::vector<Fabric::JobId> jobs;
  for (int i = 0; i < 100; ++i) {
    jobs.push_back(fabric->digest({{0, 0, 64}}, [&](Result<Digest> r) {
      refused += !r.ok() && r.status().code() == Code::kResourceExhausted;
      if (++completions == 100) loop_.stop();
    }));
  }
  for (auto j : jobs) fabric->cancel(j);
  loop_.run();
  EXPECT_EQ(completions, 100);
  EXPECT_GE(refused, 84);
}

TEST_F(ShmFabricTest, DestructionDropsCallbacks) {
  auto pool = make_pool(1, 5);
  auto fabric = fabric_on(*pool);
  for (int i = 0; i < 50; ++i) fabric->digest({{0, 0, 64}}, [](Result<Digest>) { ADD_FAILURE() << "called after the end"; });
  fabric.reset();
  loop_.post([this] { loop_.post([this] { loop_.stop(); }); });
  loop_.run();
}

}  // namespace
}  // namespace baton::transfer
