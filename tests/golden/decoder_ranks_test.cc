// A model cut over several ranks computes what the whole one does: logits within a tolerance (sums are made in another order), the KV of each
// head on the ranks that hold it, and the same bits each time.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>

#include "device/gloo/test_nodes.h"
#include "device/node_group.h"
#include "model/random_model.h"
#include "tests/golden/decoder_runner.h"

namespace baton {
namespace {

using model::testing::RandomModel;

constexpr std::int64_t kPositions = 96;

class Ranks : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  struct Outcome {
    std::map<std::size_t, std::vector<float>> logits;  // by position
    std::vector<std::vector<float>> keys;              // by layer and head of the whole model: one value a token
    std::vector<std::uint64_t> layers_of_last_step;    // as rank 0 told of them
    bool operator==(const Outcome& o) const { return logits == o.logits && keys == o.keys; }
  };

  std::unique_ptr<ModelFiles> make(const RandomModel& m) {
    const std::string path = (folder_ / "model.gguf").string();
    model::testing::write_gguf_model(m, path);
    return must(ModelFiles::open(path));
  }

  // The devices of `ranks` ranks, on as many threads that stand for hosts.
  static std::vector<std::unique_ptr<device::Device>> open(int ranks, int hosts) {
    std::vector<device::DeviceOptions> options(static_cast<std::size_t>(ranks / hosts));
    for (auto& o : options) o.threads = 1;
    if (hosts == 1) return must(device::open_devices(options, std::chrono::seconds(60)));
    std::vector<std::unique_ptr<device::Device>> devices(static_cast<std::size_t>(ranks));
    device::gloo::testing::with_links(hosts, {.deadline = std::chrono::seconds(60)}, [&](std::unique_ptr<device::NodeLinks> links) {
      const auto nodes = std::make_shared<device::NodeGroup>(std::move(links));
      auto own = must(device::open_devices(options, std::chrono::seconds(120), nodes));
      std::ranges::move(own, devices.begin() + nodes->node() * std::ssize(own));
    });
    return devices;
  }

  static Outcome run(const ModelFiles& files, int ranks, ComputeType compute, std::size_t chunk, int hosts = 1) {
    const auto devices = open(ranks, hosts);
    std::vector<TokenId> ids;
    for (std::int32_t i = 0; i < kPositions; ++i) ids.push_back(i * 7 % files.config().vocab);
    Outcome out;
    out.keys.resize(static_cast<std::size_t>(files.config().layers * files.config().kv_heads));
    std::mutex mutex;
    {
      std::vector<std::jthread> threads;
      for (int r = 0; r < ranks; ++r) {
        threads.emplace_back([&, r] {
          Runner runner(*devices[static_cast<std::size_t>(r)], files, compute, DType::kF32, kPositions, Rank(r), ranks);
          runner.run(ids, kPositions - 40, chunk,
                     [&](std::size_t position, std::span<const float> logits) { out.logits[position].assign(logits.begin(), logits.end()); });
          const std::lock_guard lock(mutex);
          if (r == 0) out.layers_of_last_step = runner.log().layers;
          collect_keys(runner, out);
        });
      }
    }
    return out;
  }

  // The first value of each key; a head that several ranks hold must be the same on all.
  static void collect_keys(const Runner& runner, Outcome& out) {
    const device::KvView& view = runner.pool().view();
    const std::byte* base = runner.pool().shared_region()->base;
    const model::Extent held = runner.decoder().shard().kv_heads;
    for (int layer = 0; layer < view.spec.layers; ++layer) {
      for (int head = 0; head < held.size(); ++head) {
        std::vector<float> keys;
        for (std::int64_t t = 0; t < kPositions; ++t) {
          const BlockId block(runner.table()[static_cast<std::size_t>(t / view.spec.block_tokens)]);
          float value = 0;
          std::memcpy(&value, base + view.offset(layer, block, head, device::KvKind::kKey, static_cast<int>(t % view.spec.block_tokens)),
                      sizeof value);
          keys.push_back(value);
        }
        auto& all = out.keys[static_cast<std::size_t>(layer * runner.decoder().config().kv_heads + held.begin + head)];
        EXPECT_TRUE(all.empty() || all == keys) << "two ranks hold different copies of one head";
        all = std::move(keys);
      }
    }
  }

