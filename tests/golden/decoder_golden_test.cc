// The decoder's logits: random models of every family in both containers against a numpy reference (tools/golden_decoder.py), the default
// model on the prompts of prompts.jsonl, teacher-forced, against transformers in float32 (tools/golden_transformers.py).

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "device/device.h"
#include "model/decoder.h"
#include "model/random_model.h"
#include "tests/golden/decoder_runner.h"
#include "tests/golden/golden.h"

namespace baton {
namespace {

using model::testing::RandomModel;
using nlohmann::json;

std::unique_ptr<device::Device> cpu() {
  device::DeviceOptions options;
  options.threads = 1;
  return must(device::open_device(options));
}

// How far logits are from a golden's most likely ones.
struct Difference {
  double worst = 0, squares = 0;
  std::int64_t values = 0, positions = 0, same_top = 0;

  void add(std::span<const float> logits, const json& ids, const json& golden) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const double d = std::abs(static_cast<double>(logits[ids[i].get<std::size_t>()]) - golden[i].get<double>());
      worst = std::max(worst, d);
      squares += d * d;
      ++values;
    }
    ++positions;
    same_top += std::max_element(logits.begin(), logits.end()) - logits.begin() == ids[0].get<std::int64_t>();
  }
  double rms() const { return std::sqrt(squares / static_cast<double>(std::max<std::int64_t>(values, 1))); }
  double agreement() const { return static_cast<double>(same_top) / static_cast<double>(std::max<std::int64_t>(positions, 1)); }
  std::string text() const {
    char line[160];
    std::snprintf(line, sizeof line, "%ld positions, top-1 equal at %.2f %%, logits differ by %.5f rms, %.5f at worst",
                  static_cast<long>(positions), 100 * agreement(), rms(), worst);
    return line;
  }
};

RandomModel random_model(const json& spec) {
  RandomModel m;
  m.family = spec["family"];
  m.layers = spec["layers"];
  m.hidden = spec["hidden"];
  m.ffn = spec["ffn"];
  m.heads = spec["heads"];
  m.kv_heads = spec["kv_heads"];
  m.head_dim = spec["head_dim"];
  m.vocab = spec["vocab"];
  m.context = spec["context"];
  m.tied = spec["tied"];
  m.seed = spec["seed"];
  m.format = spec["type"] == "Q8_0" ? device::WeightFormat::kQ8_0 : device::WeightFormat::kF32;
  if (spec.contains("rope_scaling")) {
    const json& s = spec["rope_scaling"];
    const bool linear = s["rope_type"] == "linear";
    m.rope_scaling.kind = linear ? model::RopeScaling::Kind::kLinear : model::RopeScaling::Kind::kLlama3;
    m.rope_scaling.factor = s["factor"];
    if (!linear) {
      m.rope_scaling.low_freq_factor = s["low_freq_factor"];
      m.rope_scaling.high_freq_factor = s["high_freq_factor"];
      m.rope_scaling.original_max_position = s["original_max_position_embeddings"];
    }
  }
  return m;
}

class RandomModels : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/golden_XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  // Each golden in each container that has its format.
  template <class Check>
  void for_each(Check&& check) {
    for (const json& golden : golden::read_json("decoder_random.json")) {
      const RandomModel m = random_model(golden["model"]);
      model::testing::write_gguf_model(m, dir_ + "/m.gguf");
      std::vector<std::string> paths = {dir_ + "/m.gguf"};
      if (m.format != device::WeightFormat::kQ8_0) {
        model::testing::write_huggingface_model(m, dir_ + "/folder");
        paths.push_back(dir_ + "/folder");
      }
      for (const std::string& path : paths) {
        SCOPED_TRACE(golden["name"].get<std::string>() + " in " + path);
        check(golden, *must(ModelFiles::open(path)));
      }
    }
  }

  Difference compare(const json& golden, const ModelFiles& files, ComputeType compute, DType kv, std::size_t chunk = 128) {
    const auto device = cpu();
    Runner runner(*device, files, compute, kv, 256);
    const auto ids = golden["ids"].get<std::vector<TokenId>>();
    const auto rows = golden["rows"].get<std::vector<std::size_t>>();
    Difference difference;
    runner.run(ids, 0, chunk, [&](std::size_t position, std::span<const float> logits) {
      const auto row = std::find(rows.begin(), rows.end(), position);
      if (row == rows.end()) return;
      const auto at = static_cast<std::size_t>(row - rows.begin());
      difference.add(logits, golden["top"][at], golden["logits"][at]);
    });
    EXPECT_EQ(difference.positions, static_cast<std::int64_t>(rows.size()));
    return difference;
  }

  std::string dir_;
};

// Logits spread by 3. Two to three layers of sums over at most 192 terms in f32, whose unit is 6e-8, stay within the goldens' five digits.
TEST_F(RandomModels, F32) {
  for_each([&](const json& golden, const ModelFiles& files) {
    const Difference d = compare(golden, files, ComputeType::kF32, DType::kF32);
    EXPECT_LT(d.worst, 3e-5) << d.text();
  });
}

// bf16 keeps 8 bits, so that each of some ten roundings in a row is off by about 2^-9 of values that spread by 3: 0.006 * sqrt(10) = 0.02
// rms.
TEST_F(RandomModels, Bf16) {
  for_each([&](const json& golden, const ModelFiles& files) {
    const Difference d = compare(golden, files, ComputeType::kBF16, DType::kBF16);
    EXPECT_LT(d.rms(), 0.05) << d.text();
  });
}

// int8 activations keep 7 bits of the largest of 32 values, which is about twice their spread: 0.05 rms by the same count.
TEST_F(RandomModels, Int8) {
  for_each([&](const json& golden, const ModelFiles& files) {
    const Difference d = compare(golden, files, ComputeType::kInt8, DType::kBF16);
    EXPECT_LT(d.rms(), 0.1) << d.text();
  });
}

