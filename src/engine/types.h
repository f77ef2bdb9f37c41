#pragma once
// What an engine is told and what it says of itself.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "wire/generate.h"

namespace baton::engine {

struct EngineOptions {
  std::int64_t max_model_len = 2048;
  std::int32_t max_num_seqs = 64;                      // running at once; a request of n choices counts as n
  std::int32_t max_num_batched_tokens = 512;           // of a step; taken as max_num_seqs where it is less
  std::int32_t max_chunk = 0;                          // of one sequence's prompt in one step; 0: no limit of its own
  Duration max_step = std::chrono::milliseconds(100);  // time budget of a step, from measured speed; 0: none
  // false: prompts are computed whole, before any decode step and never in one with it, whatever max_step and max_chunk say; several in a
  // step up to max_num_batched_tokens, a longer one alone. What engines did before there were chunks, and what Baton is compared with.
  bool chunked_prefill = true;
  std::int32_t max_waiting = 4096;  // beyond: kResourceExhausted
  std::int32_t max_logit_rows =
      0;  // rows of logits that the executor can give in one step; 0: max_num_seqs. Bounds chunks with prompt_logprobs
  std::int32_t kv_blocks = 0, block_tokens = 0;  // of the pool that the executor computes on
  std::int32_t vocab = 0;                        // ids outside are refused; 0: not checked
  bool prefix_cache = true;
};

struct EngineStatus {
  int running = 0, waiting = 0;
  int requests = 0;  // in any state, those included that only hold blocks
  std::int32_t blocks_total = 0, blocks_free = 0, blocks_cached = 0, blocks_held = 0, blocks_reserved = 0;
  bool balanced = true;  // free + cached + held = total, and nothing is held or promised where there is no request or reservation
  std::int64_t queued_prefill_tokens = 0;
  double prefill_tokens_per_s = 0;
  std::uint64_t steps = 0, prompt_tokens = 0, prompt_tokens_computed = 0, generation_tokens = 0, preemptions = 0;
  std::uint64_t prefix_queries = 0, prefix_hits = 0;  // in tokens
  bool failed = false;                                // the executor died; nothing runs any more
  Duration step_running{};                            // age of the running step; 0: none runs
  Duration step_budget{};        // what it may take: max_step, what steps took of late, or step_expected, whichever is most
  Duration step_expected{};      // of the running step, where max_step does not bound it (whole prompts); 0: nothing is expected
  bool step_unmeasured = false;  // the running step is the first of its kind: nobody knows what it takes
};

// A request that has blocks and is not in the hands of a hand-off's ledger.
struct SequenceHold {
  std::string request_id;
  std::string_view state;   // running, waiting (a choice of it was preempted), ending (the running step still has it)
  std::int32_t blocks = 0;  // distinct ones
  TimePoint since{}, deadline = kNever;
};

// The first token of one choice, and whether the choice ends with it.
struct FirstToken {
  wire::TokenEvent token;
  std::optional<wire::FinishEvent> finish;
};

// What D grants: it pinned `cached_tokens` of prefix (a multiple of the block size) and took blocks for the rest of the prompt.
struct Grant {
  SeqId seq;
  std::int32_t cached_tokens = 0;
  std::vector<BlockId> blocks;  // of the whole prompt, cached ones first
};

}  // namespace baton::engine
