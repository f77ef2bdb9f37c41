#pragma once
// What a serving benchmark measured, with the definitions, the table and the JSON keys of vLLM's benchmark.

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace baton::app {

// One request as the client saw it; times in seconds, `start` since the benchmark began.
struct RequestOutcome {
  bool ok = false;
  std::string error;
  double start = 0, ttft = 0, latency = 0;  // latency: to the last chunk with choices
  std::vector<double> itl;                  // gaps between successive chunks with choices
  std::int64_t input_tokens = 0, output_tokens = 0;
  std::string text;
  double queued = 0;   // from when it was due to when it was sent: what --max-concurrency made it wait
  std::string kind{};  // the request's
};

// The last two are there only with a limit of concurrency, the last one only with a finite rate, too; as in vLLM.
inline constexpr const char* kMetrics[] = {"ttft", "tpot", "itl", "e2el", "client_queue_time", "e2el_including_client_queue"};

struct ReportOptions {
  std::vector<double> percentiles = {99};
  std::vector<std::string> metrics = {"ttft", "tpot", "itl"};  // of kMetrics; table shows them in that order
  std::map<std::string, double> goodput_ms;                    // ttft, tpot, e2el -> limit
  double request_rate = 0;                                     // 0: infinite
  std::int64_t max_concurrency = 0;                            // 0: unlimited
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
  std::map<std::string, Summary> ms;  // of kMetrics, those that there are
  // Kinds of failures and how often: messages that differ in nothing but numbers and ids are one kind, told in the words of its first.
  // The most frequent first.
  std::vector<std::pair<std::string, std::int64_t>> errors;
};

Report summarize(const std::vector<RequestOutcome>& outcomes, double duration, const ReportOptions& options);
// Of the requests of each kind apart; empty where all are of one.
std::map<std::string, Report> summarize_by_kind(const std::vector<RequestOutcome>& outcomes, double duration, const ReportOptions& options);
// A line for each, of what they felt; "" for none.
std::string kinds_table(const std::map<std::string, Report>& by_kind, const ReportOptions& options);
// What failed, for printing before the table; "" if nothing did.
std::string error_summary(const Report& report);
std::string table(const Report& report, const ReportOptions& options);
nlohmann::ordered_json to_json(const Report& report, const ReportOptions& options);

// numpy.percentile's linear interpolation; `sorted` ascending.
double percentile(const std::vector<double>& sorted, double p);

}  // namespace baton::app
