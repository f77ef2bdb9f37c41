#include "model/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "model/contents.h"
#include "model/gguf_bytes.h"
#include "model/mapped_file.h"
#include "model/random_model.h"

namespace baton::model {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::GgufBytes;
using ::testing::HasSubstr;
using testing::RandomModel;
using testing::write_file;

class ModelFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/model_XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::string path(const std::string& name) const { return dir_ + "/" + name; }
  std::unique_ptr<ModelFiles> must_open(const std::string& name) {
    auto files = ModelFiles::open(path(name));
    BATON_CHECK_MSG(files.ok(), files.status().to_string());
    return std::move(files).value();
  }
  std::string refusal(const std::string& name) {
    const auto files = ModelFiles::open(path(name));
    EXPECT_FALSE(files.ok()) << name;
    return files.ok() ? "" : files.status().message();
  }
  // The folder's config.json with one field changed.
  void set_config(const std::string& folder, const std::string& field, const json& value) {
    const std::string file = path(folder) + "/config.json";
    json config = json::parse(read_text_file(file).value());
    config[field] = value;
    write_file(file, config.dump());
  }

  std::string dir_;
};

// A matrix's rows as the decoder takes them.
std::vector<float> dense(const device::HostWeight& w) {
  std::vector<float> stored(static_cast<std::size_t>(w.rows * w.cols));
  device::dequantize(w.format, w.data, w.rows * w.cols, stored.data());
  if (w.row_map.empty()) return stored;
  std::vector<float> out;
  for (const std::int32_t row : w.row_map) {
    out.insert(out.end(), stored.begin() + row * w.cols, stored.begin() + (row + 1) * w.cols);
  }
  return out;
}

// Both containers give the same model, with GGUF's order of Llama's Q and K undone; and that model is what was drawn.
TEST_F(ModelFilesTest, ContainersAgree) {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    for (const bool tied : {false, true}) {
      SCOPED_TRACE(std::string(family) + (tied ? " tied" : ""));
      RandomModel m;
      m.family = family;
      m.tied = tied;
      testing::write_gguf_model(m, path("m.gguf"));
      testing::write_huggingface_model(m, path("folder"));
      testing::write_huggingface_model(m, path("sharded"), 3);
      const auto gguf = must_open("m.gguf"), folder = must_open("folder"), sharded = must_open("sharded");
      EXPECT_EQ(folder->digest(), sharded->digest());
      EXPECT_EQ(gguf->config().tied_embeddings, tied);
      EXPECT_EQ(gguf->dominant_format(), device::WeightFormat::kF32);
      EXPECT_EQ(gguf->weight_bytes(), folder->weight_bytes());
      for (const WantedTensor& w : wanted_tensors(gguf->config())) {
        for (const auto* other : {&folder, &sharded}) {
          if (w.cols == 0) {
            EXPECT_EQ(gguf->vector(w.canonical).value(), (*other)->vector(w.canonical).value()) << w.canonical;
          } else {
            EXPECT_EQ(dense(gguf->weight(w.canonical).value()), dense((*other)->weight(w.canonical).value())) << w.canonical;
          }
        }
      }
      const auto drawn = testing::random_values(m.seed, "layer.1.k", 2 * 16 * 64);
      const auto read = dense(gguf->weight("layer.1.k").value());
      for (std::size_t i = 0; i < drawn.size(); ++i) ASSERT_FLOAT_EQ(read[i], drawn[i] * static_cast<float>(std::sqrt(3.0 / 64)));
      EXPECT_EQ(gguf->weight("head").value().data == gguf->weight("embed").value().data, tied);
    }
  }
}

TEST_F(ModelFilesTest, FormatsSurvive) {
  RandomModel m;
  m.format = device::WeightFormat::kBF16;
  testing::write_huggingface_model(m, path("bf16"));
  EXPECT_EQ(must_open("bf16")->dominant_format(), device::WeightFormat::kBF16);
  m.format = device::WeightFormat::kQ8_0;
  testing::write_gguf_model(m, path("q8.gguf"));
  const auto q8 = must_open("q8.gguf"), bf16 = must_open("bf16");
  EXPECT_EQ(q8->dominant_format(), device::WeightFormat::kQ8_0);
  EXPECT_NE(q8->digest(), bf16->digest());
  const auto a = dense(q8->weight("layer.0.q").value()), b = dense(bf16->weight("layer.0.q").value());
  for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 0.005);
}

TEST_F(ModelFilesTest, DigestSeesConfigAndContents) {
  RandomModel m;
  testing::write_huggingface_model(m, path("a"));
  const std::string digest = must_open("a")->digest();
  EXPECT_EQ(must_open("a")->digest(), digest);
  set_config("a", "rope_theta", 20000.0);
  EXPECT_NE(must_open("a")->digest(), digest);
  m.seed = 1;
  testing::write_huggingface_model(m, path("b"));
  EXPECT_NE(must_open("b")->digest(), digest);
}

