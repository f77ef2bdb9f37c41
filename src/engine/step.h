#pragma once
// What the scheduler asks of a device, and what comes back. The executor owns its thread; the simulation has its own with a modelled
// device.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "wire/generate.h"

namespace baton::engine {

// What the sampler needs of a sequence: a function of ids, prompt length and seed, so that it is the same on any worker.
struct SampleSpec {
  const wire::SamplingParams* params = nullptr;
  std::uint64_t seed = 0;
  std::int32_t n_prompt = 0;
  int first_choice = 0;
  int choices = 1;  // > 1: that many first tokens from the same logits
};

// One sequence's part of a step. Pointers stay valid until the step's result has been delivered.
struct StepRow {
  SeqId seq;
  std::int32_t begin = 0, end = 0;               // token positions computed in this step
  const std::vector<TokenId>* ids = nullptr;     // prompt and output so far; ids->size() >= end
  const std::vector<BlockId>* blocks = nullptr;  // its block table
  std::optional<SampleSpec> sample;              // set where `end` is the sequence's end
  std::int32_t prompt_logprobs = -1;             // k >= 0: of each token after `begin` up to min(end, ids' last), and of the k most likely
  bool report_layers = false;                    // hand-off source
};

struct StepPlan {
  std::uint64_t step = 0;
  struct BlockCopy {
    BlockId from, to;
  };
  std::vector<BlockCopy> copies;  // before anything else
  std::vector<StepRow> rows;      // decode rows first
};

struct Sampled {
  TokenId token = 0;
  std::optional<float> logprob;
  std::vector<wire::TokenLogprob> top;
};

struct StepResult {
  std::uint64_t step = 0;
  Status status;  // not ok: the device is dead
  Duration elapsed{};
  struct Row {
    SeqId seq;
    std::vector<Sampled> sampled;  // one a choice, where the row samples
    std::vector<Sampled> prompt;   // prompt_logprobs: entry i is about token begin + i + 1, which is one of `ids`
  };
  std::vector<Row> rows;  // in the plan's order; there may be more of them, of earlier steps
};

class StepExecutor {
 public:
  virtual ~StepExecutor() = default;
  struct Callbacks {
    // The result is the executor's, which uses its memory again; take out of it what you want to keep.
    std::function<void(StepResult&)> on_result;
    // One layer of the running step is in the pool, for all of its rows.
    std::function<void(std::uint64_t step, int layer)> on_layer;
  };
  // Once, before the first submit. Callbacks run on the loop's thread.
  virtual void start(Callbacks callbacks) = 0;
  // One step at a time: the next after on_result. `plan` must stay until then.
  virtual void submit(const StepPlan& plan) = 0;
};

}  // namespace baton::engine
