#pragma once
// How long a client waited for its next token because a worker failed, and for what. Pure.

#include <optional>
#include <string>
#include <vector>

#include "app/chaos/clients.h"
#include "app/chaos/cluster.h"

namespace baton::app {

struct Stall {
  FaultKind kind{};
  std::string stream;  // its id
  std::string served;  // its record
  double gap_ms = 0;   // between two tokens, with the fault between them
  // Of the gap: until the gateway gave the worker up, until another decode worker had reserved, until a prefill worker began, while the
  // prompt and the emitted tokens were computed, and until the next token.
  double noticed_ms = 0, reserved_ms = 0, queued_ms = 0, prefill_ms = 0, resumed_ms = 0;
  double beyond_prefill_ms() const { return gap_ms - prefill_ms; }
};

// The stall of a stream that was running on the decode worker that `fault` befell, and had to move; nothing of another.
std::optional<Stall> find_stall(const StreamOutcome& stream, const Befallen& fault);

}  // namespace baton::app
