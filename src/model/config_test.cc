#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "model/contents.h"

namespace baton::model {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Llama-3.2-1B's published config.
json llama3_config() {
  return json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
    "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
                     "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 128256})");
}
// DeepSeek-R1-Distill-Qwen-32B's.
json qwen2_config() {
  return json::parse(R"({
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 27648, "max_position_embeddings": 131072, "max_window_layers": 64,
    "model_type": "qwen2", "num_attention_heads": 40, "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "use_sliding_window": false, "vocab_size": 152064})");
}
// Qwen3-0.6B's.
json qwen3_config() {
  return json::parse(R"({
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null,
    "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936})");
}

Result<ModelConfig> read(const json& config) { return config_from_json("m/config.json", config.dump()); }
ModelConfig must_read(const json& config) {
  auto result = read(config);
  BATON_CHECK_MSG(result.ok(), result.status().to_string());
  return *result;
}

TEST(ConfigJson, Llama3) {
  const ModelConfig c = must_read(llama3_config());
  EXPECT_EQ(c.architecture, "llama");
  EXPECT_EQ(c.layers, 16);
  EXPECT_EQ(c.hidden, 2048);
  EXPECT_EQ(c.ffn, 8192);
  EXPECT_EQ(c.heads, 32);
  EXPECT_EQ(c.kv_heads, 8);
  EXPECT_EQ(c.head_dim, 64);
  EXPECT_EQ(c.vocab, 128256);
  EXPECT_EQ(c.max_positions, 131072);
  EXPECT_EQ(c.rope_theta, 500000.0);
  EXPECT_EQ(c.norm_eps, 1e-5f);
  EXPECT_TRUE(c.tied_embeddings);
  EXPECT_FALSE(c.qkv_bias);
  EXPECT_FALSE(c.qk_norm);
  EXPECT_TRUE(c.validate().ok());
  EXPECT_EQ(c.linear_weights(), 16 * (2048LL * (2048 + 1024) + 2048LL * 2048 + 3LL * 2048 * 8192));
}

TEST(ConfigJson, Qwen2) {
  const ModelConfig c = must_read(qwen2_config());
  EXPECT_EQ(c.architecture, "qwen2");
  EXPECT_EQ(c.head_dim, 128);  // derived
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_FALSE(c.qk_norm);
  EXPECT_FALSE(c.tied_embeddings);
  EXPECT_EQ(c.rope_scaling.kind, RopeScaling::Kind::kNone);
  EXPECT_TRUE(c.validate().ok());
}

TEST(ConfigJson, Qwen3) {
  const ModelConfig c = must_read(qwen3_config());
  EXPECT_EQ(c.architecture, "qwen3");
  EXPECT_EQ(c.head_dim, 128);  // given, and not hidden / heads
  EXPECT_TRUE(c.qk_norm);
  EXPECT_FALSE(c.qkv_bias);
  EXPECT_TRUE(c.validate().ok());
}

TEST(ConfigJson, MistralIsLlamaUnlessItHasAWindow) {
  json config = llama3_config();
  config["architectures"] = {"MistralForCausalLM"};
  config["rope_scaling"] = nullptr;
  config["sliding_window"] = nullptr;
  EXPECT_EQ(must_read(config).architecture, "llama");
  config["sliding_window"] = 4096;
  EXPECT_THAT(read(config).status().message(), AllOf(HasSubstr("\"sliding_window\" is 4096"), HasSubstr("full attention")));
}

TEST(ConfigJson, RopeParametersOfTransformers5) {
  json config = llama3_config();
  config.erase("rope_theta");
  config["rope_parameters"] = config["rope_scaling"];
  config["rope_parameters"]["rope_theta"] = 500000.0;
  config.erase("rope_scaling");
  EXPECT_EQ(must_read(config).inverse_frequencies(), must_read(llama3_config()).inverse_frequencies());
}

