#pragma once
// What must hold of the books that processes keep, whatever happens to them: functions of what a process says of itself and of what is
// true, so that each violation can be planted (checks_test.cc). README.md lists the invariants.

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "engine/types.h"
#include "sim/audit.h"

namespace baton::sim {

struct WorkerBooks {
  std::string_view name;
  engine::EngineStatus engine;
  std::int32_t blocks_total = 0, blocks_free = 0, blocks_cached = 0, blocks_held = 0, blocks_available = 0;  // of the pool
  std::size_t legs = 0;                                                                                      // open, of both kinds
  std::size_t prefill_legs = 0;                                                                              // of these, with a hand-off
  std::size_t handoffs = 0;          // prompts that are computed or held for hand-offs
  std::size_t handoff_legs = 0;      // legs for which they are
  std::size_t retained = 0;          // of them, those whose KV no attempt uses
  std::size_t leases = 0;            // in any state
  TimePoint clock{};                 // its own
  TimePoint next_deadline = kNever;  // the earliest of all its holds, by that clock
  bool frozen = false;
  bool stepping = false;  // its device computes
};

// What a gateway believes of a worker, and what is true.
struct Belief {
  std::string_view worker;
  bool alive = false;  // it may be used
  bool lost = false;   // it is dead, or hangs
  int legs = 0;        // that the gateway has open there
  Incarnation believed, living;
};

// After every event: O(1).
void check_turn(TimePoint now, const WorkerBooks& books, Failures& failures);

// What may be so for a moment, but not for long.
class Watch {
 public:
  explicit Watch(Failures& failures) : failures_(failures) {}
  void look(TimePoint now, const WorkerBooks& books);
  void look(TimePoint now, const Belief& belief, bool gateway_frozen);

 private:
  // `holds` for longer than `limit`, without a break.
  bool longer(std::string_view who, std::string_view what, bool holds, TimePoint now, Duration limit);

  Failures& failures_;
  std::map<std::string, TimePoint> since_;
};

}  // namespace baton::sim
