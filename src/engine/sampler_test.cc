#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <map>
#include <numeric>

#include "base/rng.h"

namespace baton::engine {
namespace {

constexpr double kNever = -1e300;

// About normally distributed, with some exact ties.
std::vector<float> random_logits(Rng& rng, int vocab, double spread = 4) {
  std::vector<float> out(static_cast<std::size_t>(vocab));
  for (float& x : out) {
    double sum = 0;
    for (int i = 0; i < 6; ++i) sum += rng.uniform() - 0.5;
    x = static_cast<float>(std::round(sum * spread * 64) / 64);
  }
  return out;
}

// The definition, in double precision and with full sorts.
struct Oracle {
  std::vector<double> logits;       // after bias, mask, penalties
  std::vector<double> probability;  // what is drawn from

  Oracle(const std::vector<float>& raw, const wire::SamplingParams& p, const std::vector<TokenId>& ids, int n_prompt) {
    const std::size_t n = raw.size();
    logits.assign(raw.begin(), raw.end());
    for (const auto& [id, bias] : p.logit_bias) logits[static_cast<std::size_t>(id)] += static_cast<double>(bias);
    if (static_cast<int>(ids.size()) - n_prompt < p.min_tokens) {
      for (const TokenId id : p.stop_token_ids) logits[static_cast<std::size_t>(id)] = kNever;
      for (const TokenId id : p.eos_ids) {
        if (!p.ignore_eos) logits[static_cast<std::size_t>(id)] = kNever;
      }
    }
    std::map<TokenId, int> all, output;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ++all[ids[i]];
      if (static_cast<int>(i) >= n_prompt) ++output[ids[i]];
    }
    for (const auto& [id, count] : all) {
      double& l = logits[static_cast<std::size_t>(id)];
      if (l == kNever) continue;
      l = l > 0 ? l / static_cast<double>(p.repetition_penalty) : l * static_cast<double>(p.repetition_penalty);
    }
    for (const auto& [id, count] : output) {
      logits[static_cast<std::size_t>(id)] -= static_cast<double>(p.frequency_penalty) * count + static_cast<double>(p.presence_penalty);
    }
    const double largest = *std::max_element(logits.begin(), logits.end());
    probability.resize(n);
    for (std::size_t i = 0; i < n; ++i) probability[i] = std::exp((logits[i] - largest) / static_cast<double>(p.temperature));
    for (double& x : probability) x = x >= static_cast<double>(p.min_p) ? x : 0;
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
    if (p.top_k > 0 && p.top_k < static_cast<int>(n)) {
      const double least = logits[order[static_cast<std::size_t>(p.top_k - 1)]];
      for (std::size_t i = 0; i < n; ++i) probability[i] = logits[i] >= least ? probability[i] : 0;
    }
    double total = std::accumulate(probability.begin(), probability.end(), 0.0);
    if (p.top_p < 1) {
      double above = 0;
      bool reached = false;
      for (const std::size_t i : order) {
        if (reached) probability[i] = 0;
        above += probability[i];
        reached = reached || above >= static_cast<double>(p.top_p) * total;
      }
      total = std::accumulate(probability.begin(), probability.end(), 0.0);
    }
    for (double& x : probability) x /= total;
  }

  TokenId greedy() const { return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin()); }
  TokenId at(double uniform) const {
    double running = 0;
    TokenId last = 0;
    for (std::size_t i = 0; i < probability.size(); ++i) {
      if (probability[i] <= 0) continue;
      last = static_cast<TokenId>(i);
      running += probability[i];
      if (running > uniform) break;
    }
    return last;
  }
};

