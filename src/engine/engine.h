#pragma once
// The engine of one worker: continuous batching over a paged KV pool. Its decisions are made by the pure Scheduler (scheduler.h); this
// shell joins it to a StepExecutor, which owns the device's thread. All calls and callbacks are on the loop's thread.
//
// Three ways in, one sequence machinery:
//   generate()      prompt and output here (aggregated)
//   prefill()       the source of a hand-off: computes the prompt, samples the first tokens, then holds the KV until release()
//   reserve() ...   the target of a hand-off: credit, then blocks, then decoding from KV that someone else computed

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "engine/step.h"
#include "engine/types.h"
#include "kv/block_pool.h"
#include "net/event_loop.h"
#include "wire/generate.h"

namespace baton::engine {

// Where a hand-off source reports. Calls come in order: started, layers, first, or failed at any time.
class PrefillSink {
 public:
  virtual ~PrefillSink() = default;
  virtual void on_started(std::int32_t cached_tokens) = 0;
  // The K and V of tokens [begin, end) of one layer are in the pool (cached prefix included: the first report of a layer begins at 0).
  virtual void on_layer(int layer, std::int32_t begin, std::int32_t end) = 0;
  virtual void on_prompt_logprobs(std::vector<std::optional<wire::TokenEvent>> entries) = 0;
  // The first token of each choice, and of each whether it ends there. Comes after the last on_layer.
  using First = FirstToken;
  virtual void on_first(std::vector<First> first) = 0;
  virtual void on_failed(Status status) = 0;
};

class Engine : public wire::Generator {
 public:
  // `pool_blocks` and block size in options are those of the KV pool that `executor` computes on.
  static std::unique_ptr<Engine> create(net::Executor& loop, std::unique_ptr<StepExecutor> executor, const EngineOptions& options);
  ~Engine() override = default;

  // --- aggregated
  std::unique_ptr<wire::GenerateCall> generate(wire::GenerateRequest request, std::shared_ptr<wire::GenerateSink> sink) override = 0;

  // --- source of a hand-off
  // kResourceExhausted when the queue is full, kInvalidArgument when it can never fit. After on_failed the blocks are still held:
  // release().
  virtual Result<SeqId> prefill(wire::GenerateRequest request, std::shared_ptr<PrefillSink> sink) = 0;
  // The blocks of its prompt so far, in order; valid until release().
  virtual std::span<const BlockId> blocks(SeqId seq) const = 0;

  // --- target of a hand-off
  // Credit for the blocks that prompt and output may need: counted, not taken. kResourceExhausted names free and wanted.
  virtual Status reserve(LeaseId lease, const wire::GenerateRequest& request) = 0;
  virtual void unreserve(LeaseId lease) = 0;  // idempotent
  // Turns credit into blocks. The request's timeout counts from here, though nothing is done about it before start_decode().
  virtual Result<Grant> grant(LeaseId lease, const wire::GenerateRequest& request) = 0;
  // All of the prompt's KV is in the granted blocks and verified: publishes them to the prefix cache, forks per choice, decodes.
  // Events (tokens after the first, finishes) go to `sink`; the handle cancels.
  virtual std::unique_ptr<wire::GenerateCall> start_decode(SeqId seq, std::vector<PrefillSink::First> first,
                                                           std::shared_ptr<wire::GenerateSink> sink) = 0;

  // Ends a sequence of prefill() or grant() in any state; idempotent. Its blocks are reused only after the step that is running has ended.
  virtual void release(SeqId seq) = 0;

  // `lacking` is told how many blocks a prompt that waits, a running sequence or a reservation lacks; it may release sequences of prefill()
  // that can be computed again. A reservation is tried once more when it returns. Empty: nobody is told.
  virtual void on_blocks_lacking(std::function<void(std::int32_t blocks)> lacking) = 0;
  // It may have more to release than when it was told last: who still lacks blocks is looked at again, on a later turn.
  virtual void ask_again() = 0;

  virtual EngineStatus status() const = 0;
  virtual std::vector<SequenceHold> holds() const = 0;
  // Verifies the pool's books against the sequences, O(blocks): for tests and the simulation.
  virtual Status check() const = 0;
  virtual const kv::BlockPool& pool() const = 0;
};

}  // namespace baton::engine
