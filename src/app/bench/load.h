#pragma once
// The client side of a serving benchmark: sends requests at their arrival times and measures what comes back.

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "app/bench/arrivals.h"
#include "app/bench/dataset.h"
#include "app/bench/report.h"
#include "net/http.h"

namespace baton::app {

struct LoadOptions {
  std::string host = "127.0.0.1";
  int port = 8000;
  std::string endpoint = "/v1/completions";
  std::string api_key;
  std::string model;
  double request_rate = 0;  // requests/s; 0: at the requests' own times where they have any, else all at once
  double burstiness = 1.0;  // shape of the gamma distribution of gaps; 1: Poisson
  ArrivalForm arrival = ArrivalForm::kRescaled;
  std::optional<RampUp> ramp_up;     // instead of request_rate
  std::int64_t max_concurrency = 0;  // 0: no limit; who waits for room has not been sent
  std::uint64_t seed = 0;
  bool ignore_eos = false;
  bool keep_texts = false;
  nlohmann::ordered_json extra_body = nlohmann::ordered_json::object();
  std::string request_id_prefix = "bench-";
  std::vector<std::pair<std::string, std::string>> headers;  // of each request, before those that follow from the rest
  Duration timeout = std::chrono::hours(6);                  // of one request
  bool stop_on_signals = false;  // SIGINT and SIGTERM end the run: what is open is cancelled, what has ended is the result
};

// When each request leaves, in seconds from the begin.
std::vector<double> planned_times(const std::vector<BenchRequest>& requests, const LoadOptions& options);

struct LoadResult {
  std::vector<RequestOutcome> outcomes;  // in the dataset's order; of an interrupted run, only those that had ended
  double duration = 0;                   // to the last end, or to the interruption
  bool interrupted = false;
};
// Runs until every request has ended. `on_progress(ended)` after each.
LoadResult run_load(const std::vector<BenchRequest>& requests, const LoadOptions& options,
                    const std::function<void(std::size_t)>& on_progress);

}  // namespace baton::app