double philox_uniform(std::uint64_t seed, int choice, std::uint32_t position) {
  const auto r = philox4x32({position, static_cast<std::uint32_t>(choice), 0, 0},
                            {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  return static_cast<double>(((std::uint64_t{r[1]} << 32) | r[0]) >> 11) * 0x1.0p-53;
}

Sampled sample(Sampler& sampler, const std::vector<float>& logits, const wire::SamplingParams& p, const std::vector<TokenId>& ids,
               int n_prompt, std::uint64_t seed = 0, int choice = 0) {
  Sampled out;
  sampler.sample(logits, SampleSpec{.params = &p, .seed = seed, .n_prompt = n_prompt, .first_choice = choice, .choices = 1}, ids, choice,
                 out);
  return out;
}

TEST(Sampler, AgreesWithTheDefinitionUnderRandomParameters) {
  for (const int vocab : {5, 64, 1003, 6000}) {
    Sampler sampler(vocab);
    for (std::uint64_t seed = 0; seed < 400; ++seed) {
      SCOPED_TRACE("vocab " + std::to_string(vocab) + ", seed " + std::to_string(seed));
      Rng rng(seed, static_cast<std::uint64_t>(vocab));
      const std::vector<float> logits = random_logits(rng, vocab, 1 + 6 * rng.uniform());
      wire::SamplingParams p;
      const auto maybe = [&] { return rng.below(2) == 0; };
      const auto token = [&] { return static_cast<TokenId>(rng.below(static_cast<std::uint64_t>(vocab))); };
      p.temperature = maybe() ? 1.0f : static_cast<float>(0.05 + 2 * rng.uniform());
      if (maybe()) p.top_p = static_cast<float>(rng.uniform());
      if (maybe()) p.top_k = 1 + static_cast<int>(rng.below(static_cast<std::uint64_t>(vocab) + 3));
      if (maybe()) p.top_k = 1 + static_cast<int>(rng.below(20));
      if (rng.below(4) == 0) p.min_p = static_cast<float>(rng.uniform() * 0.3);
      if (maybe()) p.repetition_penalty = static_cast<float>(0.8 + rng.uniform());
      if (maybe()) p.presence_penalty = static_cast<float>(rng.uniform() * 2 - 1);
      if (maybe()) p.frequency_penalty = static_cast<float>(rng.uniform() * 2 - 1);
      if (maybe()) p.logit_bias = {{token(), 3.5f}, {token(), -2.25f}};
      p.min_tokens = static_cast<int>(rng.below(6));
      p.stop_token_ids = {token()};
      p.eos_ids = {token()};
      p.ignore_eos = maybe();
      std::vector<TokenId> ids(1 + rng.below(30));
      for (TokenId& id : ids) id = token();
      const int n_prompt = 1 + static_cast<int>(rng.below(ids.size()));
      const std::uint64_t key = rng.next_u64();
      const int choice = static_cast<int>(rng.below(5));
      const Oracle oracle(logits, p, ids, n_prompt);
      EXPECT_EQ(sample(sampler, logits, p, ids, n_prompt, key, choice).token,
                oracle.at(philox_uniform(key, choice, static_cast<std::uint32_t>(ids.size()))));
    }
  }
}

TEST(Sampler, GreedyTakesTheLowestIndexAmongEquals) {
  Sampler sampler(100);
  wire::SamplingParams p;
  p.temperature = 0;
  for (const int at : {0, 3, 15, 16, 63, 96, 99}) {
    std::vector<float> logits(100, -1.0f);
    for (int i = at; i < 100; i += 7) logits[static_cast<std::size_t>(i)] = 2.0f;
    EXPECT_EQ(sample(sampler, logits, p, {1}, 1).token, at);
  }
  std::vector<float> nothing(100, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(sample(sampler, nothing, p, {1}, 1).token, 0);
  nothing[40] = std::numeric_limits<float>::quiet_NaN();
  nothing[41] = -5;
  EXPECT_EQ(sample(sampler, nothing, p, {1}, 1).token, 41);
  p.temperature = 1;
  EXPECT_EQ(sample(sampler, nothing, p, {1}, 1).token, 41);
}

TEST(Sampler, GreedyFollowsPenaltiesAndBias) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Rng rng(seed);
    Sampler sampler(50);
    const auto logits = random_logits(rng, 50);
    wire::SamplingParams p;
    p.temperature = 0;
    p.repetition_penalty = 1.3f;
    p.frequency_penalty = 0.7f;
    std::vector<TokenId> ids(20);
    for (TokenId& id : ids) id = static_cast<TokenId>(rng.below(50));
    wire::SamplingParams at_one = p;
    at_one.temperature = 1;  // the oracle divides by it
    EXPECT_EQ(sample(sampler, logits, p, ids, 10).token, Oracle(logits, at_one, ids, 10).greedy()) << seed;
  }
}

// Pearson's chi-square of 40,000 draws at consecutive positions; seeds are fixed, so this either always passes or never.
TEST(Sampler, DrawsFollowTheDistribution) {
  Rng rng(3);
  constexpr int kVocab = 40, kDraws = 40000;
  const std::vector<float> logits = random_logits(rng, kVocab, 2);
  wire::SamplingParams plain, cut;
  cut.temperature = 0.7f;
  cut.top_k = 25;
  cut.top_p = 0.9f;
  for (const wire::SamplingParams& p : {plain, cut}) {
    for (const std::uint64_t seed : {1u, 2u, 3u}) {
      Sampler sampler(kVocab);
      std::vector<int> count(kVocab, 0);
      std::vector<TokenId> ids = {0};
      for (int i = 0; i < kDraws; ++i) {
        ++count[static_cast<std::size_t>(sample(sampler, logits, p, ids, 1, seed).token)];
        ids.push_back(0);
      }
      const Oracle oracle(logits, p, {0}, 1);
      double chi = 0;
      int cells = 0;
      for (std::size_t i = 0; i < kVocab; ++i) {
        if (oracle.probability[i] == 0) {
          EXPECT_EQ(count[i], 0);
          continue;
        }
        const double expected = oracle.probability[i] * kDraws;
        chi += (count[i] - expected) * (count[i] - expected) / expected;
        ++cells;
      }
      ASSERT_GT(cells, 5);
      // Mean k, variance 2k: five standard deviations.
      EXPECT_LT(chi, cells - 1 + 5 * std::sqrt(2.0 * (cells - 1))) << "seed " << seed;
    }
  }
}

TEST(Sampler, SeedChoiceAndPositionEachChangeTheDraw) {
  Sampler sampler(1000);
  const std::vector<float> flat(1000, 0.0f);
  const wire::SamplingParams p;
  const TokenId base = sample(sampler, flat, p, {1, 2}, 1, 5, 0).token;
  EXPECT_EQ(sample(sampler, flat, p, {3, 4}, 2, 5, 0).token, base);  // ids do not matter, their number does
  EXPECT_NE(sample(sampler, flat, p, {1, 2, 3}, 1, 5, 0).token, base);
  EXPECT_NE(sample(sampler, flat, p, {1, 2}, 1, 6, 0).token, base);
  EXPECT_NE(sample(sampler, flat, p, {1, 2}, 1, 5, 1).token, base);
}

TEST(Sampler, LogprobsAreOfTheRawDistribution) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Rng rng(seed);
    constexpr int kVocab = 500;
    Sampler sampler(kVocab);
    const std::vector<float> logits = random_logits(rng, kVocab);
    wire::SamplingParams p;
    p.temperature = 0.3f;
    p.top_k = 5;
    p.repetition_penalty = 1.5f;
    p.logprobs = 7;
    const Sampled out = sample(sampler, logits, p, {1, 2, 3}, 2, seed);
    double total = 0;
    for (const float l : logits) total += std::exp(static_cast<double>(l));
    const auto expected = [&](TokenId id) { return static_cast<double>(logits[static_cast<std::size_t>(id)]) - std::log(total); };
    // Float results of magnitude below 32, plus the relative error of the exponential.
    constexpr double kTolerance = 32 * 0x1p-24 + 2e-7;
    ASSERT_TRUE(out.logprob.has_value());
    EXPECT_NEAR(*out.logprob, expected(out.token), kTolerance);
    std::vector<TokenId> order(kVocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](TokenId a, TokenId b) { return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)]; });
    ASSERT_EQ(out.top.size(), 7u);
    for (std::size_t i = 0; i < 7; ++i) {
      EXPECT_EQ(out.top[i].token, order[i]);
      EXPECT_NEAR(out.top[i].logprob, expected(order[i]), kTolerance);
    }
  }
}

TEST(Sampler, WorkSpaceLeavesNoTrace) {
  Rng rng(11);
  Sampler used(300), fresh(300);
  wire::SamplingParams p, heavy;
  heavy.repetition_penalty = 2;
  heavy.presence_penalty = 1;
  heavy.top_k = 3;
  heavy.logit_bias = {{4, 50.0f}};
  const auto a = random_logits(rng, 300), b = random_logits(rng, 300);
  sample(used, a, heavy, {4, 5, 6, 4}, 1, 1);
  p.presence_penalty = 0.5f;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_EQ(sample(used, b, p, {7, 8, 9}, 1, seed).token, sample(fresh, b, p, {7, 8, 9}, 1, seed).token);
  }
}

}  // namespace
}  // namespace baton::engine
