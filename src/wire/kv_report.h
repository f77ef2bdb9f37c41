#pragma once
// Who holds the KV of a worker, at one moment: the answer to GET /internal/kv, and a part of the gateway's /debug/kv. Counts of blocks,
// never blocks.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace baton::wire {

// One owner of blocks, or of credit for them (a lease without blocks).
struct KvHold {
  std::string owner;    // "lease" (decode side of a hand-off), "handoff" (prefill side), "retained" (prefill side, unclaimed), "sequence"
  std::string state;    // in the words of docs/kv-ownership.md; of a sequence: waiting, running
  std::string request;  // its id
  std::uint32_t attempt = 0;
  Epoch epoch;
  std::string peer;                   // the worker at the other end, where it is known
  std::int32_t blocks = 0;            // it holds, those included that others hold too
  double since_ms = 0;                // in this state; of a sequence or a hand-off: here
  double idle_ms = 0;                 // without progress
  std::optional<double> deadline_ms;  // until this state ends by itself; absent where the engine or a copy ends it
};

struct KvReport {
  std::string name;
  Incarnation incarnation;
  std::int32_t block_tokens = 0;
  std::int32_t total = 0, free = 0, cached = 0, held = 0, promised = 0;  // blocks
  bool balanced = true;                    // free + cached + held = total, and what is held is held by somebody
  std::string problem;                     // what does not add up
  std::vector<KvHold> holds;               // longest without progress first, kHoldsMax at most
  std::int32_t more = 0, more_blocks = 0;  // holds that were left out, and their blocks

  static constexpr std::size_t kHoldsMax = 256;
  // Sorts the holds and leaves out what is too much.
  void trim();
};

std::string to_json(const KvReport& report);
Result<KvReport> kv_report_from_json(std::string_view json);

}  // namespace baton::wire
