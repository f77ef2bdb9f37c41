// A GGUF file as a model: its metadata as config, sampling defaults and text.

#include <algorithm>
#include <limits>

#include "model/contents.h"
#include "text/tokenizer.h"

namespace baton::model {
namespace {

Status wrong(const GgufFile& file, const std::string& key, const std::string& value, const std::string& supported) {
  return {Code::kInvalidArgument, file.path() + ": key \"" + key + "\" is " + value + "; supported: " + supported};
}

// A key as an int, which the config's bounds then check; `otherwise` if the file has no such key, which without it is an error.
Result<int> count(const GgufFile& file, const std::string& key, std::optional<int> otherwise = std::nullopt) {
  if (otherwise && file.find(key) == nullptr) return *otherwise;
  BATON_ASSIGN_OR_RETURN(const std::int64_t value, file.integer(key));
  if (value < 0 || value > std::numeric_limits<int>::max()) return wrong(file, key, std::to_string(value), "0 to 2147483647");
  return static_cast<int>(value);
}

Result<double> number(const GgufFile& file, const std::string& key, double otherwise) {
  if (file.find(key) == nullptr) return otherwise;
  return file.number(key);
}

Result<RopeScaling> rope_scaling(const GgufFile& file, const std::string& rope, int context) {
  RopeScaling s;
  if (const GgufTensor* factors = file.tensor("rope_freqs.weight")) {
    if (factors->format != device::WeightFormat::kF32 || factors->shape.size() != 1) {
      return {Code::kInvalidArgument, file.path() + ": tensor \"rope_freqs.weight\" must be a vector of F32"};
    }
    std::vector<float> values(static_cast<std::size_t>(factors->shape[0]));
    std::copy_n(factors->data, factors->bytes, reinterpret_cast<std::byte*>(values.data()));
    s.frequency_factors.assign(values.begin(), values.end());
  }
  const std::string type_key = rope + "scaling.type";
  if (file.find(type_key) == nullptr) return s;
  BATON_ASSIGN_OR_RETURN(const std::string type, file.string(type_key));
  if (type == "none") return s;
  if (type == "linear")
    s.kind = RopeScaling::Kind::kLinear;
  else if (type == "yarn")
    s.kind = RopeScaling::Kind::kYarn;
  else
    return wrong(file, type_key, "\"" + type + "\"", "none, linear, yarn");
  BATON_ASSIGN_OR_RETURN(s.factor, file.number(rope + "scaling.factor"));
  BATON_ASSIGN_OR_RETURN(s.original_max_position, count(file, rope + "scaling.original_context_length", context));
  BATON_ASSIGN_OR_RETURN(s.beta_fast, number(file, rope + "scaling.yarn_beta_fast", s.beta_fast));
  BATON_ASSIGN_OR_RETURN(s.beta_slow, number(file, rope + "scaling.yarn_beta_slow", s.beta_slow));
  // The format multiplies this into YaRN's own factor; only the value that changes nothing is known to occur.
  for (const std::string& key : {rope + "scaling.attn_factor", rope + "scaling.yarn_attn_factor", rope + "scaling.yarn_ext_factor"}) {
    BATON_ASSIGN_OR_RETURN(const double factor, number(file, key, 1.0));
    if (factor != 1.0) return wrong(file, key, std::to_string(factor), "1");
  }
  return s;
}

std::optional<TokenId> token_id(const GgufFile& file, std::string_view key) {
  const auto id = file.integer(key);
  if (!id.ok() || *id < 0 || *id > std::numeric_limits<TokenId>::max()) return std::nullopt;
  return static_cast<TokenId>(*id);
}

std::optional<bool> flag(const GgufFile& file, std::string_view key) {
  const GgufValue* value = file.find(key);
  const bool* b = value == nullptr ? nullptr : std::get_if<bool>(value);
  return b == nullptr ? std::nullopt : std::optional(*b);
}

std::string optional_string(const GgufFile& file, std::string_view key) {
  const auto value = file.string(key);
  return value.ok() ? *value : std::string();
}

Result<const GgufArray*> required_array(const GgufFile& file, std::string_view key) {
  const GgufArray* array = file.array(key);
  if (array == nullptr) {
    return {Code::kInvalidArgument,
            file.path() + ": key \"" + std::string(key) + "\" is missing or not an array; the file has no tokenizer"};
  }
  return array;
}

}  // namespace

Result<ModelConfig> config_from_gguf(const GgufFile& file) {
  ModelConfig c;
  BATON_ASSIGN_OR_RETURN(c.architecture, file.string("general.architecture"));
  if (c.architecture != "llama" && c.architecture != "qwen2" && c.architecture != "qwen3") {
    return wrong(file, "general.architecture", "\"" + c.architecture + "\"", "llama, qwen2, qwen3");
  }
  const std::string arch = c.architecture + ".";
  BATON_ASSIGN_OR_RETURN(c.layers, count(file, arch + "block_count"));
  BATON_ASSIGN_OR_RETURN(c.hidden, count(file, arch + "embedding_length"));
  BATON_ASSIGN_OR_RETURN(c.ffn, count(file, arch + "feed_forward_length"));
  BATON_ASSIGN_OR_RETURN(c.heads, count(file, arch + "attention.head_count"));
  BATON_ASSIGN_OR_RETURN(c.kv_heads, count(file, arch + "attention.head_count_kv", c.heads));
  BATON_ASSIGN_OR_RETURN(const int context, count(file, arch + "context_length"));
  if (c.heads == 0) return wrong(file, arch + "attention.head_count", "0", "1 or more");
  BATON_ASSIGN_OR_RETURN(c.head_dim, count(file, arch + "attention.key_length", c.hidden / c.heads));
  for (const std::string& key : {arch + "attention.value_length", arch + "rope.dimension_count"}) {
    BATON_ASSIGN_OR_RETURN(const int dim, count(file, key, c.head_dim));
    if (dim != c.head_dim) return wrong(file, key, std::to_string(dim), "the head dimension, " + std::to_string(c.head_dim));
  }
  BATON_ASSIGN_OR_RETURN(const int experts, count(file, arch + "expert_count", 0));
  if (experts != 0) return wrong(file, arch + "expert_count", std::to_string(experts), "0 (dense models)");
  BATON_ASSIGN_OR_RETURN(const int window, count(file, arch + "attention.sliding_window", 0));
  if (window != 0 && window < context) return wrong(file, arch + "attention.sliding_window", std::to_string(window), "full attention");

  BATON_ASSIGN_OR_RETURN(const double eps, file.number(arch + "attention.layer_norm_rms_epsilon"));
  c.norm_eps = static_cast<float>(eps);
  BATON_ASSIGN_OR_RETURN(c.rope_theta, number(file, arch + "rope.freq_base", 10000.0));
  BATON_ASSIGN_OR_RETURN(c.rope_scaling, rope_scaling(file, arch + "rope.", context));
  c.max_positions = context;
  if (c.rope_scaling.kind == RopeScaling::Kind::kYarn) {
    const double stretched = static_cast<double>(c.rope_scaling.original_max_position) * c.rope_scaling.factor;
    if (stretched > context && stretched < 1e9) c.max_positions = static_cast<std::int64_t>(stretched);
  }

  const GgufTensor* embed = file.tensor("token_embd.weight");
  if (embed == nullptr || embed->shape.size() != 2 || embed->shape[0] > std::numeric_limits<std::int32_t>::max()) {
    return {Code::kInvalidArgument, file.path() + ": tensor \"token_embd.weight\" is missing or not a matrix"};
  }
  c.vocab = static_cast<std::int32_t>(embed->shape[0]);
  c.tied_embeddings = file.tensor("output.weight") == nullptr;
  c.qkv_bias = file.tensor("blk.0.attn_q.bias") != nullptr;
  c.qk_norm = file.tensor("blk.0.attn_q_norm.weight") != nullptr;
  for (const char* name : {"blk.0.attn_output.bias", "blk.0.ffn_up.bias", "blk.0.ffn_gate_inp.weight"}) {
    if (file.tensor(name) != nullptr) {
      return {Code::kInvalidArgument, file.path() + ": tensor \"" + name + "\" is of a kind of model that is not supported"};
    }
  }
  return c;
}

GenerationDefaults generation_from_gguf(const GgufFile& file) {
  GenerationDefaults d;
  const auto real = [&](std::string_view key) -> std::optional<float> {
    const auto value = file.number(key);
    return value.ok() ? std::optional(static_cast<float>(*value)) : std::nullopt;
  };
  d.temperature = real("general.sampling.temp");
  d.top_p = real("general.sampling.top_p");
  d.min_p = real("general.sampling.min_p");
  d.repetition_penalty = real("general.sampling.penalty_repeat");
  d.top_k = token_id(file, "general.sampling.top_k");
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    const auto id = token_id(file, key);
    if (id && std::find(d.eos_ids.begin(), d.eos_ids.end(), *id) == d.eos_ids.end()) d.eos_ids.push_back(*id);
  }
  return d;
}

