#pragma once
// vLLM's statistics line, which people grep, from the workers' counters.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "gateway/registry.h"

namespace baton::app {

class StatsLine {
 public:
  // What the last `seconds` brought: a line for each worker that did something, or whose KV is in trouble.
  std::vector<std::string> lines(const std::vector<gateway::Worker>& workers, double seconds);

 private:
  struct Counters {
    std::uint64_t prompt = 0, generated = 0;
  };
  std::map<std::string, Counters> last_;
};

// KV that is held for long without progress, and books that do not add up, as the end of a line; empty: neither.
std::string kv_trouble(const wire::WorkerStatus& status);

}  // namespace baton::app
