#pragma once
// What a chaos run found: as a table for people, as JSON for programs. Pure.

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/chaos/clients.h"
#include "app/chaos/cluster.h"
#include "app/chaos/stalls.h"
#include "app/chaos/stream_record.h"

namespace baton::app {

struct ChaosReport {
  std::string model;
  std::string prefill, decode;  // as given; "": none
  int data_parallel_size = 1;
  std::uint64_t seed = 0;
  double saturation = 0, rate = 0;  // requests/s
  double seconds = 0;               // under faults
  std::size_t streams = 0, right = 0, lost = 0, moved = 0, retried = 0, refused = 0, cut = 0;
  std::map<Difference, std::size_t> wrong;
  struct Problem {
    std::string stream, what;
    nlohmann::ordered_json served;  // what /debug/requests said
  };
  std::vector<Problem> problems;  // the first kProblemsMax
  static constexpr std::size_t kProblemsMax = 20;
  std::vector<Befallen> faults;
  TimePoint began{};  // of the load; times of faults are shown since then
  std::vector<Stall> stalls;
  std::map<std::string, std::string> unbalanced;  // worker: what it still holds
  std::vector<std::string> crashes;
  std::size_t workers = 0;

  // Takes the streams in: what they should have been and what they were, request by request.
  void compare_all(const std::vector<StreamOutcome>& expected, const std::vector<StreamOutcome>& seen);
  std::size_t wrong_streams() const;
  bool passed() const { return lost == 0 && wrong_streams() == 0 && unbalanced.empty() && crashes.empty(); }
};

std::string table(const ChaosReport& report);
nlohmann::ordered_json to_json(const ChaosReport& report);

// Whether a worker at rest holds nothing, by its /internal/status; what it holds otherwise.
std::string imbalance(const std::string& worker_status);

}  // namespace baton::app
