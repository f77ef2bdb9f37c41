#pragma once
// What a serving benchmark measured, with the definitions, the table and the JSON keys of vLLM's benchmark.

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace baton::app {

// One request as the client saw it; times in seconds since the benchmark began.
struct RequestOutcome {
  bool ok = false;
  std::string error;
  double start = 0, ttft = 0, latency = 0;  // latency: to the last chunk with choices
  std::vector<double> itl;                  // gaps between successive chunks with choices
  std::int64_t input_tokens = 0, output_tokens = 0;
  std::string text;
};

struct ReportOptions {
  std::vector<double> percentiles = {99};
  std::vector<std::string> metrics = {"ttft", "tpot", "itl"};
  std::map<std::string, double> goodput_ms;  // ttft, tpot, e2el -> limit
  double request_rate = 0;                   // 0: infinite
  std::int64_t max_concurrency = 0;          // 0: unlimited
};

struct Report {
  std::int64_t completed = 0, failed = 0, total_input = 0, total_output = 0;
  double duration = 0, request_throughput = 0, output_throughput = 0, total_throughput = 0, goodput = -1;
  double peak_output_throughput = 0;
  std::int64_t peak_concurrency = 0;
  struct Summary {
    double mean = 0, median = 0, std = 0;
    std::vector<double> percentiles;
  };
  std::map<std::string, Summary> ms;  // ttft, tpot, itl, e2el
};

Report summarize(const std::vector<RequestOutcome>& outcomes, double duration, const ReportOptions& options);
std::string table(const Report& report, const ReportOptions& options);
nlohmann::ordered_json to_json(const Report& report, const ReportOptions& options);

// numpy.percentile's linear interpolation; `sorted` ascending.
double percentile(const std::vector<double>& sorted, double p);

}  // namespace baton::app
