// config.json and generation_config.json of a Hugging Face folder, one behind the other with a zero byte between: an error that names the
// file and the field, or a config whose derived values are finite.

#include <cmath>

#include "model/contents.h"
#include "tests/fuzz/fuzz.h"

namespace baton::fuzz {

void run(std::string_view input) {
  const std::size_t end = std::min(input.find('\0'), input.size());
  const std::string config_json(input.substr(0, end)), generation_json(input.substr(std::min(end + 1, input.size())));
  const auto config = model::config_from_json("config.json", config_json);
  if (!config.ok()) BATON_CHECK_MSG(config.status().message().starts_with("config.json: "), config.status().to_string());
  const auto generation = model::generation_from_json("generation.json", generation_json, "config.json", config_json);
  if (!generation.ok())
    BATON_CHECK_MSG(generation.status().message().find(".json: ") != std::string::npos, generation.status().to_string());
  if (!config.ok() || !config->validate().ok()) return;
  for (const double f : config->inverse_frequencies()) BATON_CHECK(std::isfinite(f));
  BATON_CHECK(std::isfinite(config->rope_attention_factor()));
  BATON_CHECK(config->linear_weights() > 0);
  for (const auto& wanted : model::wanted_tensors(*config)) {
    BATON_CHECK(wanted.rows > 0 && wanted.cols >= 0);
    BATON_CHECK(!model::stored_name(model::Naming::kHuggingFace, wanted.canonical).empty());
  }
}

std::vector<std::string> seeds() {
  const std::string sizes =
      R"("hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,)"
      R"("vocab_size":300,"rms_norm_eps":1e-5,"max_position_embeddings":256)";
  const auto config = [&](const std::string& more) { return "{" + sizes + "," + more + "}"; };
  return {
      config(R"("architectures":["LlamaForCausalLM"],"rope_theta":10000.0,"eos_token_id":[1,2],"tie_word_embeddings":true)"),
      config(R"("architectures":["Qwen2ForCausalLM"],"use_sliding_window":false,"eos_token_id":2)"),
      config(R"("architectures":["Qwen3ForCausalLM"],"head_dim":32,"rope_scaling":{"rope_type":"yarn","factor":4.0,)"
             R"("original_max_position_embeddings":64}})"),
      config(R"("architectures":["LlamaForCausalLM"],"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,)"
             R"("high_freq_factor":4.0,"original_max_position_embeddings":64})"),
      config(R"("architectures":["LlamaForCausalLM"],"rope_scaling":{"type":"linear","factor":2.0})"),
      config(R"("architectures":["MistralForCausalLM"],"sliding_window":null)") + std::string(1, '\0') +
          R"({"temperature":0.6,"top_p":0.95,"top_k":20,"min_p":0.0,"repetition_penalty":1.1,"max_new_tokens":64,"eos_token_id":[1]})",
  };
}

}  // namespace baton::fuzz