TEST_F(ModelFilesTest, FindsTheModelInAFolder) {
  EXPECT_THAT(refusal("absent"), HasSubstr("no such file or folder"));
  std::filesystem::create_directories(path("folder"));
  EXPECT_THAT(refusal("folder"), HasSubstr("neither config.json nor a .gguf file"));
  testing::write_gguf_model({}, path("folder/a.gguf"));
  EXPECT_EQ(must_open("folder")->path(), path("folder/a.gguf"));
  testing::write_gguf_model({}, path("folder/b.gguf"));
  EXPECT_THAT(refusal("folder"), HasSubstr("several models (a.gguf, b.gguf)"));
  write_file(path("empty.gguf"), "");
  EXPECT_THAT(refusal("empty.gguf"), AllOf(HasSubstr("empty.gguf"), HasSubstr("magic")));
}

TEST_F(ModelFilesTest, TensorsMustFitTheConfig) {
  testing::write_huggingface_model({}, path("m"));
  set_config("m", "num_hidden_layers", 3);
  EXPECT_THAT(refusal("m"), HasSubstr("tensor \"model.layers.2.input_layernorm.weight\" is missing"));
  set_config("m", "num_hidden_layers", 2);
  set_config("m", "intermediate_size", 100);
  EXPECT_THAT(refusal("m"),
              AllOf(HasSubstr("model.layers.0.mlp.gate_proj.weight"), HasSubstr("shape [96, 64]; the config makes it [100, 64]")));
  set_config("m", "intermediate_size", 96);
  set_config("m", "num_key_value_heads", 3);
  EXPECT_THAT(refusal("m"), HasSubstr("key-value heads is 3"));
  set_config("m", "num_key_value_heads", 2);
  EXPECT_EQ(must_open("m")->weight("nonsense").status().code(), Code::kNotFound);
  EXPECT_FALSE(must_open("m")->weight("norm").ok());
  EXPECT_FALSE(must_open("m")->vector("embed").ok());
}

TEST_F(ModelFilesTest, HeadlessModelsAreTied) {
  RandomModel m;
  m.tied = true;
  testing::write_huggingface_model(m, path("m"));
  set_config("m", "tie_word_embeddings", false);
  EXPECT_TRUE(must_open("m")->config().tied_embeddings);
}

// Safetensors whose header does not match its file.
TEST_F(ModelFilesTest, LyingSafetensors) {
  testing::write_huggingface_model({}, path("m"));
  const std::string file = path("m/model.safetensors"), good = read_text_file(file).value();
  std::uint64_t header = 0;
  std::memcpy(&header, good.data(), 8);
  const auto refused = [&](const std::string& bytes) {
    write_file(file, bytes);
    const std::string message = refusal("m");
    EXPECT_THAT(message, HasSubstr(file));
    return message;
  };
  const auto with_length = [&](std::uint64_t length) {
    std::string bytes = good;
    std::memcpy(bytes.data(), &length, 8);
    return bytes;
  };
  const auto with_header = [&](const json& replaced) {
    const std::string text = replaced.dump();
    const std::uint64_t length = text.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + text + good.substr(8 + header);
  };
  EXPECT_THAT(refused(with_length(~0ull)), HasSubstr("header"));
  EXPECT_THAT(refused(with_length(good.size())), HasSubstr("header"));
  EXPECT_THAT(refused(with_length(header - 1)), HasSubstr("header"));
  refused(good.substr(0, 4));
  refused(good.substr(0, good.size() - 1));
  refused(good + "x");
  const json original = json::parse(good.substr(8, header));
  const char* name = "model.norm.weight";
  json bad = original;
  bad[name]["shape"] = {65};
  refused(with_header(bad));
  bad = original;
  bad[name]["data_offsets"] = {0, 256};  // overlaps
  refused(with_header(bad));
  bad = original;
  bad[name]["shape"] = {1ull << 40, 1ull << 40};
  refused(with_header(bad));
  bad = original;
  bad[name]["dtype"] = "F99";
  refused(with_header(bad));
  bad = original;
  bad.erase(name);  // its bytes are now nobody's
  refused(with_header(bad));
  write_file(file, good);
  EXPECT_TRUE(ModelFiles::open(path("m")).ok());
}

TEST_F(ModelFilesTest, UnsupportedSafetensorsType) {
  testing::write_huggingface_model({}, path("m"));
  const std::string file = path("m/model.safetensors");
  std::string bytes = read_text_file(file).value();
  const std::size_t at = bytes.find("F32", bytes.find("model.norm.weight"));
  bytes.replace(at, 3, "I32");
  write_file(file, bytes);
  EXPECT_THAT(refusal("m"), HasSubstr("tensor \"model.norm.weight\" is of type I32; supported are F32, F16, BF16"));
}

