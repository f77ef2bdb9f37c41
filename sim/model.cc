#include "sim/model.h"

#include <algorithm>
#include <bit>

#include "sim/trace.h"

namespace baton::sim {
namespace {

bool contains(const std::vector<TokenId>& ids, TokenId id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }
bool stops(const wire::SamplingParams& p, TokenId id) {
  return contains(p.stop_token_ids, id) || (!p.ignore_eos && contains(p.eos_ids, id));
}
// Of 24 bits, so that it survives JSON and a float as it is.
float logprob_of(std::uint64_t hash) { return -static_cast<float>(hash >> 40) / 16777216.0f; }

std::uint64_t bits(float value) { return std::bit_cast<std::uint32_t>(value); }

// What penalties and biases do, as a number: a sum over the very ids that they are over.
std::uint64_t penalties(const wire::SamplingParams& p, std::int32_t n_prompt, std::span<const TokenId> ids) {
  std::uint64_t sum = 0;
  const auto over = [&](std::size_t from, float strength) {
    for (std::size_t i = from; i < ids.size(); ++i) sum += mix(static_cast<std::uint64_t>(ids[i]), bits(strength));
  };
  if (p.repetition_penalty != 1.0f) over(0, p.repetition_penalty);
  if (p.presence_penalty != 0.0f) over(static_cast<std::size_t>(n_prompt), p.presence_penalty);
  if (p.frequency_penalty != 0.0f) over(static_cast<std::size_t>(n_prompt), -p.frequency_penalty);
  for (const auto& [id, bias] : p.logit_bias) sum = mix(mix(sum, static_cast<std::uint64_t>(id)), bits(bias));
  return sum;
}

}  // namespace

std::uint64_t first_word(int layer, int head, int kind) {
  return mix(0x6261746F6E, static_cast<std::uint64_t>(layer * 1000 + head * 2 + kind));
}
std::uint64_t next_word(std::uint64_t before, TokenId id) { return mix(before, static_cast<std::uint64_t>(id) + 1); }

engine::Sampled Context::sample(const wire::SamplingParams& p, std::uint64_t seed, std::int32_t n_prompt, std::span<const TokenId> ids,
                                int choice) const {
  const auto length = static_cast<std::int32_t>(ids.size());
  std::uint64_t hash = mix(mix(sum_, static_cast<std::uint64_t>(n_prompt)), penalties(p, n_prompt, ids));
  if (p.temperature > 0) {
    hash = mix(mix(hash, seed), static_cast<std::uint64_t>(choice));
    hash = mix(mix(hash, bits(p.temperature)), bits(p.top_p));
    hash = mix(mix(hash, bits(p.min_p)), static_cast<std::uint64_t>(p.top_k));
  }
  engine::Sampled out;
  out.token = static_cast<TokenId>(hash % kVocab);
  while (length - n_prompt < p.min_tokens && stops(p, out.token)) out.token = (out.token + 1) % kVocab;
  if (p.logprobs >= 0) out.logprob = logprob_of(hash);
  for (int k = 0; k < p.logprobs; ++k) {
    const std::uint64_t h = mix(hash, static_cast<std::uint64_t>(k) + 1);
    out.top.push_back({static_cast<TokenId>(h % kVocab), logprob_of(h)});
  }
  return out;
}

float prompt_logprob(std::int32_t position, TokenId token) {
  return logprob_of(mix(static_cast<std::uint64_t>(position), static_cast<std::uint64_t>(token)));
}

Expected reference(const ModelShape& shape, const wire::GenerateRequest& request, int choice, std::int64_t max_model_len) {
  std::vector<std::uint64_t> words;
  for (int l = 0; l < shape.layers; ++l) {
    for (int h = 0; h < shape.kv_heads; ++h) {
      for (int k : {0, 1}) words.push_back(first_word(l, h, k));
    }
  }
  Context context;
  std::vector<TokenId> ids;
  Expected out;
  const auto append = [&](TokenId id) {
    std::uint64_t row = 0;
    for (std::size_t slot = 0; slot < words.size(); ++slot) {
      words[slot] = next_word(words[slot], id);
      context.add(static_cast<std::int32_t>(ids.size()), static_cast<int>(slot), words[slot]);
      row += row_term(static_cast<int>(slot), words[slot]);
    }
    ids.push_back(id);
    out.rows.push_back(row);
  };
  for (const TokenId id : request.ids) append(id);

  const wire::SamplingParams& p = request.sampling;
  out.finish.choice = choice;
  for (;;) {
    out.tokens.push_back(context.sample(p, request.seed, request.n_prompt, ids, choice));
    const TokenId token = out.tokens.back().token;
    append(token);
    const auto length = static_cast<std::int32_t>(ids.size());
    const std::int32_t generated = length - request.n_prompt;
    if (generated > p.min_tokens && stops(p, token)) {
      out.finish.reason = wire::FinishReason::kStop;
      out.finish.stop_token = token;
      return out;
    }
    if (generated >= p.max_tokens || length >= max_model_len) {
      out.finish.reason = wire::FinishReason::kLength;
      return out;
    }
  }
}

}  // namespace baton::sim
