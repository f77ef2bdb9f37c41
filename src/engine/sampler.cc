#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/rng.h"
#include "base/status.h"
#include "engine/sampler_kernels.h"

namespace baton::engine {
namespace {

using namespace kernels;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-5f;  // temperature, as in vLLM
constexpr std::size_t kSumChunk = 512;
constexpr int kHeapMax = 256;  // above, selecting from a copy is faster than a heap

double uniform_at(std::uint64_t seed, int choice, std::size_t position) {
  const auto r = philox4x32({static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(choice), 0, 0},
                            {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  return static_cast<double>(((std::uint64_t{r[1]} << 32) | r[0]) >> 11) * 0x1.0p-53;
}

// The value t with mass{> t} < target <= mass{>= t} among `w` (permuted), and mass{> t}. Quickselect by mass: linear time, fixed pivots.
struct Cut {
  float value = 0;
  double above = 0;
};
Cut cut_by_mass(std::span<float> w, double target) {
  double above = 0;
  for (;;) {
    const float a = w.front(), b = w[w.size() / 2], c = w.back();
    const float pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
    const auto more = std::partition(w.begin(), w.end(), [pivot](float x) { return x > pivot; });
    const auto equal = std::partition(more, w.end(), [pivot](float x) { return x == pivot; });
    double greater = 0;
    for (auto it = w.begin(); it != more; ++it) greater += static_cast<double>(*it);
    if (more != w.begin() && above + greater >= target) {
      w = {w.begin(), more};
      continue;
    }
    above += greater;
    const double tied = static_cast<double>(pivot) * static_cast<double>(equal - more);
    if (above + tied >= target || equal == w.end()) return {pivot, above};
    above += tied;
    w = {equal, w.end()};
  }
}

}  // namespace

std::int32_t argmax(std::span<const float> values) {
  const float* p = values.data();
  const std::size_t n = values.size();
  F4 a = splat(kMinusInfinity), b = a, c = a, d = a;
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const F4 w = load(p + i), x = load(p + i + 4), y = load(p + i + 8), z = load(p + i + 12);
    a = w > a ? w : a;
    b = x > b ? x : b;
    c = y > c ? y : c;
    d = z > d ? z : d;
  }
  a = b > a ? b : a;
  c = d > c ? d : c;
  a = c > a ? c : a;
  float best = kMinusInfinity;
  for (int j = 0; j < 4; ++j) best = a[j] > best ? a[j] : best;
  for (; i < n; ++i) best = p[i] > best ? p[i] : best;
  for (i = 0; i + 16 <= n; i += 16) {
    const F4 t = splat(best);
    if (any((load(p + i) == t) | (load(p + i + 4) == t) | (load(p + i + 8) == t) | (load(p + i + 12) == t))) break;
  }
  for (; i < n; ++i) {
    if (p[i] == best) return static_cast<std::int32_t>(i);
  }
  return 0;
}

Sampler::Sampler(std::int32_t vocab) : vocab_(vocab) {
  const auto n = static_cast<std::size_t>(vocab);
  adjusted_.resize(n);
  weight_.resize(n);
  index_.resize(n);
  scratch_.resize(n);
  output_count_.resize(n);
  seen_.resize(n);
  touched_.reserve(n);
}

void Sampler::sample(std::span<const float> logits, const SampleSpec& spec, std::span<const TokenId> ids, int choice, Sampled& out) {
  BATON_CHECK(static_cast<std::int32_t>(logits.size()) == vocab_ && spec.params != nullptr);
  const wire::SamplingParams& params = *spec.params;
  const float* adjusted = adjust(logits, spec, ids);
  if (params.temperature < kGreedyBelow) {
    out.token = argmax({adjusted, logits.size()});
  } else {
    out.token = draw(adjusted, params, uniform_at(spec.seed, choice, ids.size()));
  }
  if (params.logprobs >= 0) {
    logprobs(logits, out.token, params.logprobs, out);
  } else {
    out.logprob.reset();
    out.top.clear();
  }
}

const float* Sampler::adjust(std::span<const float> logits, const SampleSpec& spec, std::span<const TokenId> ids) {
  const wire::SamplingParams& p = *spec.params;
  const auto n_prompt = static_cast<std::size_t>(spec.n_prompt);
  const bool masked = ids.size() < n_prompt + static_cast<std::size_t>(std::max(p.min_tokens, 0));
  const bool penalized = p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
  if (!masked && !penalized && p.logit_bias.empty()) return logits.data();
  std::copy(logits.begin(), logits.end(), adjusted_.begin());
  const auto valid = [this](TokenId id) { return id >= 0 && id < vocab_; };
  for (const auto& [id, bias] : p.logit_bias) {
    if (valid(id)) adjusted_[static_cast<std::size_t>(id)] += bias;
  }
  if (masked) {
    for (const TokenId id : p.stop_token_ids) {
      if (valid(id)) adjusted_[static_cast<std::size_t>(id)] = kMinusInfinity;
    }
    for (const TokenId id : p.eos_ids) {
      if (valid(id) && !p.ignore_eos) adjusted_[static_cast<std::size_t>(id)] = kMinusInfinity;
    }
  }
  if (penalized) penalize(p, ids, n_prompt);
  return adjusted_.data();
}

void Sampler::penalize(const wire::SamplingParams& p, std::span<const TokenId> ids, std::size_t n_prompt) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_) continue;
    const auto id = static_cast<std::size_t>(ids[i]);
    if (!seen_[id]) {
      seen_[id] = 1;
      touched_.push_back(ids[i]);
    }
    if (i >= n_prompt) ++output_count_[id];
  }
  for (const TokenId token : touched_) {
    const auto id = static_cast<std::size_t>(token);
    float& l = adjusted_[id];
    l = l > 0 ? l / p.repetition_penalty : l * p.repetition_penalty;
    const std::int32_t count = output_count_[id];
    l -= p.frequency_penalty * static_cast<float>(count);
    if (count > 0) l -= p.presence_penalty;
    seen_[id] = 0;
    output_count_[id] = 0;
  }
  touched_.clear();
}

