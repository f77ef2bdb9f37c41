#pragma once
// What runs next: the engine's decisions, as a pure function of events. No clock, thread, device or log; `now` is passed in.
//
//   requests in:  add(), reserve() / grant() / start_decode(), finish_choice(), release()
//   plans out:    schedule() -> StepPlan, one at a time;  results in: on_result()
//   events out:   outputs(), which the shell delivers and clears
//
// A sequence needs its tokens [computed, ids.size()) computed; where the last of them is, the next one is sampled. Decoding, a prompt, a
// prompt behind a prefix hit, a continuation and a recomputation after preemption differ in those two numbers only.
//
// Order. Sequences that continue (their ids hold output already) come before those that begin: a client waits amid its stream. Of the
// others the one that is due first: its arrival, the time that its prompt takes alone (10 s at most; nothing where whole prompts run), and
// 10 s for each step of its priority, of which six count in either direction. So a short prompt does not wait behind the chunks of a long
// one that has only just come, whoever came kAgeing before another is ahead of it, and nobody waits for ever. Who is ahead is computed
// first, admitted first, and preempted last.
//
// Blocks. A sequence takes those of all its ids at admission, and one more on demand as it grows; where there is none, the last in order of
// the running sequences is preempted: it gives back everything, and computes its ids again later. Never preempted is what someone else
// reads or writes: a hand-off source from its admission (it never grows) until release(), a target from grant() to start_decode(). Credit
// of reserve() is never lent out, so grant() cannot fail for want of blocks. Hence no deadlock: the first sequence can always run, once
// others' hand-offs end.

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "engine/step.h"
#include "engine/types.h"
#include "kv/block_pool.h"
#include "wire/generate.h"
#include "wire/prefix_hash.h"

namespace baton::engine {

enum class Purpose : std::uint8_t { kGenerate, kHandoffSource, kHandoffTarget };

// An event of one request, in order. After Done nothing follows.
struct Output {
  struct Started {
    std::int32_t cached_tokens = 0;
  };
  struct PromptLogprobs {
    std::vector<std::optional<wire::TokenEvent>> entries;
  };
  struct First {  // a hand-off source's last event, unless it fails
    std::vector<FirstToken> tokens;
  };
  struct Preempted {  // the choice waits for KV blocks again
    int choice = 0;
  };
  struct Done {
    Status status;
  };
  SeqId request;
  std::variant<Started, PromptLogprobs, First, wire::TokenEvent, Preempted, wire::FinishEvent, Done> event;
};

class Scheduler {
 public:
  static constexpr Duration kAgeing = std::chrono::seconds(130);

  explicit Scheduler(const EngineOptions& options);
  ~Scheduler();

  // --- requests
  // kInvalidArgument: can never run here, and why. kResourceExhausted: the queue is full. kUnavailable: the executor has failed.
  Result<SeqId> add(wire::GenerateRequest request, Purpose purpose, TimePoint now);
  Status reserve(LeaseId lease, const wire::GenerateRequest& request);
  void unreserve(LeaseId lease);
  // The request's deadline counts from `now`.
  Result<Grant> grant(LeaseId lease, wire::GenerateRequest request, TimePoint now);
  // The first tokens are not repeated as events; their finishes are.
  Status start_decode(SeqId request, std::vector<FirstToken> first);
  // Ends one choice with FinishReason::kStop; does nothing if it has ended or was never there.
  void finish_choice(SeqId request, int choice);
  // Ends the request without an event, in any state; idempotent. Blocks of a running step go back when it has ended.
  void release(SeqId request);
  // Ends those whose deadline has come with kDeadlineExceeded (a hand-off source keeps its blocks until release()).
  void expire(TimePoint now);
  TimePoint next_deadline() const;

  // --- steps
  // The next step, or null: there is nothing to do, or a step is running. Stays valid until its result.
  const StepPlan* schedule();
  const StepPlan& plan() const { return plan_; }
  bool step_running() const { return step_running_; }
  // Takes the log-probabilities out of `result`. A failed one ends every request with kUnavailable, for good.
  void on_result(StepResult& result);

  // How many blocks the first prompt that waits, a running sequence or a refused reservation lacked since it was asked last. Whoever holds
  // sources that can be computed again may release some.
  std::int32_t take_blocks_short() { return std::exchange(blocks_short_, 0); }

