#pragma once
// The scheduler's records of requests; private to scheduler*.cc.

#include <optional>

#include "engine/scheduler.h"

namespace baton::engine {

struct Scheduler::Sequence {
  enum class State : std::uint8_t {
    kWaiting,  // in waiting_, has no blocks
    kRunning,  // in running_
    kAside,    // has blocks, computes nothing: a source after its first token or failure, a target before start_decode()
    kOver,
  };
  Group* group = nullptr;
  SeqId id;
  int choice = 0;  // offset from the request's first_choice
  State state = State::kWaiting;
  bool in_step = false;  // of the running step
  bool preempted = false;
  std::vector<TokenId> ids;
  std::int32_t computed = 0;
  std::vector<BlockId> blocks;
  std::vector<wire::BlockHash> chain;       // of ids' full blocks, as far as needed so far
  std::size_t published = 0;                // blocks offered to the prefix index
  std::optional<StepPlan::BlockCopy> copy;  // to be done before its next row; holds a reference to `from`

  std::int32_t length() const { return static_cast<std::int32_t>(ids.size()); }
  std::int32_t remaining() const { return length() - computed; }
};

struct Scheduler::Group {
  SeqId id;
  Purpose purpose = Purpose::kGenerate;
  wire::GenerateRequest request;  // without its ids, which the sequences have
  TimePoint since{}, deadline = kNever;
  TimePoint due{};         // its place among those that wait
  bool continues = false;  // output was emitted before it came here
  bool started = false;
  bool forked = false;  // each choice has its sequence
  int live = 0;         // choices that have not ended
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<std::optional<wire::TokenEvent>> prompt_logprobs;  // by position, until they are sent
  bool wants_prompt_logprobs = false;

  int slots() const { return forked ? 1 : request.n; }  // of each of its sequences
};

template <class Event>
void Scheduler::emit(const Group& group, Event event) {
  outputs_.push_back({.request = group.id, .event = std::move(event)});
}

}  // namespace baton::engine