float Sampler::kth_largest(const float* logits, int k) {
  if (k > kHeapMax) {
    // NaN has no place in an order; it is never a candidate.
    std::transform(logits, logits + vocab_, scratch_.begin(), [](float x) { return x == x ? x : kMinusInfinity; });
    std::nth_element(scratch_.begin(), scratch_.begin() + (k - 1), scratch_.end(), std::greater<>());
    return scratch_[static_cast<std::size_t>(k - 1)];
  }
  float heap[kHeapMax];  // the largest so far, the least of them in front
  std::fill(heap, heap + k, kMinusInfinity);
  for_each_above<true>(
      logits, static_cast<std::size_t>(vocab_), [&] { return heap[0]; },
      [&](std::size_t i) {
        std::pop_heap(heap, heap + k, std::greater<>());
        heap[k - 1] = logits[i];
        std::push_heap(heap, heap + k, std::greater<>());
      });
  return heap[0];
}

std::int32_t Sampler::draw(const float* logits, const wire::SamplingParams& p, double uniform) {
  const std::int32_t best = argmax({logits, static_cast<std::size_t>(vocab_)});
  const float largest = logits[best];
  if (!std::isfinite(largest)) return best;
  bool dense = true;  // weight_[i] is of token i; else of index_[i]
  auto count = static_cast<std::size_t>(vocab_);
  const float factor = 1.0f / p.temperature;
  if (p.top_k > 0 && p.top_k < vocab_) {
    const float least = kth_largest(logits, p.top_k);
    dense = false;
    count = 0;
    for_each_above<false>(
        logits, static_cast<std::size_t>(vocab_), [&] { return least; },
        [&](std::size_t i) {
          index_[count] = static_cast<std::int32_t>(i);
          weight_[count++] = logits[i];
        });
    exp_all(weight_.data(), count, largest, factor, weight_.data());
  } else {
    exp_all(logits, count, largest, factor, weight_.data());
  }
  if (p.min_p > 0) {
    for (std::size_t i = 0; i < count; ++i) weight_[i] = weight_[i] >= p.min_p ? weight_[i] : 0.0f;
  }
  double total = sum(weight_.data(), count);
  if (p.top_p < 1.0f) {
    count = nucleus(count, dense, static_cast<double>(std::max(p.top_p, 0.0f)), total);
    dense = false;
    total = sum(weight_.data(), count);
  }
  if (!(total > 0)) return best;

  // Whole chunks first, then token by token.
  const double target = uniform * total;
  double before = 0;
  std::size_t last = 0;
  bool found = false;
  for (std::size_t begin = 0; begin < count && !found; begin += kSumChunk) {
    const std::size_t end = std::min(count, begin + kSumChunk);
    const double mass = sum(weight_.data() + begin, end - begin);
    if (mass > 0 && (before + mass > target || end == count)) {
      double running = before;
      for (std::size_t i = begin; i < end; ++i) {
        if (weight_[i] <= 0) continue;
        last = i;
        running += static_cast<double>(weight_[i]);
        if (running > target) {
          found = true;
          break;
        }
      }
      if (found) break;
    } else if (mass > 0) {
      for (std::size_t i = begin; i < end; ++i) last = weight_[i] > 0 ? i : last;
    }
    before += mass;
  }
  return dense ? static_cast<std::int32_t>(last) : index_[last];
}