TEST_F(ModelFilesTest, WrongShardIndex) {
  testing::write_huggingface_model({}, path("m"), 2);
  const std::string file = path("m/model.safetensors.index.json");
  const json good = json::parse(read_text_file(file).value());
  const auto refused = [&](const json& index) {
    write_file(file, index.dump());
    return refusal("m");
  };
  EXPECT_THAT(refused(json::object()), AllOf(HasSubstr(file), HasSubstr("weight_map")));
  json bad = good;
  bad["weight_map"]["lm_head.weight"] = "../../etc/passwd";
  EXPECT_THAT(refused(bad), HasSubstr("not a .safetensors file of this folder"));
  bad["weight_map"]["lm_head.weight"] = 7;
  EXPECT_THAT(refused(bad), HasSubstr("weight_map"));
  bad = good;
  bad["weight_map"]["ghost"] = "model-1-of-2.safetensors";
  EXPECT_THAT(refused(bad), HasSubstr("\"weight_map.ghost\" names model-1-of-2.safetensors, which does not have that tensor"));
  bad = good;
  bad["weight_map"]["lm_head.weight"] = "model-9-of-9.safetensors";
  EXPECT_THAT(refused(bad), HasSubstr("model-9-of-9.safetensors"));
  std::filesystem::copy_file(path("m/model-1-of-2.safetensors"), path("m/model-9-of-9.safetensors"));
  EXPECT_THAT(refused(bad), HasSubstr("is in another shard as well"));
  std::filesystem::remove(file);
  EXPECT_THAT(refusal("m"), HasSubstr("neither model.safetensors nor model.safetensors.index.json"));
}

// The keys of Llama, as converters write them.
GgufBytes gguf_keys(const std::string& arch = "llama") {
  GgufBytes g;
  g.str("general.architecture", arch).u32(arch + ".block_count", 1).u32(arch + ".context_length", 128);
  g.u32(arch + ".embedding_length", 64).u32(arch + ".feed_forward_length", 96).u32(arch + ".attention.head_count", 4);
  g.u32(arch + ".attention.head_count_kv", 2).f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f);
  g.f32s("token_embd.weight", {3, 64}, std::vector<float>(3 * 64));
  return g;
}

class GgufConfigTest : public ModelFilesTest {
 protected:
  Result<ModelConfig> read(const GgufBytes& g) {
    write_file(path("m.gguf"), g.bytes());
    file_ = GgufFile::open(path("m.gguf")).value();
    return config_from_gguf(*file_);
  }
  std::shared_ptr<GgufFile> file_;
};

TEST_F(GgufConfigTest, DerivesWhatIsAbsent) {
  const auto c = read(gguf_keys());
  ASSERT_TRUE(c.ok()) << c.status().to_string();
  EXPECT_EQ(c->head_dim, 16);
  EXPECT_EQ(c->vocab, 3);
  EXPECT_EQ(c->rope_theta, 10000.0);
  EXPECT_TRUE(c->tied_embeddings);
  EXPECT_EQ(c->norm_eps, 1e-5f);
  EXPECT_TRUE(c->validate().ok());
}

