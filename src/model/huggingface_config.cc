// config.json and generation_config.json of a Hugging Face folder.

#include <algorithm>

#include "model/contents.h"
#include "model/json_object.h"

namespace baton::model {
namespace {

constexpr const char* kArchitectures = "LlamaForCausalLM, MistralForCausalLM (without sliding window), Qwen2ForCausalLM, Qwen3ForCausalLM";

std::string family(const std::string& architecture) {
  if (architecture == "LlamaForCausalLM" || architecture == "MistralForCausalLM") return "llama";
  if (architecture == "Qwen2ForCausalLM") return "qwen2";
  if (architecture == "Qwen3ForCausalLM") return "qwen3";
  return {};
}

Result<std::string> read_architecture(const JsonObject& json) {
  const nlohmann::json* list = json.get("architectures");
  if (list == nullptr) return json.missing("architectures");
  if (list->is_array()) {
    for (const auto& name : *list) {
      if (name.is_string() && !family(name.get<std::string>()).empty()) return family(name.get<std::string>());
    }
  }
  return json.wrong("architectures", kArchitectures);
}

// What a file may switch on that the decoder does not have. Better refused than computed wrongly.
Status refuse_unsupported(const JsonObject& json, int context) {
  BATON_ASSIGN_OR_RETURN(const std::string activation, json.string("hidden_act", "silu"));
  if (activation != "silu") return json.wrong("hidden_act", "\"silu\"");
  for (const char* field : {"attention_bias", "mlp_bias"}) {
    BATON_ASSIGN_OR_RETURN(const bool on, json.boolean(field, false));
    if (on) return json.wrong(field, "false");
  }
  BATON_ASSIGN_OR_RETURN(const double rotary, json.number("partial_rotary_factor", 1.0));
  if (rotary != 1.0) return json.wrong("partial_rotary_factor", "1");
  if (json.has("quantization_config")) return json.wrong("quantization_config", "unquantised F32, F16 and BF16 (quantised models: GGUF)");
  // Qwen files carry a window that use_sliding_window switches off; Mistral has no such switch.
  BATON_ASSIGN_OR_RETURN(const bool windowed, json.boolean("use_sliding_window", !json.has("use_sliding_window")));
  BATON_ASSIGN_OR_RETURN(const int window, json.integer("sliding_window", 0));
  if (windowed && window != 0 && window < context) return json.wrong("sliding_window", "full attention (null)");
  return {};
}

// transformers keeps these in "rope_scaling" beside "rope_theta", since version 5 in "rope_parameters" with it.
Status read_rope(const JsonObject& json, ModelConfig& c) {
  using Kind = RopeScaling::Kind;
  BATON_ASSIGN_OR_RETURN(c.rope_theta, json.number("rope_theta", 10000.0));
  const std::string field = json.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!json.has(field)) return {};
  BATON_ASSIGN_OR_RETURN(const JsonObject rope, json.object(field));
  BATON_ASSIGN_OR_RETURN(c.rope_theta, rope.number("rope_theta", c.rope_theta));
  const std::string type_field = rope.has("rope_type") ? "rope_type" : "type";
  BATON_ASSIGN_OR_RETURN(const std::string type, rope.string(type_field, "default"));
  RopeScaling& s = c.rope_scaling;
  if (type == "default") return {};
  if (type == "linear")
    s.kind = Kind::kLinear;
  else if (type == "llama3")
    s.kind = Kind::kLlama3;
  else if (type == "yarn")
    s.kind = Kind::kYarn;
  else
    return rope.wrong(type_field, "default, linear, llama3, yarn");

