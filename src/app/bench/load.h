#pragma once
// The client side of a serving benchmark: sends requests at their arrival times and measures what comes back.

#include <functional>
#include <string>
#include <vector>

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
  double request_rate = 0;  // requests/s; 0: all at once
  double burstiness = 1.0;  // shape of the gamma distribution of gaps; 1: Poisson
  std::int64_t max_concurrency = 0;
  std::uint64_t seed = 0;
  bool ignore_eos = false;
  bool keep_texts = false;
  nlohmann::ordered_json extra_body = nlohmann::ordered_json::object();
  std::string request_id_prefix = "bench-";
  Duration timeout = std::chrono::hours(6);  // of one request
};

// Arrival times in seconds: gaps drawn first, then scaled so that the last request leaves at exactly n / rate.
std::vector<double> arrival_times(std::size_t n, double rate, double burstiness, std::uint64_t seed);

struct LoadResult {
  std::vector<RequestOutcome> outcomes;  // in the dataset's order
  double duration = 0;
};
// `on_progress(completed)` after each request.
LoadResult run_load(const std::vector<BenchRequest>& requests, const LoadOptions& options,
                    const std::function<void(std::size_t)>& on_progress);

}  // namespace baton::app