  std::vector<Output>& outputs() { return outputs_; }
  // The blocks of a request's prompt; empty if it is unknown or waiting.
  std::span<const BlockId> blocks(SeqId request) const;
  EngineStatus status() const;
  // Without hand-off sources, and without targets before start_decode().
  std::vector<SequenceHold> holds() const;
  bool idle() const { return groups_.empty(); }
  // Verifies that the pool's references are those of the sequences, and the credit. For tests.
  Status check() const;
  const kv::BlockPool& pool() const { return pool_; }

 private:
  struct Group;     // a request
  struct Sequence;  // one of its choices; before the first token, one for all of them
  struct Lease {
    std::int32_t blocks = 0;
    int slots = 0;
  };

  // scheduler.cc: requests
  Status validate(const wire::GenerateRequest& request, Purpose purpose) const;
  std::int32_t credit(const wire::GenerateRequest& request) const;
  Group& make_group(wire::GenerateRequest request, Purpose purpose, TimePoint now);
  Group* find(SeqId request) const;
  void set_deadline(Group& group, TimePoint now);
  void close(Group& group);            // detaches its sequences and forgets it
  void detach(Sequence& sequence);     // leaves its queue; blocks go back, after the running step where that has them
  void give_back(Sequence& sequence);  // its blocks, now
  static bool before(const Sequence& a, const Sequence& b);
  void enqueue(std::vector<Sequence*>& queue, Sequence& sequence);
  void dequeue(Sequence& sequence);  // from the one its state names
  void fail_all(const Status& status);

  // scheduler_step.cc: planning and results
  std::int32_t blocks_for(std::int64_t tokens) const;
  std::int32_t spare() const;  // blocks that may be taken: available and not promised
  int slots_used() const;
  void plan_prefills();
  bool admit(Sequence& sequence);
  bool grow(Sequence& sequence);
  void preempt(Sequence& sequence);
  std::int32_t prefill_budget(int decode_rows) const;
  void plan_decodes();
  void plan_prefill(Sequence& sequence);
  void add_row(Sequence& sequence, std::int32_t end);
  void learn_speed(const StepResult& result);
  void extend_chain(Sequence& sequence);
  void publish(Sequence& sequence);
  void take_prompt_logprobs(Sequence& sequence, const StepRow& row, std::vector<Sampled>& entries);
  void take_samples(Sequence& sequence, std::vector<Sampled>& sampled);
  void hand_off(Sequence& sequence, std::vector<Sampled>& sampled);
  // The sequences of choices 1.. with the parent's blocks shared, the partial last one to be copied.
  void fork(Sequence& parent);
  void append(Sequence& sequence, TokenId token, const std::optional<wire::FinishEvent>& finish);
  std::optional<wire::FinishEvent> finish_of(const Group& group, int choice, std::int64_t length, TokenId token) const;
  void end_choice(Sequence& sequence, wire::FinishEvent finish);

  template <class Event>
  void emit(const Group& group, Event event);

  EngineOptions options_;
  kv::BlockPool pool_;
  std::map<SeqId, std::unique_ptr<Group>> groups_;
  std::vector<std::unique_ptr<Group>> graveyard_;  // over, but the running step has pointers into them
  std::vector<Sequence*> waiting_, running_;       // in order
  std::map<LeaseId, Lease> leases_;
  std::set<std::pair<TimePoint, SeqId>> deadlines_;
  std::int32_t promised_blocks_ = 0;  // credit of leases
  int promised_slots_ = 0;            // of leases, and of grants that do not decode yet
  int preempted_waiting_ = 0;
  std::uint64_t next_id_ = 1;

  StepPlan plan_;
  std::vector<Sequence*> planned_;  // in the order of plan_.rows
  bool step_running_ = false;
  std::int32_t tokens_left_ = 0, logit_rows_left_ = 0;  // of the step being planned
  int decode_rows_ = 0;
  bool preempted_now_ = false;
  std::int32_t blocks_short_ = 0;
  std::int32_t prefill_tokens_ = 0;
  std::int64_t decode_step_ns_ = 0, prefill_token_ns_ = 0;  // measured; 0: not yet

  std::vector<Output> outputs_;
  EngineStatus counters_;
};

}  // namespace baton::engine
