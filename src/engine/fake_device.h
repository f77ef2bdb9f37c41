#pragma once
// For tests: a device whose KV can be checked, and an executor that runs by hand.
//
// FakeDevice stores for each token in its pool a hash of the whole prefix, computed from what it reads of the token before it in the pool.
// The token that it samples is a function of the last one's hash, the seed and the choice. So a sequence gets the tokens of reference() if
// and only if every block that it was given held what it should, whatever the chunks, neighbours, prefix hits, forks, hand-offs and
// preemptions.

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "engine/step.h"
#include "net/event_loop.h"

namespace baton::engine {

// A prompt of ascending ids from `first`.
inline wire::GenerateRequest request(int prompt, int max_tokens, TokenId first = 1) {
  wire::GenerateRequest r;
  r.ids.resize(static_cast<std::size_t>(prompt));
  std::iota(r.ids.begin(), r.ids.end(), first);
  r.n_prompt = prompt;
  r.sampling.max_tokens = max_tokens;
  return r;
}

class FakeDevice {
 public:
  static constexpr TokenId kVocab = 64;

  FakeDevice(std::int32_t blocks, std::int32_t block_tokens)
      : block_tokens_(block_tokens), pool_(static_cast<std::size_t>(blocks * block_tokens), 0) {}

  static std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
    std::uint64_t x = a * 0x9E3779B97F4A7C15u ^ (b + 0x632BE59BD9B4E019u);
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9u;
    return x ^ (x >> 32);
  }
  static std::uint64_t prefix(std::uint64_t before, TokenId id) { return mix(before, static_cast<std::uint64_t>(id) + 1); }
  static TokenId sample(std::uint64_t hash, std::uint64_t seed, int choice) {
    return static_cast<TokenId>(mix(mix(hash, seed), static_cast<std::uint64_t>(choice)) % kVocab);
  }

  // The tokens that `choice` (absolute) of the request gets, stop token included.
  static std::vector<TokenId> reference(const wire::GenerateRequest& request, int choice, std::int64_t max_model_len) {
    std::uint64_t hash = 0;
    for (const TokenId id : request.ids) hash = prefix(hash, id);
    std::vector<TokenId> out;
    auto length = static_cast<std::int64_t>(request.ids.size());
    const wire::SamplingParams& p = request.sampling;
    const auto in = [](const std::vector<TokenId>& v, TokenId t) { return std::find(v.begin(), v.end(), t) != v.end(); };
    for (;;) {
      const TokenId token = sample(hash, request.seed, choice);
      out.push_back(token);
      hash = prefix(hash, token);
      ++length;
      const std::int64_t generated = length - request.n_prompt;
      if (generated > p.min_tokens && (in(p.stop_token_ids, token) || (!p.ignore_eos && in(p.eos_ids, token)))) return out;
      if (generated >= p.max_tokens || length >= max_model_len) return out;
    }
  }

  // Runs a step. What is wrong with the plan itself goes to errors().
  void run(const StepPlan& plan, StepResult& result) {
    result.step = plan.step;
    result.status = {};
    result.rows.clear();
    for (const auto& copy : plan.copies) {
      for (std::int32_t i = 0; i < block_tokens_; ++i) pool_[slot(copy.to, i)] = pool_[slot(copy.from, i)];
    }
    std::set<std::size_t> written;
    int tokens = 0;
    for (const StepRow& row : plan.rows) {
      if (row.begin >= row.end || row.end > static_cast<std::int32_t>(row.ids->size())) errors_.push_back("bad row");
      if (static_cast<std::int32_t>(row.blocks->size()) * block_tokens_ < row.end) errors_.push_back("too few blocks");
      std::uint64_t hash = row.begin > 0 ? pool_[at(row, row.begin - 1)] : 0;
      std::uint64_t expected = 0;
      for (std::int32_t t = 0; t < row.begin; ++t) {
        expected = prefix(expected, (*row.ids)[static_cast<std::size_t>(t)]);
        if (pool_[at(row, t)] != expected) errors_.push_back("context of sequence " + std::to_string(row.seq.value) + " is not its own");
      }
      for (std::int32_t t = row.begin; t < row.end; ++t) {
        hash = prefix(hash, (*row.ids)[static_cast<std::size_t>(t)]);
        pool_[at(row, t)] = hash;
        if (!written.insert(at(row, t)).second) errors_.push_back("a slot is written twice in one step");
        ++tokens;
      }
      StepResult::Row out;
      out.seq = row.seq;
      if (row.sample) {
        for (int i = 0; i < row.sample->choices; ++i) {
          out.sampled.push_back(
              {.token = sample(hash, row.sample->seed, row.sample->first_choice + i), .logprob = std::nullopt, .top = {}});
        }
      }
      if (row.prompt_logprobs >= 0) {
        for (std::int32_t t = row.begin + 1; t <= row.end && t < static_cast<std::int32_t>(row.ids->size()); ++t) {
          out.prompt.push_back({.token = (*row.ids)[static_cast<std::size_t>(t)], .logprob = -static_cast<float>(t), .top = {}});
        }
      }
      result.rows.push_back(std::move(out));
    }
    computed_tokens_ += tokens;
    result.elapsed = Duration(200 + 100 * tokens);
  }

