#pragma once
// One run of a scenario: all of it from one seed, checked while it runs and when it is over.

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "sim/scenario.h"

namespace baton::sim {

struct RunResult {
  std::uint64_t seed = 0;
  std::uint64_t hash = 0;    // of the whole trace
  std::uint64_t events = 0;  // in it
  Duration virtual_time{};
  int requests = 0, complete = 0, cancelled = 0, deadline = 0, refused = 0, lost = 0;
  int kills = 0, drains = 0;
  std::uint64_t tokens = 0, handoffs = 0, kv_bytes = 0, preemptions = 0, prefix_hits = 0, queued = 0, retries = 0, resumed = 0, moved = 0,
                digest_mismatches = 0;
  // Each begins with the number of the invariant that was violated (README.md has them), or "liveness".
  std::vector<std::string> failures;  // empty: everything held
  bool ok() const { return failures.empty(); }
};

// `trace`, if given, gets a line for each event.
RunResult run(const Scenario& scenario, std::ostream* trace = nullptr);
// With another seed than its own.
RunResult run(Scenario scenario, std::uint64_t seed, std::ostream* trace = nullptr);
std::string summary(const Scenario& scenario, const RunResult& result);

}  // namespace baton::sim
