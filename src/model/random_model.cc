#include "model/random_model.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "model/contents.h"
#include "model/gguf_bytes.h"

namespace baton::model::testing {
namespace {

using device::WeightFormat;

struct Drawn {
  std::string canonical;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

ModelConfig config_of(const RandomModel& m) {
  ModelConfig c;
  c.architecture = m.family;
  c.layers = m.layers;
  c.hidden = m.hidden;
  c.ffn = m.ffn;
  c.heads = m.heads;
  c.kv_heads = m.kv_heads;
  c.head_dim = m.head_dim;
  c.vocab = m.vocab;
  c.max_positions = m.context;
  c.rope_theta = m.rope_theta;
  c.rope_scaling = m.rope_scaling;
  c.tied_embeddings = m.tied;
  c.qkv_bias = m.family == "qwen2";
  c.qk_norm = m.family == "qwen3";
  return c;
}

// Scales as in tools/make_model.py: activations keep their size, logits spread by about 3.
double gain(const RandomModel& m, const std::string& part) {
  if (part == "embed" || part == "head") return 3.0;
  if (part == "q") return 2.0;
  if (part == "o" || part == "down") return std::sqrt(1.0 / (2 * m.layers));
  return 1.0;
}

std::vector<Drawn> draw(const RandomModel& m) {
  std::vector<Drawn> drawn;
  for (const WantedTensor& w : wanted_tensors(config_of(m))) {
    Drawn d{w.canonical, w.cols == 0 ? std::vector{w.rows} : std::vector{w.rows, w.cols}, {}};
    d.values = random_values(m.seed, w.canonical, w.rows * std::max<std::int64_t>(w.cols, 1));
    const std::string part = w.canonical.substr(w.canonical.find_last_of('.') + 1);
    float base = 0.0f, scale = 0.25f;
    if (w.cols != 0)
      scale = static_cast<float>(gain(m, part) * std::sqrt(3.0 / static_cast<double>(w.cols)));
    else if (part == "bias")
      scale = 0.5f;
    else if (part == "q_norm" || part == "k_norm")
      base = 1.5f, scale = 0.5f;
    else
      base = 1.0f;
    for (float& v : d.values) v = base + v * scale;
    drawn.push_back(std::move(d));
  }
  return drawn;
}

template <class T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string encode(const std::vector<float>& values, WeightFormat format) {
  std::string bytes;
  if (format == WeightFormat::kF32) {
    bytes.assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  } else if (format == WeightFormat::kBF16) {
    for (const float v : values) {
      const auto bits = std::bit_cast<std::uint32_t>(v);
      append(bytes, static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16));
    }
  } else {
    BATON_CHECK(format == WeightFormat::kQ8_0 && values.size() % 32 == 0);
    for (std::size_t block = 0; block < values.size(); block += 32) {
      float largest = 0.0f;
      for (std::size_t i = 0; i < 32; ++i) largest = std::max(largest, std::abs(values[block + i]));
      const float scale = largest / 127.0f, inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
      append(bytes, static_cast<_Float16>(scale));
      for (std::size_t i = 0; i < 32; ++i) append(bytes, static_cast<std::int8_t>(std::round(values[block + i] * inverse)));
    }
  }
  return bytes;
}

std::uint32_t ggml_type(WeightFormat format) { return format == WeightFormat::kF32 ? 0 : format == WeightFormat::kQ8_0 ? 8 : 30; }

// GGUF keeps Llama's Q and K so that neighbours rotate together: the inverse of what ModelFiles undoes.
void interleave(Drawn& d, int head_dim) {
  const std::size_t width = d.shape.size() == 2 ? static_cast<std::size_t>(d.shape[1]) : 1;
  const auto dim = static_cast<std::size_t>(head_dim);
  std::vector<float> out(d.values.size());
  for (std::size_t row = 0; row < static_cast<std::size_t>(d.shape[0]); ++row) {
    const std::size_t head = row / dim, at = row % dim, part = at / (dim / 2), i = at % (dim / 2);
    std::copy_n(d.values.begin() + static_cast<std::ptrdiff_t>(row * width), width,
                out.begin() + static_cast<std::ptrdiff_t>((head * dim + 2 * i + part) * width));
  }
  d.values = std::move(out);
}

void write_shard(const RandomModel& m, const std::vector<const Drawn*>& tensors, const std::string& path) {
  nlohmann::ordered_json header;
  std::string data;
  for (const Drawn* d : tensors) {
    const std::size_t begin = data.size();
    data += encode(d->values, m.format);
    header[stored_name(Naming::kHuggingFace, d->canonical)] = {
        {"dtype", device::to_string(m.format)}, {"shape", d->shape}, {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  std::string bytes;
  append(bytes, static_cast<std::uint64_t>(text.size()));
  write_file(path, bytes + text + data);
}

}  // namespace

std::vector<float> random_values(std::uint64_t seed, const std::string& name, std::int64_t count) {
  std::uint64_t state = 0xcbf29ce484222325ull;  // FNV-1a of the name, then splitmix64
  for (const char c : name) state = (state ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  state += seed * 0x9e3779b97f4a7c15ull;
  std::vector<float> values;
  values.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    values.push_back(static_cast<float>(static_cast<std::int64_t>(z >> 40) - (1 << 23)) / static_cast<float>(1 << 23));
  }
  return values;
}

void write_gguf_model(const RandomModel& m, const std::string& path) {
  const ModelConfig c = config_of(m);
  GgufBytes gguf;
  const auto key = [&](const char* name) { return m.family + "." + name; };
  const auto u32 = [&](const char* name, std::int64_t value) { gguf.u32(key(name), static_cast<std::uint32_t>(value)); };
  gguf.str("general.architecture", m.family);
  u32("block_count", m.layers);
  u32("context_length", m.context);
  u32("embedding_length", m.hidden);
  u32("feed_forward_length", m.ffn);
  u32("attention.head_count", m.heads);
  u32("attention.head_count_kv", m.kv_heads);
  u32("attention.key_length", m.head_dim);
  gguf.f32(key("attention.layer_norm_rms_epsilon"), 1e-5f).f32(key("rope.freq_base"), static_cast<float>(m.rope_theta));
  if (m.rope_scaling.kind == RopeScaling::Kind::kLinear) {
    gguf.str(key("rope.scaling.type"), "linear").f32(key("rope.scaling.factor"), static_cast<float>(m.rope_scaling.factor));
  } else if (m.rope_scaling.kind == RopeScaling::Kind::kLlama3) {  // the converters put it in a tensor of factors
    ModelConfig plain = c;
    plain.rope_scaling = {};
    std::vector<float> factors;
    for (int i = 0; i < m.head_dim / 2; ++i) {
      const auto at = static_cast<std::size_t>(i);
      factors.push_back(static_cast<float>(plain.inverse_frequencies()[at] / c.inverse_frequencies()[at]));
    }
    gguf.f32s("rope_freqs.weight", {m.head_dim / 2}, factors);
  } else {
    BATON_CHECK(m.rope_scaling.kind == RopeScaling::Kind::kNone);
  }
  for (Drawn& d : draw(m)) {
    const std::string part = d.canonical.substr(d.canonical.find('.', 6) + 1);
    if (m.family == "llama" && (part == "q" || part == "k")) interleave(d, m.head_dim);
    const WeightFormat format = d.shape.size() == 2 ? m.format : WeightFormat::kF32;
    gguf.tensor(stored_name(Naming::kGguf, d.canonical), d.shape, ggml_type(format), encode(d.values, format));
  }
  write_file(path, gguf.bytes());
}

void write_huggingface_model(const RandomModel& m, const std::string& folder, int shards) {
  std::filesystem::create_directories(folder);
  nlohmann::json config = {{"hidden_size", m.hidden},        {"intermediate_size", m.ffn},           {"num_hidden_layers", m.layers},
                           {"num_attention_heads", m.heads}, {"num_key_value_heads", m.kv_heads},    {"head_dim", m.head_dim},
                           {"vocab_size", m.vocab},          {"max_position_embeddings", m.context}, {"rms_norm_eps", 1e-5},
                           {"rope_theta", m.rope_theta},     {"tie_word_embeddings", m.tied},        {"eos_token_id", 2}};
  config["architectures"] = {m.family == "llama" ? "LlamaForCausalLM" : m.family == "qwen2" ? "Qwen2ForCausalLM" : "Qwen3ForCausalLM"};
  const RopeScaling& s = m.rope_scaling;
  if (s.kind == RopeScaling::Kind::kLinear) {
    config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", s.factor}};
  } else if (s.kind == RopeScaling::Kind::kLlama3) {
    config["rope_scaling"] = {{"rope_type", "llama3"},
                              {"factor", s.factor},
                              {"low_freq_factor", s.low_freq_factor},
                              {"high_freq_factor", s.high_freq_factor},
                              {"original_max_position_embeddings", s.original_max_position}};
  } else {
    BATON_CHECK(s.kind == RopeScaling::Kind::kNone);
  }
  write_file(folder + "/config.json", config.dump(1));

  const std::vector<Drawn> drawn = draw(m);
  nlohmann::json map = nlohmann::json::object();
  for (int shard = 0; shard < shards; ++shard) {
    const std::string name =
        shards == 1 ? "model.safetensors" : "model-" + std::to_string(shard + 1) + "-of-" + std::to_string(shards) + ".safetensors";
    std::vector<const Drawn*> part;
    for (std::size_t i = static_cast<std::size_t>(shard); i < drawn.size(); i += static_cast<std::size_t>(shards)) {
      part.push_back(&drawn[i]);
      map[stored_name(Naming::kHuggingFace, drawn[i].canonical)] = name;
    }
    write_shard(m, part, folder + "/" + name);
  }
  if (shards > 1) write_file(folder + "/model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump(1));
}

}  // namespace baton::model::testing