  // The KV of tokens [begin, end), from another device's pool.
  void copy_from(const FakeDevice& other, std::span<const BlockId> from, std::span<const BlockId> to, std::int32_t begin,
                 std::int32_t end) {
    for (std::int32_t t = begin; t < end; ++t) {
      const auto f = static_cast<std::size_t>(t / other.block_tokens_), d = static_cast<std::size_t>(t / block_tokens_);
      pool_[slot(to[d], t % block_tokens_)] = other.pool_[other.slot(from[f], t % other.block_tokens_)];
    }
  }

  const std::vector<std::string>& errors() const { return errors_; }
  std::int64_t computed_tokens() const { return computed_tokens_; }

 private:
  std::size_t slot(BlockId block, std::int32_t offset) const { return static_cast<std::size_t>(block.value * block_tokens_ + offset); }
  std::size_t at(const StepRow& row, std::int32_t t) const {
    return slot((*row.blocks)[static_cast<std::size_t>(t / block_tokens_)], t % block_tokens_);
  }

  const std::int32_t block_tokens_;
  std::vector<std::uint64_t> pool_;
  std::vector<std::string> errors_;
  std::int64_t computed_tokens_ = 0;
};

// Posted work in order, timers by a clock that only this moves.
class ManualLoop final : public net::Executor {
 public:
  void post(std::function<void()> work) override { work_.push_back(std::move(work)); }
  TimerId after(Duration delay, std::function<void()> work) override {
    timers_.emplace(std::pair(clock_.now() + delay, next_), std::move(work));
    return next_++;
  }
  void cancel(TimerId timer) override {
    std::erase_if(timers_, [timer](const auto& t) { return t.first.second == timer; });
  }
  const Clock& clock() const override { return clock_; }

  // Runs what is posted, and what that posts.
  void run_posted() {
    while (!work_.empty()) {
      const auto work = std::move(work_.front());
      work_.pop_front();
      work();
    }
  }
  // One piece of work, or the next timer; false if there is neither.
  bool run_one() {
    if (!work_.empty()) {
      const auto work = std::move(work_.front());
      work_.pop_front();
      work();
      return true;
    }
    if (timers_.empty()) return false;
    const auto timer = timers_.extract(timers_.begin());
    clock_.set(std::max(clock_.now(), timer.key().first));
    timer.mapped()();
    return true;
  }
  void advance(Duration d) {
    const TimePoint until = clock_.now() + d;
    run_posted();
    while (!timers_.empty() && timers_.begin()->first.first <= until) {
      run_one();
      run_posted();
    }
    clock_.set(until);
  }

 private:
  ManualClock clock_;
  std::deque<std::function<void()>> work_;
  std::map<std::pair<TimePoint, TimerId>, std::function<void()>> timers_;
  TimerId next_ = 1;
};

// Runs steps of a FakeDevice on a ManualLoop, in the time that the device says.
class FakeExecutor final : public StepExecutor {
 public:
  FakeExecutor(net::Executor& loop, FakeDevice& device, int layers = 2) : loop_(loop), device_(device), layers_(layers) {}
  void start(Callbacks callbacks) override { callbacks_ = std::move(callbacks); }
  void submit(const StepPlan& plan) override {
    device_.run(plan, result_);
    if (fail_next_) result_.status = Status(Code::kInternal, "linear: device lost");
    plans_.push_back(plan.rows.size());
    for (int layer = 0; layer < layers_; ++layer) {
      loop_.after(result_.elapsed * (layer + 1) / (layers_ + 1), [this, step = plan.step, layer] { callbacks_.on_layer(step, layer); });
    }
    loop_.after(result_.elapsed, [this] { callbacks_.on_result(result_); });
  }
  void fail_next() { fail_next_ = true; }
  const std::vector<std::size_t>& plans() const { return plans_; }

 private:
  net::Executor& loop_;
  FakeDevice& device_;
  const int layers_;
  Callbacks callbacks_;
  StepResult result_;
  bool fail_next_ = false;
  std::vector<std::size_t> plans_;
};

}  // namespace baton::engine