TEST_F(GgufConfigTest, RopeScaling) {
  auto g = gguf_keys();
  g.str("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4).u32("llama.rope.scaling.original_context_length", 64);
  auto c = read(g);
  ASSERT_TRUE(c.ok()) << c.status().to_string();
  EXPECT_EQ(c->rope_scaling.kind, RopeScaling::Kind::kYarn);
  EXPECT_EQ(c->rope_scaling.original_max_position, 64);
  EXPECT_EQ(c->max_positions, 256);
  c = read(gguf_keys().f32s("rope_freqs.weight", {8}, {1, 1, 2, 2, 4, 4, 8, 8}));
  ASSERT_TRUE(c.ok()) << c.status().to_string();
  EXPECT_THAT(c->rope_scaling.frequency_factors, ElementsAre(1, 1, 2, 2, 4, 4, 8, 8));
}

TEST_F(GgufConfigTest, Refuses) {
  const auto refused = [&](const GgufBytes& g) {
    const auto c = read(g);
    EXPECT_FALSE(c.ok());
    EXPECT_THAT(c.status().message(), HasSubstr(path("m.gguf")));
    return c.status().message();
  };
  EXPECT_THAT(refused(GgufBytes()), HasSubstr("\"general.architecture\" is missing"));
  EXPECT_THAT(refused(gguf_keys("gemma3")), HasSubstr("\"general.architecture\" is \"gemma3\"; supported: llama, qwen2, qwen3"));
  EXPECT_THAT(refused(GgufBytes().str("general.architecture", "llama")), HasSubstr("\"llama.block_count\" is missing"));
  EXPECT_THAT(refused(gguf_keys().str("llama.rope.scaling.type", "longrope")), HasSubstr("is \"longrope\"; supported: none, linear, yarn"));
  EXPECT_THAT(refused(gguf_keys().u32("llama.rope.dimension_count", 8)), HasSubstr("supported: the head dimension, 16"));
  EXPECT_THAT(refused(gguf_keys().u32("llama.expert_count", 8)), HasSubstr("\"llama.expert_count\" is 8; supported: 0"));
  EXPECT_THAT(refused(gguf_keys().u32("llama.attention.sliding_window", 64)), HasSubstr("full attention"));
  EXPECT_THAT(refused(gguf_keys().u32("llama.attention.key_length", 0xffffffff)), HasSubstr("0 to 2147483647"));
  EXPECT_THAT(refused(gguf_keys().f32s("blk.0.attn_output.bias", {64}, std::vector<float>(64))), HasSubstr("not supported"));
}

TEST_F(GgufConfigTest, GenerationDefaults) {
  auto g = gguf_keys();
  g.f32("general.sampling.temp", 0.6f).u32("general.sampling.top_k", 20).f32("general.sampling.top_p", 0.95f);
  g.u32("tokenizer.ggml.eos_token_id", 2).u32("tokenizer.ggml.eot_token_id", 5).u32("tokenizer.ggml.eom_token_id", 2);
  ASSERT_TRUE(read(g).ok());
  const auto d = generation_from_gguf(*file_);
  EXPECT_EQ(d.temperature, 0.6f);
  EXPECT_EQ(d.top_k, 20);
  EXPECT_EQ(d.top_p, 0.95f);
  EXPECT_EQ(d.min_p, std::nullopt);
  EXPECT_THAT(d.eos_ids, ElementsAre(2, 5));
}

TEST_F(ModelFilesTest, TextOfAFolder) {
  std::filesystem::create_directories(path("t"));
  EXPECT_THAT(text_from_folder(path("t")).status().message(), HasSubstr("t/tokenizer.json"));
  write_file(path("t/tokenizer.json"), "{}");
  auto text = text_from_folder(path("t"));
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(text->chat_template, "");
  write_file(path("t/tokenizer_config.json"),
             R"({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "add_bos_token": true, "chat_template": "one"})");
  text = text_from_folder(path("t"));
  ASSERT_TRUE(text.ok()) << text.status().to_string();
  EXPECT_EQ(text->bos_token, "<s>");
  EXPECT_EQ(text->eos_token, "</s>");
  EXPECT_TRUE(text->add_bos);
  EXPECT_EQ(text->chat_template, "one");
  write_file(path("t/tokenizer_config.json"),
             R"({"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]})");
  EXPECT_EQ(text_from_folder(path("t"))->chat_template, "two");
  write_file(path("t/chat_template.jinja"), "three");
  EXPECT_EQ(text_from_folder(path("t"))->chat_template, "three");
  write_file(path("t/tokenizer_config.json"), R"({"chat_template": [{"name": "tool_use", "template": "x"}]})");
  EXPECT_THAT(text_from_folder(path("t")).status().message(), HasSubstr("a template named \"default\""));
  write_file(path("t/tokenizer_config.json"), R"({"bos_token": 1})");
  EXPECT_THAT(text_from_folder(path("t")).status().message(), HasSubstr("\"bos_token\" is 1"));
}

TEST_F(GgufConfigTest, Text) {
  ASSERT_TRUE(read(gguf_keys()).ok());
  EXPECT_THAT(text_from_gguf(*file_).status().message(), HasSubstr("\"tokenizer.ggml.model\" is missing"));
  auto g = gguf_keys();
  g.str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "smollm").strs("tokenizer.ggml.tokens", {"<s>", "</s>", "a"});
  g.i32s("tokenizer.ggml.token_type", {3, 3, 1}).strs("tokenizer.ggml.merges", {}).u32("tokenizer.ggml.bos_token_id", 0);
  g.u32("tokenizer.ggml.eos_token_id", 1).flag("tokenizer.ggml.add_bos_token", true).str("tokenizer.chat_template", "{{ x }}");
  ASSERT_TRUE(read(g).ok());
  const auto text = text_from_gguf(*file_);
  ASSERT_TRUE(text.ok()) << text.status().to_string();
  EXPECT_EQ(text->bos_token, "<s>");
  EXPECT_EQ(text->eos_token, "</s>");
  EXPECT_TRUE(text->add_bos);
  EXPECT_EQ(text->chat_template, "{{ x }}");
  EXPECT_THAT(text->tokenizer_json, HasSubstr("\"</s>\""));
}

}  // namespace
}  // namespace baton::model
