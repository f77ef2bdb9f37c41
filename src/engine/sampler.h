#pragma once
// From logits to a token. The result is a function of (logits, SamplingParams, ids, n_prompt, seed, choice, position) alone: no batch, no
// worker, no state. The same arithmetic on every machine, too: no libm call and no fused multiply-add decides which token is drawn.
//
// In vLLM's order: logit_bias, then the mask of min_tokens; repetition, then frequency and presence penalty; greedy stops here, at the
// largest logit, lowest index first; temperature; min_p; top_k (ties with the k-th stay); top_p (the smallest set of the most probable that
// reaches it, ties by index); then one number from Philox, keyed by the seed, counted by (position, choice), through the inverse of the
// distribution function in index order. Log-probabilities are of the raw logits.
//
// Bound: a greedy token reads the logits twice, 0.4 MB at a vocabulary of 49,152: some 10 us from L2. A drawn one adds an exponential a
// token.

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "engine/step.h"

namespace baton::engine {

// The index of the largest value, the lowest among equals; 0 where there is none (all NaN).
std::int32_t argmax(std::span<const float> values);

// Holds work space for one vocabulary; sampling allocates nothing but Sampled::top.
class Sampler {
 public:
  explicit Sampler(std::int32_t vocab);

  // The token at position ids.size(), of `choice`. `ids`: prompt and output so far.
  void sample(std::span<const float> logits, const SampleSpec& spec, std::span<const TokenId> ids, int choice, Sampled& out);
  // `token`'s log-probability, and those of the k most likely.
  void logprobs(std::span<const float> logits, TokenId token, int k, Sampled& out);

 private:
  const float* adjust(std::span<const float> logits, const SampleSpec& spec, std::span<const TokenId> ids);
  void penalize(const wire::SamplingParams& params, std::span<const TokenId> ids, std::size_t n_prompt);
  std::int32_t draw(const float* logits, const wire::SamplingParams& params, double uniform);
  float kth_largest(const float* logits, int k);
  std::size_t nucleus(std::size_t count, bool dense, double top_p, double total);

  std::int32_t vocab_;
  std::vector<float> adjusted_;      // logits after bias, mask and penalties
  std::vector<float> weight_;        // exp((logit - largest) / temperature); 0: not a candidate
  std::vector<std::int32_t> index_;  // of the candidates, where they are not the whole vocabulary
  std::vector<float> scratch_;
  std::vector<std::int32_t> output_count_;  // by token; all zero between calls
  std::vector<char> seen_;
  std::vector<TokenId> touched_;
};

}  // namespace baton::engine
