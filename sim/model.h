#pragma once
// The modelled language model, defined by its KV cache. The row of one (layer, head, kind) and token is one 64-bit word, which continues
// the word of the token before it: word(t) = mix(word(t-1), id(t)). The next token is a function of all words of all tokens, where they lie
// in the sequence, and of the request: n_prompt, penalties over the ids that they are over, and the seed, choice and truncation unless it
// is greedy. So a stream is right if and only if every word that it was computed from is, whoever wrote it, moved it, shared it or kept it.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "device/kv_view.h"
#include "engine/step.h"
#include "wire/generate.h"
#include "wire/worker_api.h"

namespace baton::sim {

inline constexpr TokenId kVocab = 4096;
inline constexpr TokenId kEos = 2;

struct ModelShape {
  int layers = 4, kv_heads = 2;
  static constexpr int kHeadDim = 4;  // bf16: 8 bytes, one word
  int slots() const { return layers * kv_heads * 2; }
  device::KvSpec spec(int block_tokens, std::int32_t blocks) const {
    return {layers, kv_heads, kHeadDim, device::DType::kBF16, block_tokens, blocks};
  }
  wire::KvSchema schema() const { return {layers, kv_heads, kHeadDim, "bf16"}; }
};

std::uint64_t first_word(int layer, int head, int kind);  // before the first token
std::uint64_t next_word(std::uint64_t before, TokenId id);

// One token's words, summed up in any order.
inline std::uint64_t row_term(int slot, std::uint64_t word) { return word * (static_cast<std::uint64_t>(slot) * 2 + 1); }

// Sums up the words of a sequence, in any order.
class Context {
 public:
  void add(std::int32_t token, int slot, std::uint64_t word) {
    sum_ += word * ((static_cast<std::uint64_t>(token) * 64 + static_cast<std::uint64_t>(slot)) * 0x9E3779B97F4A7C15u | 1);
  }
  // The token after `ids`.
  engine::Sampled sample(const wire::SamplingParams& params, std::uint64_t seed, std::int32_t n_prompt, std::span<const TokenId> ids,
                         int choice) const;

 private:
  std::uint64_t sum_ = 0;
};

// What a prompt's token would be reported with.
float prompt_logprob(std::int32_t position, TokenId token);

// What a choice (absolute) of a request gets on any cluster: its tokens, the last one included, and how it ends.
struct Expected {
  std::vector<engine::Sampled> tokens;
  wire::FinishEvent finish;
  std::vector<std::uint64_t> rows;  // of each token of prompt and output: the sum of its words
};
Expected reference(const ModelShape& shape, const wire::GenerateRequest& request, int choice, std::int64_t max_model_len);

}  // namespace baton::sim