Result<TextFiles> text_from_gguf(const GgufFile& file) {
  text::GgufVocab vocab;
  BATON_ASSIGN_OR_RETURN(vocab.model, file.string("tokenizer.ggml.model"));
  vocab.pre = optional_string(file, "tokenizer.ggml.pre");
  BATON_ASSIGN_OR_RETURN(const GgufArray* tokens, required_array(file, "tokenizer.ggml.tokens"));
  vocab.tokens = tokens->strings;
  if (const GgufArray* types = file.array("tokenizer.ggml.token_type")) vocab.types.assign(types->integers.begin(), types->integers.end());
  if (const GgufArray* merges = file.array("tokenizer.ggml.merges")) vocab.merges = merges->strings;
  vocab.bos = token_id(file, "tokenizer.ggml.bos_token_id");
  vocab.eos = token_id(file, "tokenizer.ggml.eos_token_id");
  vocab.unk = token_id(file, "tokenizer.ggml.unknown_token_id");
  vocab.pad = token_id(file, "tokenizer.ggml.padding_token_id");
  vocab.add_bos = flag(file, "tokenizer.ggml.add_bos_token");
  vocab.add_eos = flag(file, "tokenizer.ggml.add_eos_token");

  TextFiles text;
  const auto token_text = [&](std::optional<TokenId> id) {
    return id && static_cast<std::size_t>(*id) < vocab.tokens.size() ? vocab.tokens[static_cast<std::size_t>(*id)] : std::string();
  };
  text.bos_token = token_text(vocab.bos);
  text.eos_token = token_text(vocab.eos);
  text.add_bos = vocab.add_bos.value_or(false);
  text.chat_template = optional_string(file, "tokenizer.chat_template");
  auto json = text::tokenizer_json_from_gguf(vocab);
  if (!json.ok()) return json.status().with_context(file.path());
  text.tokenizer_json = std::move(json).value();
  return text;
}

Result<Contents> read_gguf_model(const std::string& path) {
  BATON_ASSIGN_OR_RETURN(const auto file, GgufFile::open(path));
  Contents contents;
  contents.path = path;
  contents.naming = Naming::kGguf;
  BATON_ASSIGN_OR_RETURN(contents.config, config_from_gguf(*file));
  contents.defaults = generation_from_gguf(*file);
  contents.interleaved_rope = contents.config.architecture == "llama";
  for (const auto& [name, t] : file->tensors()) {
    contents.tensors.emplace(name, StoredTensor{t.format, {}, t.shape, t.data, t.bytes, file});
  }
  contents.text = [file] { return text_from_gguf(*file); };
  return contents;
}

}  // namespace baton::model