TEST_F(RandomModels, LogitsDoNotDependOnChunks) {
  for_each([&](const json& golden, const ModelFiles& files) {
    const auto device = cpu();
    const auto ids = golden["ids"].get<std::vector<TokenId>>();
    for (const ComputeType compute : {ComputeType::kF32, ComputeType::kInt8}) {
      Runner runner(*device, files, compute, DType::kBF16, 256);
      std::vector<std::vector<float>> whole(ids.size());
      runner.run(ids, 0, 128, [&](std::size_t p, std::span<const float> logits) { whole[p].assign(logits.begin(), logits.end()); });
      for (const std::size_t chunk : {1u, 7u, 64u}) {
        runner.run(ids, 100, chunk, [&](std::size_t p, std::span<const float> logits) {
          EXPECT_TRUE(std::equal(logits.begin(), logits.end(), whole[p].begin())) << "chunks of " << chunk << ", position " << p;
        });
      }
    }
  });
}

// Every layer is reported once and in order, also by a step that wants no logits.
TEST_F(RandomModels, ReportsLayers) {
  for_each([&](const json& golden, const ModelFiles& files) {
    const auto device = cpu();
    Runner runner(*device, files, ComputeType::kF32, DType::kF32, 256);
    const auto ids = golden["ids"].get<std::vector<TokenId>>();
    std::vector<std::uint64_t> all(static_cast<std::size_t>(files.config().layers));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = i;
    for (const std::size_t first : {std::size_t{0}, ids.size()}) {
      runner.run(ids, first, 128, [](std::size_t, std::span<const float>) {});
      EXPECT_EQ(runner.log().layers, all);
    }
    EXPECT_GT(runner.decoder().weight_bytes(), 0u);
  });
}

TEST_F(RandomModels, ArenaIsExact) {
  for_each([&](const json&, const ModelFiles& files) {
    const auto device = cpu();
    DecoderOptions options;
    options.max_tokens = 8;
    options.max_logit_rows = 8;
    const auto decoder = must(Decoder::load(*device, files, options));
    device::KvSpec spec;
    spec.layers = decoder->config().layers;
    spec.kv_heads = decoder->config().kv_heads;
    spec.head_dim = decoder->config().head_dim;
    spec.block_tokens = device->info().kv_block_tokens;
    spec.blocks = 1;
    const auto pool = must(device->create_kv_pool(spec));
    const std::vector<std::int32_t> numbers = {0, 1, 2, 3, 4, 5, 6, 7}, q_start = {0, 8}, kv_len = {8}, table = {0};
    for (const std::size_t less : {std::size_t{0}, device::kScratchAlignment}) {
      device::ContextOptions arena;
      arena.arena_bytes = decoder->arena_bytes() - less;
      const auto context = must(device->create_context(arena));
      device::StepMeta meta;
      meta.token_ids = meta.positions = meta.slots = meta.logit_rows = numbers;
      meta.q_start = q_start;
      meta.kv_len = kv_len;
      meta.block_tables = table;
      meta.max_blocks = 1;
      ASSERT_TRUE(context->upload_step(meta).ok());
      const auto logits = decoder->forward(*context, meta, *pool, nullptr, nullptr);
      EXPECT_EQ(logits.ok(), less == 0) << logits.status().to_string();
      if (!logits.ok()) {
        EXPECT_EQ(logits.status().code(), Code::kResourceExhausted);
      }
    }
  });
}

// What each arithmetic and KV type costs on the real model: figures in the output (and in src/model/README.md).
struct Arithmetic {
  ComputeType compute;
  DType kv;
  double agreement_min;  // of the most likely token; what is measured, less a few near-ties
  double rms_max;
};
class DefaultModel : public ::testing::TestWithParam<Arithmetic> {
 protected:
  void SetUp() override { BATON_SKIP_WITHOUT_MODEL(golden::default_model()); }
};
INSTANTIATE_TEST_SUITE_P(
    , DefaultModel,
    ::testing::Values(Arithmetic{ComputeType::kF32, DType::kF32, 0.999, 0.001}, Arithmetic{ComputeType::kF32, DType::kBF16, 0.99, 0.06},
                      Arithmetic{ComputeType::kBF16, DType::kBF16, 0.985, 0.09}, Arithmetic{ComputeType::kInt8, DType::kBF16, 0.97, 0.25}),
    [](const auto& i) { return std::string(device::to_string(i.param.compute)) + "_kv_" + std::string(device::to_string(i.param.kv)); });

TEST_P(DefaultModel, AgreesWithTransformers) {
  const Arithmetic& a = GetParam();
  const auto device = cpu();
  const auto files = must(ModelFiles::open(golden::default_model_path()));
  Runner runner(*device, *files, a.compute, a.kv, 2048);
  Difference all;
  const json goldens = golden::read_json("decoder_smollm2.json");
  ASSERT_EQ(goldens.size(), 50u);
  for (const json& g : goldens) {
    const auto ids = g["ids"].get<std::vector<TokenId>>();
    const auto first = g["first"].get<std::size_t>();
    runner.run(ids, first, 128, [&](std::size_t position, std::span<const float> logits) {
      all.add(logits, g["top"][position - first], g["logits"][position - first]);
    });
  }
  std::printf("%s, KV %s: %s\n", std::string(device::to_string(a.compute)).c_str(), std::string(device::to_string(a.kv)).c_str(),
              all.text().c_str());
  EXPECT_EQ(all.positions, 3200);
  EXPECT_GE(all.agreement(), a.agreement_min);
  EXPECT_LT(all.rms(), a.rms_max);
}

}  // namespace
}  // namespace baton