  static void expect_near(const Outcome& whole, const Outcome& cut, double tolerance) {
    ASSERT_EQ(whole.logits.size(), cut.logits.size());
    double worst = 0;
    for (const auto& [position, logits] : whole.logits) {
      const auto& other = cut.logits.at(position);
      ASSERT_EQ(other.size(), logits.size());
      for (std::size_t i = 0; i < logits.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(logits[i]) - other[i]));
    }
    EXPECT_LT(worst, tolerance);
    for (std::size_t h = 0; h < whole.keys.size(); ++h) {
      ASSERT_EQ(whole.keys[h].size(), cut.keys[h].size()) << "head " << h << " is nowhere";
      for (std::size_t t = 0; t < whole.keys[h].size(); ++t) ASSERT_NEAR(whole.keys[h][t], cut.keys[h][t], tolerance) << h << ", " << t;
    }
  }

  const std::filesystem::path folder_ = std::filesystem::temp_directory_path() / ("baton-ranks-" + std::to_string(getpid()));
};

TEST_F(Ranks, ComputeWhatOneDoes) {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    RandomModel m;
    m.family = family;
    m.heads = 9, m.kv_heads = 3, m.hidden = 96, m.ffn = 192, m.head_dim = 32, m.vocab = 150;
    m.tied = m.family == "llama";
    const auto files = make(m);
    const Outcome whole = run(*files, 1, ComputeType::kF32, 32);
    for (int ranks = 2; ranks <= 5; ++ranks) {
      SCOPED_TRACE(std::string(family) + " over " + std::to_string(ranks));
      const Outcome cut = run(*files, ranks, ComputeType::kF32, 32);
      expect_near(whole, cut, 1e-4);
      EXPECT_EQ(cut.layers_of_last_step, (std::vector<std::uint64_t>{0, 1}));
      EXPECT_TRUE(cut == run(*files, ranks, ComputeType::kF32, 32)) << "the same bits each time";
      EXPECT_TRUE(cut == run(*files, ranks, ComputeType::kF32, 5)) << "and whatever the chunks";
    }
  }
}

TEST_F(Ranks, OverSeveralHostsToo) {
  RandomModel m;
  m.heads = 9, m.kv_heads = 3, m.hidden = 96, m.ffn = 192, m.head_dim = 32, m.vocab = 150;
  const auto files = make(m);
  const Outcome whole = run(*files, 1, ComputeType::kF32, 32);
  for (const auto& [ranks, hosts] : {std::pair(2, 2), std::pair(4, 2), std::pair(3, 3)}) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks on " << hosts << " hosts");
    const Outcome cut = run(*files, ranks, ComputeType::kF32, 32, hosts);
    expect_near(whole, cut, 1e-4);
    EXPECT_EQ(cut.layers_of_last_step, (std::vector<std::uint64_t>{0, 1}));
    EXPECT_TRUE(cut == run(*files, ranks, ComputeType::kF32, 32, hosts)) << "the same bits each time";
    EXPECT_TRUE(cut == run(*files, ranks, ComputeType::kF32, 5, hosts)) << "and whatever the chunks";
    if (ranks == hosts) {
      EXPECT_TRUE(cut == run(*files, ranks, ComputeType::kF32, 32)) << "one rank a host sums as ranks of one host do";
    }
  }
}

TEST_F(Ranks, QuantisedMatricesAreCutAtTheirBlocks) {
  RandomModel m;
  m.heads = 4, m.kv_heads = 2, m.hidden = 128, m.ffn = 160, m.head_dim = 32, m.format = device::WeightFormat::kQ8_0;
  const auto files = make(m);
  const Outcome whole = run(*files, 1, ComputeType::kInt8, 32);
  for (const int ranks : {2, 3, 4}) {
    SCOPED_TRACE(ranks);
    expect_near(whole, run(*files, ranks, ComputeType::kInt8, 32), 0.15);  // activations are rounded to 8 bits in every layer
  }
  EXPECT_FALSE(model::shard_plan(*files, 5).ok()) << "four query heads";
}

}  // namespace
}  // namespace baton
