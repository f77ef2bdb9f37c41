#pragma once
// For worker tests: a step executor whose KV is real memory in a real pool, and whose tokens depend on every byte of it. A token is right
// if and only if the KV of all positions, layers and heads before it is, wherever that KV was computed and whoever moved it.

#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/step.h"
#include "net/event_loop.h"
#include "transfer/test_pool.h"

namespace baton::worker::testing {

inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t x = (a ^ (b + 0x9E3779B97F4A7C15u)) * 0xBF58476D1CE4E5B9u;
  x ^= x >> 31;
  x *= 0x94D049BB133111EBu;
  return x ^ (x >> 29);
}
inline constexpr TokenId kVocab = 5000;

// What the rows of one token hold: a hash chain over the ids, spread over its layers and heads.
inline std::uint64_t row_word(std::uint64_t chain, int layer, int head, device::KvKind kind) {
  return mix(chain, static_cast<std::uint64_t>(layer) * 1000 + static_cast<std::uint64_t>(head) * 2 + static_cast<std::uint64_t>(kind));
}

class KvExecutor final : public engine::StepExecutor {
 public:
  KvExecutor(net::Executor& loop, const transfer::testing::TestPool& pool) : loop_(loop), pool_(pool) {}
  ~KvExecutor() override { *alive_ = false; }

  void start(Callbacks callbacks) override { callbacks_ = std::move(callbacks); }
  void submit(const engine::StepPlan& plan) override {
    plan_ = &plan;
    layer_ = 0;
    next();
  }

  // Work is done a layer at a time; with a budget set, it stops when that many layers are done.
  void set_budget(int layers) { budget_ = layers; }
  void run_on() {
    budget_ = -1;
    if (std::exchange(stalled_, false)) next();
  }
  bool stalled() const { return stalled_; }
  std::int64_t prompt_tokens() const { return prompt_tokens_; }

  static std::vector<TokenId> reference(const wire::GenerateRequest& r, const device::KvSpec& spec, int choice, int count) {
    std::vector<TokenId> ids = r.ids, out;
    for (int i = 0; i < count; ++i) {
      std::uint64_t sum = 0, chain = 0;
      for (TokenId id : ids) {
        chain = mix(chain, static_cast<std::uint64_t>(id));
        for (int l = 0; l < spec.layers; ++l) {
          for (int h = 0; h < spec.kv_heads; ++h) {
            for (auto k : {device::KvKind::kKey, device::KvKind::kValue}) sum = mix(sum, row_word(chain, l, h, k));
          }
        }
      }
      out.push_back(sample(sum, r.seed, choice));
      ids.push_back(out.back());
    }
    return out;
  }

 private:
  static TokenId sample(std::uint64_t sum, std::uint64_t seed, int choice) {
    return static_cast<TokenId>(mix(mix(sum, seed), static_cast<std::uint64_t>(choice)) % kVocab);
  }
  void next() {
    if (budget_ == 0) {
      stalled_ = true;
      return;
    }
    if (budget_ > 0) --budget_;
    loop_.post([this, alive = alive_] {
      if (*alive) layer();
    });
  }
  void layer() {
    const auto& spec = pool_.view().spec;
    if (layer_ == 0) {
      for (const auto& c : plan_->copies) {
        for (int l = 0; l < spec.layers; ++l) {
          for (int h = 0; h < spec.kv_heads; ++h) {
            for (auto k : {device::KvKind::kKey, device::KvKind::kValue}) {
              for (int t = 0; t < spec.block_tokens; ++t)
                std::memcpy(pool_.row(l, c.to, h, k, t), pool_.row(l, c.from, h, k, t), spec.row_bytes());
            }
          }
        }
      }
    }
    for (const auto& row : plan_->rows) {
      std::uint64_t chain = 0;
      for (std::int32_t t = 0; t < row.end; ++t) {
        chain = mix(chain, static_cast<std::uint64_t>((*row.ids)[static_cast<std::size_t>(t)]));
        if (t < row.begin) continue;
        if (layer_ == 0 && t < static_cast<std::int32_t>(row.ids->size()) - 1) ++prompt_tokens_;
        for (int h = 0; h < spec.kv_heads; ++h) {
          for (auto k : {device::KvKind::kKey, device::KvKind::kValue}) {
            std::uint64_t* words = at(row, layer_, h, k, t);
            for (std::size_t w = 0; w < spec.row_bytes() / 8; ++w) words[w] = row_word(chain, layer_, h, k) + w;
          }
        }
      }
    }
    callbacks_.on_layer(plan_->step, layer_);
    if (++layer_ < spec.layers) return next();
    finish();
  }
  void finish() {
    const auto& spec = pool_.view().spec;
    result_ = engine::StepResult();
    result_.step = plan_->step;
    result_.elapsed = Duration(100);
    for (const auto& row : plan_->rows) {
      engine::StepResult::Row out;
      out.seq = row.seq;
      if (row.sample) {
        std::uint64_t sum = 0;
        for (std::int32_t t = 0; t < row.end; ++t) {
          for (int l = 0; l < spec.layers; ++l) {
            for (int h = 0; h < spec.kv_heads; ++h) {
              for (auto k : {device::KvKind::kKey, device::KvKind::kValue}) {
                const std::uint64_t* words = at(row, l, h, k, t);
                for (std::size_t w = 0; w < spec.row_bytes() / 8; ++w) {
                  if (words[w] - w != words[0]) sum = mix(sum, 0xbad);  // a torn row
                }
                sum = mix(sum, words[0]);
              }
            }
          }
        }
        for (int i = 0; i < row.sample->choices; ++i) {
          out.sampled.push_back({.token = sample(sum, row.sample->seed, row.sample->first_choice + i), .logprob = -0.5f, .top = {}});
        }
      }
      if (row.prompt_logprobs >= 0) {
        for (std::int32_t t = row.begin + 1; t <= row.end && t < static_cast<std::int32_t>(row.ids->size()); ++t) {
          out.prompt.push_back({.token = (*row.ids)[static_cast<std::size_t>(t)], .logprob = -static_cast<float>(t), .top = {}});
        }
      }
      result_.rows.push_back(std::move(out));
    }
    callbacks_.on_result(result_);
  }
  std::uint64_t* at(const engine::StepRow& row, int layer, int head, device::KvKind kind, std::int32_t t) const {
    const int bt = pool_.view().spec.block_tokens;
    return reinterpret_cast<std::uint64_t*>(pool_.row(layer, (*row.blocks)[static_cast<std::size_t>(t / bt)], head, kind, t % bt));
  }

  net::Executor& loop_;
  const transfer::testing::TestPool& pool_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  Callbacks callbacks_;
  const engine::StepPlan* plan_ = nullptr;
  int layer_ = 0, budget_ = -1;
  bool stalled_ = false;
  std::int64_t prompt_tokens_ = 0;
  engine::StepResult result_;
};

}  // namespace baton::worker::testing
