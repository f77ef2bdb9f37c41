#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>

namespace baton::model {
namespace {

using Kind = RopeScaling::Kind;

// Llama 3's scaling (transformers: _compute_llama3_parameters): long wavelengths are stretched, short ones kept, those between blended.
double llama3_frequency(const RopeScaling& s, double frequency) {
  const auto original = static_cast<double>(s.original_max_position);
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength > original / s.low_freq_factor) return frequency / s.factor;
  if (wavelength < original / s.high_freq_factor) return frequency;
  const double smooth = (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return (1.0 - smooth) * frequency / s.factor + smooth * frequency;
}

// The pair of dimensions that turns `rotations` times within the original context (YaRN, arXiv 2309.00071, section 3.2).
double yarn_dimension(const ModelConfig& c, double rotations) {
  const auto original = static_cast<double>(c.rope_scaling.original_max_position);
  return c.head_dim * std::log(original / (rotations * 2.0 * std::numbers::pi)) / (2.0 * std::log(c.rope_theta));
}

double yarn_frequency(const ModelConfig& c, int i, double frequency) {
  const double low = std::max(std::floor(yarn_dimension(c, c.rope_scaling.beta_fast)), 0.0);
  double high = std::min(std::ceil(yarn_dimension(c, c.rope_scaling.beta_slow)), c.head_dim - 1.0);
  if (high == low) high += 0.001;
  const double interpolated = std::clamp((i - low) / (high - low), 0.0, 1.0);
  return interpolated * frequency / c.rope_scaling.factor + (1.0 - interpolated) * frequency;
}

Status unsupported(std::string_view field, const std::string& value, std::string_view supported) {
  return {Code::kInvalidArgument, std::string(field) + " is " + value + "; supported: " + std::string(supported)};
}

}  // namespace

std::vector<double> ModelConfig::inverse_frequencies() const {
  std::vector<double> frequencies(static_cast<std::size_t>(head_dim / 2));
  for (int i = 0; i < head_dim / 2; ++i) {
    double f = std::pow(rope_theta, -2.0 * i / head_dim);
    switch (rope_scaling.kind) {
      case Kind::kNone:
        break;
      case Kind::kLinear:
        f /= rope_scaling.factor;
        break;
      case Kind::kLlama3:
        f = llama3_frequency(rope_scaling, f);
        break;
      case Kind::kYarn:
        f = yarn_frequency(*this, i, f);
        break;
    }
    if (!rope_scaling.frequency_factors.empty()) f /= rope_scaling.frequency_factors[static_cast<std::size_t>(i)];
    frequencies[static_cast<std::size_t>(i)] = f;
  }
  return frequencies;
}

double ModelConfig::rope_attention_factor() const {
  if (rope_scaling.kind != Kind::kYarn) return 1.0;
  if (rope_scaling.attention_factor > 0.0) return rope_scaling.attention_factor;
  return rope_scaling.factor <= 1.0 ? 1.0 : 0.1 * std::log(rope_scaling.factor) + 1.0;
}

std::int64_t ModelConfig::linear_weights() const {
  const std::int64_t h = hidden, q = std::int64_t{heads} * head_dim, kv = std::int64_t{kv_heads} * head_dim;
  return layers * (h * (q + 2 * kv) + q * h + 3 * h * ffn);
}

Status ModelConfig::validate() const {
  if (architecture != "llama" && architecture != "qwen2" && architecture != "qwen3") {
    return unsupported("architecture", '"' + architecture + '"', "llama, qwen2, qwen3");
  }
  const struct {
    std::string_view field;
    std::int64_t value, least, most;
  } bounds[] = {
      {"layers", layers, 1, 1024},
      {"hidden size", hidden, 1, 1 << 20},
      {"feed-forward size", ffn, 1, 1 << 22},
      {"attention heads", heads, 1, 4096},
      {"key-value heads", kv_heads, 1, heads},
      {"head dimension", head_dim, 2, 1024},
      {"vocabulary size", vocab, 1, 1 << 24},
      {"maximum positions", max_positions, 1, std::int64_t{1} << 30},
  };
  for (const auto& b : bounds) {
    if (b.value < b.least || b.value > b.most) {
      return unsupported(b.field, std::to_string(b.value), std::to_string(b.least) + " to " + std::to_string(b.most));
    }
  }
  if (heads % kv_heads != 0) {
    return unsupported("key-value heads", std::to_string(kv_heads), "divisors of the " + std::to_string(heads) + " attention heads");
  }
  if (head_dim % 2 != 0) return unsupported("head dimension", std::to_string(head_dim), "even ones");
  if (!(rope_theta > 1.0) || !std::isfinite(rope_theta)) return unsupported("RoPE base", std::to_string(rope_theta), "finite and above 1");
  if (!(norm_eps > 0.0f && norm_eps < 1.0f)) return unsupported("RMSNorm epsilon", std::to_string(norm_eps), "above 0 and below 1");

  const RopeScaling& s = rope_scaling;
  if (s.kind != Kind::kNone && !(s.factor > 0.0 && std::isfinite(s.factor))) {
    return unsupported("RoPE scaling factor", std::to_string(s.factor), "finite and above 0");
  }
  if ((s.kind == Kind::kLlama3 || s.kind == Kind::kYarn) && s.original_max_position < 1) {
    return unsupported("RoPE scaling's original context", std::to_string(s.original_max_position), "1 or more");
  }
  if (s.kind == Kind::kLlama3 && !(s.low_freq_factor > 0.0 && s.high_freq_factor > s.low_freq_factor)) {
    return unsupported("RoPE scaling's low and high frequency factors",
                       std::to_string(s.low_freq_factor) + ", " + std::to_string(s.high_freq_factor), "0 < low < high");
  }
  if (s.kind == Kind::kYarn && !(s.beta_slow > 0.0 && s.beta_fast >= s.beta_slow)) {
    return unsupported("YaRN's beta_fast and beta_slow", std::to_string(s.beta_fast) + ", " + std::to_string(s.beta_slow),
                       "0 < beta_slow <= beta_fast");
  }
  if (!s.frequency_factors.empty() && s.frequency_factors.size() != static_cast<std::size_t>(head_dim / 2)) {
    return unsupported("the number of RoPE frequency factors", std::to_string(s.frequency_factors.size()),
                       std::to_string(head_dim / 2) + " (half of the head dimension)");
  }
  for (const double f : s.frequency_factors) {
    if (!(f > 0.0 && std::isfinite(f))) return unsupported("a RoPE frequency factor", std::to_string(f), "finite and above 0");
  }
  return {};
}

}  // namespace baton::model
