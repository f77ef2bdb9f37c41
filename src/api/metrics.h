#pragma once
// Prometheus metrics under vLLM's names (dashboards and routers read those) and Baton's own. Request-level ones are counted here;
// worker-level ones are copied from the workers' status when scraped.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "wire/generate.h"
#include "wire/worker_api.h"

namespace baton::api {

class Metrics {
 public:
  Metrics(std::string model_name, std::int64_t max_model_len);
  ~Metrics();

  void request_started(const wire::GenerateRequest& request);
  struct Finished {
    const char* reason;  // stop, length, abort, error
    std::int32_t prompt_tokens, cached_tokens, generated_tokens;
    Duration queue, prefill, decode, ttft, e2e;  // negative where it did not happen
    bool disaggregated;
    std::int64_t kv_bytes;
  };
  void request_finished(const Finished& finished);
  void inter_token(Duration gap);

  struct Named {
    std::string name;  // without "baton:" and "_total"
    std::vector<std::pair<std::string, std::string>> labels;
    double value;
  };
  struct NamedHistogram {
    std::string name, help;             // without "baton:"
    std::vector<double> bounds;         // upper, ascending
    std::vector<std::uint64_t> counts;  // a bucket each, and one more beyond the last bound
    double sum = 0;
  };
  // The text of /metrics. `counters` and `histograms` are absolute values kept elsewhere (the gateway's), exported as baton:NAME_total and
  // baton:NAME.
  std::string serialize(const std::vector<wire::WorkerStatus>& workers, const std::vector<Named>& counters,
                        const std::vector<NamedHistogram>& histograms);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace baton::api