// Each row changes one field of a good config; the error must name file and field, and say what is supported.
TEST(ConfigJson, RefusesWhatItCannotCompute) {
  const struct {
    json config;
    std::string field;
    json value;
    std::string message;
  } rows[] = {
      {llama3_config(), "architectures", json::array({"GemmaForCausalLM"}), "LlamaForCausalLM, MistralForCausalLM"},
      {llama3_config(), "architectures", "LlamaForCausalLM", "LlamaForCausalLM, MistralForCausalLM"},
      {llama3_config(), "architectures", nullptr, "\"architectures\" is missing"},
      {llama3_config(), "hidden_size", nullptr, "\"hidden_size\" is missing"},
      {llama3_config(), "hidden_size", "2048", "\"hidden_size\" is \"2048\"; supported: an integer"},
      {llama3_config(), "hidden_size", -1, "an integer from 0"},
      {llama3_config(), "hidden_size", 1e300, "an integer from 0"},
      {llama3_config(), "hidden_size", 1ull << 63, "an integer from 0"},
      {llama3_config(), "num_attention_heads", 0, "\"num_attention_heads\" is 0"},
      {llama3_config(), "hidden_act", "gelu", "\"hidden_act\" is \"gelu\"; supported: \"silu\""},
      {llama3_config(), "attention_bias", true, "\"attention_bias\" is true; supported: false"},
      {qwen3_config(), "attention_bias", true, "\"attention_bias\" is true; supported: false"},
      {llama3_config(), "mlp_bias", true, "\"mlp_bias\""},
      {llama3_config(), "partial_rotary_factor", 0.5, "\"partial_rotary_factor\""},
      {llama3_config(), "quantization_config", json{{"quant_method", "awq"}}, "\"quantization_config\""},
      {llama3_config(), "tie_word_embeddings", 1, "supported: true or false"},
      {qwen2_config(), "use_sliding_window", true, ""},  // as wide as the context: nothing is cut off
      {llama3_config(), "rope_scaling", json{{"rope_type", "dynamic"}, {"factor", 2}}, "\"rope_scaling.rope_type\" is \"dynamic\""},
      {llama3_config(), "rope_scaling", json{{"type", "longrope"}}, "\"rope_scaling.type\" is \"longrope\"; supported: default, linear"},
      {llama3_config(), "rope_scaling", json{{"rope_type", "llama3"}, {"factor", 8}}, "\"rope_scaling.low_freq_factor\" is missing"},
      {llama3_config(), "rope_scaling", json{{"type", "linear"}}, "\"rope_scaling.factor\" is missing"},
      {llama3_config(), "rope_scaling", "yarn", "\"rope_scaling\" is \"yarn\"; supported: an object"},
  };
  for (const auto& row : rows) {
    json config = row.config;
    config[row.field] = row.value;
    SCOPED_TRACE(row.field + " " + row.value.dump());
    const auto result = read(config);
    if (row.message.empty()) {
      EXPECT_TRUE(result.ok()) << result.status().to_string();
      continue;
    }
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(result.status().message(), AllOf(HasSubstr("m/config.json"), HasSubstr(row.message)));
  }
  EXPECT_THAT(config_from_json("m/config.json", "{\"a\": ").status().message(), HasSubstr("not valid JSON"));
  EXPECT_THAT(config_from_json("m/config.json", "[]").status().message(), HasSubstr("a JSON object is wanted"));
  json windowed = qwen2_config();
  windowed["use_sliding_window"] = true;
  windowed["sliding_window"] = 4096;
  EXPECT_THAT(read(windowed).status().message(), HasSubstr("\"sliding_window\""));
}

TEST(ConfigValidate, NamesTheField) {
  const ModelConfig good = must_read(llama3_config());
  const struct {
    std::function<void(ModelConfig&)> spoil;
    std::string message;
  } rows[] = {
      {[](ModelConfig& c) { c.architecture = "gpt2"; }, "architecture is \"gpt2\"; supported: llama, qwen2, qwen3"},
      {[](ModelConfig& c) { c.layers = 0; }, "layers is 0; supported: 1 to 1024"},
      {[](ModelConfig& c) { c.hidden = 1 << 30; }, "hidden size is 1073741824"},
      {[](ModelConfig& c) { c.ffn = 0; }, "feed-forward size"},
      {[](ModelConfig& c) { c.kv_heads = 64; }, "key-value heads is 64; supported: 1 to 32"},
      {[](ModelConfig& c) { c.kv_heads = 3; }, "key-value heads is 3; supported: divisors of the 32"},
      {[](ModelConfig& c) { c.head_dim = 63; }, "head dimension is 63; supported: even"},
      {[](ModelConfig& c) { c.vocab = 0; }, "vocabulary size"},
      {[](ModelConfig& c) { c.max_positions = 0; }, "maximum positions"},
      {[](ModelConfig& c) { c.rope_theta = 0; }, "RoPE base"},
      {[](ModelConfig& c) { c.rope_theta = std::nan(""); }, "RoPE base"},
      {[](ModelConfig& c) { c.norm_eps = 0; }, "RMSNorm epsilon"},
      {[](ModelConfig& c) { c.rope_scaling.factor = 0; }, "RoPE scaling factor"},
      {[](ModelConfig& c) { c.rope_scaling.original_max_position = 0; }, "original context"},
      {[](ModelConfig& c) { c.rope_scaling.high_freq_factor = 1; }, "0 < low < high"},
      {[](ModelConfig& c) { c.rope_scaling.frequency_factors = {1, 2}; }, "number of RoPE frequency factors is 2; supported: 32"},
      {[](ModelConfig& c) { c.rope_scaling.frequency_factors.assign(32, 0.0); }, "a RoPE frequency factor"},
  };
  for (const auto& row : rows) {
    ModelConfig c = good;
    row.spoil(c);
    EXPECT_THAT(c.validate().message(), HasSubstr(row.message));
  }
}

