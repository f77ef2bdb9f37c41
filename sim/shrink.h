#pragma once
// Makes a scenario that fails as small as it can: what is left is what the failure needs. Pure: whoever calls runs the candidates.

#include <functional>
#include <string>

#include "sim/scenario.h"

namespace baton::sim {

// What two failures have in common if they are the same: the invariant that was violated, the first word of its text.
std::string failure_kind(const std::string& failure);

struct Shrunk {
  Scenario scenario;
  std::string failure;  // its first
  int runs = 0;
};
// `fails` runs a scenario and returns its first failure, or "". Deletes faults, then requests, then workers and features that nobody needs,
// as long as it fails in the same way, with at most `runs_max` runs.
Shrunk shrink(Scenario scenario, std::string failure, const std::function<std::string(const Scenario&)>& fails, int runs_max);

}  // namespace baton::sim
