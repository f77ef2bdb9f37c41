#pragma once
// The Generator interface: ids in, tokens out. api talks to any Generator; the gateway implements it over workers, an engine implements it
// directly. A GenerateRequest is complete: whoever holds it, with the ids emitted so far appended, continues exactly where another stopped.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"

namespace baton::wire {

inline constexpr int kLogprobsMax = 1024;                         // of one token, and of each token of a prompt
inline constexpr Duration kTimeoutMax = std::chrono::hours(168);  // a deadline that is further away is no deadline

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;
  int top_k = 0;  // 0: all
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // over prompt and output
  float presence_penalty = 0.0f;    // over output
  float frequency_penalty = 0.0f;   // over output
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::vector<TokenId> stop_token_ids;  // the request's own
  std::vector<TokenId> eos_ids;         // the model's; not used with ignore_eos
  bool ignore_eos = false;
  int max_tokens = 16;
  int min_tokens = 0;        // stop ids and EOS are masked before
  int logprobs = -1;         // -1: none; k: of the token and of the k most likely
  int prompt_logprobs = -1;  // the same for the prompt's tokens
  bool operator==(const SamplingParams&) const = default;
};

struct GenerateRequest {
  std::string id;             // one id everywhere
  std::vector<TokenId> ids;   // prompt, then what was already emitted
  std::int32_t n_prompt = 0;  // how many of `ids` are the prompt
  SamplingParams sampling;
  std::uint64_t seed = 0;  // drawn by api when the client gave none
  int first_choice = 0;    // index of the first of `n` choices (a continuation of choice 3 has first_choice 3, n 1)
  int n = 1;
  Duration timeout = std::chrono::hours(1);  // what is left of the request's deadline when it is sent
  std::string cache_salt;                    // separates prefix caches of tenants
  int priority = 0;                          // lower first
  std::int32_t tenant = 0;                   // whose request it is, for fairness in the gateway; not told to workers
  std::string traceparent;                   // W3C trace context under which it was sent (trace_context.h); empty: none
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;  // natural, of the distribution before temperature and truncation
};

struct TokenEvent {
  int choice = 0;
  std::int32_t position = 0;  // absolute, in prompt + output: the first generated token stands at n_prompt
  TokenId token = 0;
  std::optional<float> logprob;
  std::vector<TokenLogprob> top;
};

enum class FinishReason : std::uint8_t { kStop, kLength, kAbort };
struct FinishEvent {
  int choice = 0;
  FinishReason reason = FinishReason::kStop;
  std::optional<TokenId> stop_token;  // the stop id or EOS that ended it (the token itself is not part of the text)
};

// One attempt to hand a prompt's KV over, as one of its two workers saw it. D reports each attempt when it ends, P that of its leg; of a
// prompt that is computed and decoded on one worker only the prefill is there. Times are microseconds since that worker took the leg, whose
// clock is nobody else's; -1: it did not happen, or this side does not see it.
struct HandoffTimes {
  Attempt attempt{1};
  Epoch epoch;                   // of D's grant; zero: there was none
  std::int64_t started_us = -1;  // the prompt entered its first batch
  std::int64_t attached_us = -1;
  std::int64_t granted_us = -1;
  std::int64_t computed_us = -1;  // the KV of the whole prompt was there
  std::int64_t first_token_us = -1;
  std::int64_t commit_us = -1;    // P had said everything; D had heard it
  std::int64_t ended_us = -1;     // all of it proven, or given up
  std::optional<Status> failure;  // why it was given up
  // By layer. P: when its last part was computed, and announced to D. D: when its last part was verified, and how many bytes were.
  std::vector<std::int64_t> ready_us, announced_us, verified_us, verified_bytes;
  std::vector<std::pair<std::int32_t, std::int64_t>> chunks;  // P: (prompt tokens computed, when), a step each

  // Of a deeper model the first layers are kept, of a longer prompt the first steps.
  static constexpr std::size_t kLayersMax = 256, kChunksMax = 64;
};

// How a request was served; grows while it runs. Times are offsets from the request's arrival at the gateway, -1 where it did not happen.
struct Served {
  std::string prefill_worker, decode_worker;  // names; equal or one empty when aggregated
  bool disaggregated = false;
  int attempts = 1;
  std::int32_t prompt_tokens = 0, cached_tokens = 0;  // cached: found in the computing worker's prefix cache
  std::int64_t kv_bytes = 0;                          // handed over
  std::int64_t kv_bytes_early = 0;                    // of those, before the prompt's last layer was computed
  double reserved_ms = -1, prefill_start_ms = -1, prefill_end_ms = -1, committed_ms = -1, first_token_ms = -1;
  std::string fallback;                 // said by the gateway, not on the wire: why one worker did both, where two roles should
  std::optional<HandoffTimes> handoff;  // from workers to the gateway, whose record of the request keeps it
};

// Events of one call, in order, on the loop's thread. After on_done nothing follows.
class GenerateSink {
 public:
  virtual ~GenerateSink() = default;
  virtual void on_served(const Served& served) = 0;  // placement first, then whenever more is known
  // One entry a prompt token; the first has no log-probability.
  virtual void on_prompt_logprobs(std::vector<std::optional<TokenEvent>> entries) = 0;
  virtual void on_token(TokenEvent event) = 0;
  // The choice had to give its KV back and waits to go on: its next token may take long, though nothing is lost.
  virtual void on_preempted(int choice) { (void)choice; }
  virtual void on_finish(FinishEvent event) = 0;  // one per choice
  virtual void on_done(Status status) = 0;        // ok: every choice has finished
};

// Cancels when destroyed; no event after that.
class GenerateCall {
 public:
  virtual ~GenerateCall() = default;
  // Ends one choice early (a stop string was found in its text); the others go on.
  virtual void finish_choice(int choice) = 0;
};

class Generator {
 public:
  virtual ~Generator() = default;
  // Never calls the sink before returning.
  virtual std::unique_ptr<GenerateCall> generate(GenerateRequest request, std::shared_ptr<GenerateSink> sink) = 0;
};

}  // namespace baton::wire