// Computed once in double precision in Python after transformers' modeling_rope_utils.py.
TEST(Rope, Llama3Frequencies) {
  const double golden[] = {1,
                           0.663601237696,
                           0.440366602672,
                           0.292227822573,
                           0.193922744749,
                           0.128687373433,
                           0.0853971002858,
                           0.0566696214453,
                           0.0376060309309,
                           0.0249554086706,
                           0.016560440081,
                           0.0109895285345,
                           0.00729266473722,
                           0.00483942134572,
                           0.00321144599475,
                           0.00129054792821,
                           0.000429556796559,
                           9.70828780263e-05,
                           1.94616381848e-05,
                           1.2914767187e-05,
                           8.57025548988e-06,
                           5.68723215046e-06,
                           3.77405429411e-06,
                           2.5044671007e-06,
                           1.6619674678e-06,
                           1.10288366864e-06,
                           7.31874967544e-07,
                           4.85673134301e-07,
                           3.22293293038e-07,
                           2.13874228161e-07,
                           1.41927202519e-07,
                           9.41830672543e-08};
  const ModelConfig c = must_read(llama3_config());
  const auto frequencies = c.inverse_frequencies();
  ASSERT_EQ(frequencies.size(), std::size(golden));
  for (std::size_t i = 0; i < std::size(golden); ++i) EXPECT_NEAR(frequencies[i] / golden[i], 1.0, 1e-11) << i;
  EXPECT_EQ(c.rope_attention_factor(), 1.0);
}

TEST(Rope, YarnFrequencies) {
  json config = qwen2_config();
  config["max_position_embeddings"] = 32768;
  config["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
  const ModelConfig c = must_read(config);
  const auto frequencies = c.inverse_frequencies();
  ASSERT_EQ(frequencies.size(), 64u);
  const std::pair<std::size_t, double> golden[] = {{0, 1},
                                                   {1, 0.805842187761},
                                                   {22, 0.0086596432336},
                                                   {23, 0.0069783058486},
                                                   {24, 0.00537532149079},
                                                   {25, 0.00413173802252},
                                                   {30, 0.00106436098125},
                                                   {36, 0.000179841155874},
                                                   {39, 6.49039432084e-05},
                                                   {40, 4.4456985251e-05},
                                                   {41, 3.58253142559e-05},
                                                   {63, 3.10234440188e-07}};
  for (const auto& [i, value] : golden) EXPECT_NEAR(frequencies[i] / value, 1.0, 1e-11) << i;
  EXPECT_NEAR(c.rope_attention_factor(), 1.138629436111989, 1e-15);
  EXPECT_EQ(c.max_positions, 131072);

  config["rope_scaling"]["attention_factor"] = 0.5;
  EXPECT_EQ(must_read(config).rope_attention_factor(), 0.5);
}

TEST(Rope, LinearAndFactors) {
  json config = llama3_config();
  config["rope_scaling"] = nullptr;
  const auto plain = must_read(config).inverse_frequencies();
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_DOUBLE_EQ(plain[i], std::pow(500000.0, -static_cast<double>(i) / 32.0));
  config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 2.5}};
  ModelConfig scaled = must_read(config);
  scaled.rope_scaling.frequency_factors.assign(32, 4.0);
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_DOUBLE_EQ(scaled.inverse_frequencies()[i], plain[i] / 10.0);
}

TEST(GenerationDefaults, FromGenerationConfig) {
  const auto d = generation_from_json("g.json",
                                      R"({"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": null,
                                          "repetition_penalty": 1.05, "max_new_tokens": 2048, "eos_token_id": [151645, 151643]})",
                                      "config.json", R"({"eos_token_id": 7})");
  ASSERT_TRUE(d.ok()) << d.status().to_string();
  EXPECT_EQ(d->temperature, 0.6f);
  EXPECT_EQ(d->top_p, 0.95f);
  EXPECT_EQ(d->top_k, 20);
  EXPECT_EQ(d->min_p, std::nullopt);
  EXPECT_EQ(d->repetition_penalty, 1.05f);
  EXPECT_EQ(d->max_new_tokens, 2048);
  EXPECT_THAT(d->eos_ids, ElementsAre(151645, 151643));
}

TEST(GenerationDefaults, WithoutTheFileEosComesFromConfig) {
  const auto d = generation_from_json("g.json", "", "config.json", R"({"eos_token_id": 7})");
  ASSERT_TRUE(d.ok());
  EXPECT_EQ(d->temperature, std::nullopt);
  EXPECT_THAT(d->eos_ids, ElementsAre(7));
}

TEST(GenerationDefaults, Wrong) {
  EXPECT_THAT(generation_from_json("g.json", R"({"temperature": "hot"})", "c", "{}").status().message(),
              AllOf(HasSubstr("g.json"), HasSubstr("\"temperature\" is \"hot\"")));
  EXPECT_THAT(generation_from_json("g.json", R"({"eos_token_id": ["</s>"]})", "c", "{}").status().message(), HasSubstr("\"eos_token_id\""));
  EXPECT_FALSE(generation_from_json("g.json", R"({"top_k": 1e99})", "c", "{}").ok());
}

}  // namespace
}  // namespace baton::model