// Leaves in weight_ and index_, in index order, the most probable candidates that together reach top_p; returns their number.
std::size_t Sampler::nucleus(std::size_t count, bool dense, double top_p, double total) {
  const double target = top_p * total;
  // Most often few tokens reach it: candidates are gathered above falling limits.
  std::size_t kept = 0;
  for (const float limit : {0x1p-6f, 0x1p-12f, 0x1p-20f, std::numeric_limits<float>::denorm_min()}) {
    kept = 0;
    for_each_above<false>(weight_.data(), count, [limit] { return limit; }, [&](std::size_t i) { scratch_[kept++] = weight_[i]; });
    if (sum(scratch_.data(), kept) >= target) break;
  }
  const Cut cut = cut_by_mass({scratch_.data(), kept}, target);
  auto ties = static_cast<std::int64_t>(std::ceil((target - cut.above) / static_cast<double>(cut.value)));
  ties = std::max<std::int64_t>(ties, 1);
  std::size_t out = 0;
  for_each_above<false>(
      weight_.data(), count, [&] { return cut.value; },
      [&](std::size_t i) {
        if (weight_[i] == cut.value && ties-- <= 0) return;
        const float w = weight_[i];  // out <= i: what is still to be read is not overwritten
        index_[out] = dense ? static_cast<std::int32_t>(i) : index_[i];
        weight_[out++] = w;
      });
  return out;
}

void Sampler::logprobs(std::span<const float> logits, TokenId token, int k, Sampled& out) {
  BATON_CHECK(static_cast<std::int32_t>(logits.size()) == vocab_ && token >= 0 && token < vocab_);
  const float largest = logits[static_cast<std::size_t>(argmax(logits))];
  exp_all(logits.data(), logits.size(), largest, 1.0f, weight_.data());
  const double log_sum = std::log(sum(weight_.data(), logits.size())) + static_cast<double>(largest);
  const auto logprob = [&](std::int32_t id) {
    return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(id)]) - log_sum);
  };
  out.token = token;
  out.logprob = logprob(token);
  out.top.clear();
  const auto wanted = static_cast<std::size_t>(std::min(k, vocab_));
  if (wanted == 0) return;
  out.top.reserve(wanted + 1);
  // A sorted list of the best so far; a later equal one goes behind, so that the lower index is first.
  for_each_above<true>(
      logits.data(), logits.size(),
      [&] { return out.top.size() < wanted ? -std::numeric_limits<float>::infinity() : out.top.back().logprob; },
      [&](std::size_t i) {
        const float value = logits[i];
        const auto at =
            std::upper_bound(out.top.begin(), out.top.end(), value, [](float v, const wire::TokenLogprob& t) { return v > t.logprob; });
        if (out.top.size() == wanted) {
          out.top.insert(at, {.token = static_cast<TokenId>(i), .logprob = value});
          out.top.pop_back();
        } else {
          out.top.insert(at, {.token = static_cast<TokenId>(i), .logprob = value});
        }
      });
  for (wire::TokenLogprob& t : out.top) t.logprob = logprob(t.token);
}

}  // namespace baton::engine