  const auto context = static_cast<int>(c.max_positions);
  if (s.kind == Kind::kLinear) {
    BATON_ASSIGN_OR_RETURN(s.factor, rope.number("factor"));
  } else if (s.kind == Kind::kLlama3) {
    BATON_ASSIGN_OR_RETURN(s.factor, rope.number("factor"));
    BATON_ASSIGN_OR_RETURN(s.low_freq_factor, rope.number("low_freq_factor"));
    BATON_ASSIGN_OR_RETURN(s.high_freq_factor, rope.number("high_freq_factor"));
    BATON_ASSIGN_OR_RETURN(s.original_max_position, rope.integer("original_max_position_embeddings"));
  } else {
    BATON_ASSIGN_OR_RETURN(s.original_max_position, rope.integer("original_max_position_embeddings", context));
    const double ratio = static_cast<double>(context) / static_cast<double>(std::max<std::int64_t>(s.original_max_position, 1));
    BATON_ASSIGN_OR_RETURN(s.factor, rope.number("factor", ratio));
    BATON_ASSIGN_OR_RETURN(s.beta_fast, rope.number("beta_fast", s.beta_fast));
    BATON_ASSIGN_OR_RETURN(s.beta_slow, rope.number("beta_slow", s.beta_slow));
    BATON_ASSIGN_OR_RETURN(s.attention_factor, rope.number("attention_factor", 0.0));
    for (const char* other : {"mscale", "mscale_all_dim"}) {
      if (rope.has(other)) return rope.wrong(other, "attention_factor instead");
    }
    BATON_ASSIGN_OR_RETURN(const bool truncate, rope.boolean("truncate", true));
    if (!truncate) return rope.wrong("truncate", "true");
    const double stretched = static_cast<double>(s.original_max_position) * s.factor;
    if (stretched > context && stretched < 1e9) c.max_positions = static_cast<std::int64_t>(stretched);
  }
  return {};
}

Status read_eos(const JsonObject& json, std::vector<TokenId>& ids) {
  const nlohmann::json* v = json.get("eos_token_id");
  if (v == nullptr) return {};
  const nlohmann::json list = v->is_array() ? *v : nlohmann::json::array({*v});
  for (const auto& id : list) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() > std::numeric_limits<TokenId>::max()) {
      return json.wrong("eos_token_id", "a token id, or a list of them");
    }
    ids.push_back(id.get<TokenId>());
  }
  return {};
}

}  // namespace

Result<ModelConfig> config_from_json(const std::string& path, const std::string& text) {
  BATON_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::parse(path, text));
  ModelConfig c;
  BATON_ASSIGN_OR_RETURN(c.architecture, read_architecture(json));
  BATON_ASSIGN_OR_RETURN(c.layers, json.integer("num_hidden_layers"));
  BATON_ASSIGN_OR_RETURN(c.hidden, json.integer("hidden_size"));
  BATON_ASSIGN_OR_RETURN(c.ffn, json.integer("intermediate_size"));
  BATON_ASSIGN_OR_RETURN(c.heads, json.integer("num_attention_heads"));
  if (c.heads == 0) return json.wrong("num_attention_heads", "1 or more");
  BATON_ASSIGN_OR_RETURN(c.kv_heads, json.integer("num_key_value_heads", c.heads));
  BATON_ASSIGN_OR_RETURN(c.head_dim, json.integer("head_dim", c.hidden / c.heads));
  BATON_ASSIGN_OR_RETURN(c.vocab, json.integer("vocab_size"));
  BATON_ASSIGN_OR_RETURN(c.max_positions, json.integer("max_position_embeddings"));
  BATON_ASSIGN_OR_RETURN(const double eps, json.number("rms_norm_eps", 1e-6));
  c.norm_eps = static_cast<float>(eps);
  BATON_ASSIGN_OR_RETURN(c.tied_embeddings, json.boolean("tie_word_embeddings", false));
  c.qkv_bias = c.architecture == "qwen2";
  c.qk_norm = c.architecture == "qwen3";
  BATON_RETURN_IF_ERROR(refuse_unsupported(json, static_cast<int>(c.max_positions)));
  BATON_RETURN_IF_ERROR(read_rope(json, c));
  return c;
}

Result<GenerationDefaults> generation_from_json(const std::string& path, const std::string& generation_json, const std::string& config_path,
                                                const std::string& config_json) {
  GenerationDefaults d;
  if (!generation_json.empty()) {
    BATON_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::parse(path, generation_json));
    const std::pair<const char*, std::optional<float>*> reals[] = {
        {"temperature", &d.temperature}, {"top_p", &d.top_p}, {"min_p", &d.min_p}, {"repetition_penalty", &d.repetition_penalty}};
    for (const auto& [field, target] : reals) {
      if (!json.has(field)) continue;
      BATON_ASSIGN_OR_RETURN(const double value, json.number(field));
      *target = static_cast<float>(value);
    }
    const std::pair<const char*, std::optional<int>*> integers[] = {{"top_k", &d.top_k}, {"max_new_tokens", &d.max_new_tokens}};
    for (const auto& [field, target] : integers) {
      if (!json.has(field)) continue;
      BATON_ASSIGN_OR_RETURN(*target, json.integer(field));
    }
    BATON_RETURN_IF_ERROR(read_eos(json, d.eos_ids));
  }
  if (d.eos_ids.empty()) {
    BATON_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::parse(config_path, config_json));
    BATON_RETURN_IF_ERROR(read_eos(json, d.eos_ids));
  }
  return d;
}

}  // namespace baton::model
