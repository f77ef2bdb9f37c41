#pragma once
// What a model is, as data: one decoder reads these fields, and the families (Llama, Qwen2, Qwen3) differ only in their values.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace baton::model {

struct RopeScaling {
  enum class Kind { kNone, kLinear, kLlama3, kYarn } kind = Kind::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;              // llama3
  std::int64_t original_max_position = 0;                            // llama3, yarn
  double beta_fast = 32.0, beta_slow = 1.0, attention_factor = 0.0;  // yarn; 0: 0.1 ln(factor) + 1
  std::vector<double> frequency_factors;                             // a GGUF's rope_freqs tensor: divides each inverse frequency
};

struct ModelConfig {
  std::string architecture;  // "llama", "qwen2", "qwen3"
  int layers = 0;
  int hidden = 0;
  int ffn = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  std::int32_t vocab = 0;
  std::int64_t max_positions = 0;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  float norm_eps = 1e-5f;
  bool tied_embeddings = false;
  bool qkv_bias = false;
  bool qk_norm = false;

  // The inverse frequencies after scaling, head_dim / 2 of them.
  std::vector<double> inverse_frequencies() const;
  double rope_attention_factor() const;
  // Weights of the linear layers, without embedding and head.
  std::int64_t linear_weights() const;
  // An error that names the field and what is supported.
  Status validate() const;
};

// Sampling defaults that the model's author recommends (generation_config.json, or GGUF general.sampling.*); unset where not given.
struct GenerationDefaults {
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int> top_k, max_new_tokens;
  std::vector<TokenId> eos_ids;
};

}  // namespace baton::model
