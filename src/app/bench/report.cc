#include "app/bench/report.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace baton::app {
namespace {

Report::Summary summary(std::vector<double> seconds, const std::vector<double>& percentiles) {
  Report::Summary s;
  s.percentiles.assign(percentiles.size(), 0.0);
  if (seconds.empty()) return s;
  std::sort(seconds.begin(), seconds.end());
  for (double& x : seconds) x *= 1e3;
  const auto n = static_cast<double>(seconds.size());
  s.mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / n;
  s.median = percentile(seconds, 50);
  double squares = 0;
  for (const double x : seconds) squares += (x - s.mean) * (x - s.mean);
  s.std = std::sqrt(squares / n);
  for (std::size_t i = 0; i < percentiles.size(); ++i) s.percentiles[i] = percentile(seconds, percentiles[i]);
  return s;
}

double tpot(const RequestOutcome& o) { return o.output_tokens > 1 ? (o.latency - o.ttft) / static_cast<double>(o.output_tokens - 1) : 0.0; }

// Most chunks that arrived within one second, and most requests open at once.
void peaks(const std::vector<RequestOutcome>& outcomes, double duration, Report& report) {
  const auto seconds = static_cast<std::size_t>(std::ceil(duration)) + 1;
  std::vector<double> chunks(seconds, 0.0);
  std::vector<std::pair<double, int>> edges;
  for (const RequestOutcome& o : outcomes) {
    if (!o.ok) continue;
    double at = o.start + o.ttft;
    const auto count = [&] { chunks[std::min(seconds - 1, static_cast<std::size_t>(std::max(0.0, at)))] += 1; };
    count();
    for (const double gap : o.itl) {
      at += gap;
      count();
    }
    edges.emplace_back(o.start, 1);
    edges.emplace_back(o.start + o.latency, -1);
  }
  std::sort(edges.begin(), edges.end());
  std::int64_t open = 0;
  for (const auto& [time, change] : edges) report.peak_concurrency = std::max(report.peak_concurrency, open += change);
  report.peak_output_throughput = *std::max_element(chunks.begin(), chunks.end());
}

const char* long_name(const std::string& metric) {
  if (metric == "ttft") return "Time to First Token";
  if (metric == "tpot") return "Time per Output Token (excl. 1st token)";
  if (metric == "itl") return "Inter-token Latency";
  return "End-to-end Latency";
}

const char* short_name(const std::string& metric) {
  return metric == "ttft" ? "TTFT" : metric == "tpot" ? "TPOT" : metric == "itl" ? "ITL" : "E2EL";
}

std::string percentile_word(double p) { return p == std::floor(p) ? fmt::format("{}", static_cast<int>(p)) : fmt::format("{}", p); }

}  // namespace

double percentile(const std::vector<double>& sorted, double p) {
  if (sorted.empty()) return 0;
  const double at = p / 100 * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<std::size_t>(std::floor(at));
  const std::size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - static_cast<double>(low));
}

Report summarize(const std::vector<RequestOutcome>& outcomes, double duration, const ReportOptions& options) {
  Report r;
  r.duration = duration;
  std::vector<double> ttft, tpots, itl, e2el;
  std::int64_t good = 0;
  const auto within = [&](const char* name, double seconds) {
    const auto limit = options.goodput_ms.find(name);
    return limit == options.goodput_ms.end() || seconds * 1e3 <= limit->second;
  };
  for (const RequestOutcome& o : outcomes) {
    if (!o.ok) {
      ++r.failed;
      continue;
    }
    ++r.completed;
    r.total_input += o.input_tokens;
    r.total_output += o.output_tokens;
    ttft.push_back(o.ttft);
    if (o.output_tokens > 1) tpots.push_back(tpot(o));
    itl.insert(itl.end(), o.itl.begin(), o.itl.end());
    e2el.push_back(o.latency);
    good += within("ttft", o.ttft) && within("tpot", tpot(o)) && within("e2el", o.latency);
  }
  r.request_throughput = static_cast<double>(r.completed) / duration;
  r.output_throughput = static_cast<double>(r.total_output) / duration;
  r.total_throughput = static_cast<double>(r.total_input + r.total_output) / duration;
  if (!options.goodput_ms.empty()) r.goodput = static_cast<double>(good) / duration;
  peaks(outcomes, duration, r);
  r.ms["ttft"] = summary(std::move(ttft), options.percentiles);
  r.ms["tpot"] = summary(std::move(tpots), options.percentiles);
  r.ms["itl"] = summary(std::move(itl), options.percentiles);
  r.ms["e2el"] = summary(std::move(e2el), options.percentiles);
  return r;
}

std::string table(const Report& r, const ReportOptions& options) {
  std::string out = fmt::format("{:=^50}\n", " Serving Benchmark Result ");
  const auto integer = [&](const char* label, std::int64_t value) { out += fmt::format("{:<40} {:<10}\n", label, value); };
  const auto real = [&](const std::string& label, double value) { out += fmt::format("{:<40} {:<10.2f}\n", label, value); };
  integer("Successful requests:", r.completed);
  integer("Failed requests:", r.failed);
  if (options.max_concurrency > 0) integer("Maximum request concurrency:", options.max_concurrency);
  if (options.request_rate > 0) real("Request rate configured (RPS):", options.request_rate);
  real("Benchmark duration (s):", r.duration);
  integer("Total input tokens:", r.total_input);
  integer("Total generated tokens:", r.total_output);
  real("Request throughput (req/s):", r.request_throughput);
  if (r.goodput >= 0) real("Request goodput (req/s):", r.goodput);
  real("Output token throughput (tok/s):", r.output_throughput);
  real("Peak output token throughput (tok/s):", r.peak_output_throughput);
  real("Peak concurrent requests:", static_cast<double>(r.peak_concurrency));
  real("Total token throughput (tok/s):", r.total_throughput);
  for (const std::string& metric : options.metrics) {
    const Report::Summary& s = r.ms.at(metric);
    out += fmt::format("{:-^50}\n", long_name(metric));
    real(fmt::format("Mean {} (ms):", short_name(metric)), s.mean);
    real(fmt::format("Median {} (ms):", short_name(metric)), s.median);
    for (std::size_t i = 0; i < options.percentiles.size(); ++i)
      real(fmt::format("P{} {} (ms):", percentile_word(options.percentiles[i]), short_name(metric)), s.percentiles[i]);
  }
  return out + std::string(50, '=') + "\n";
}

nlohmann::ordered_json to_json(const Report& r, const ReportOptions& options) {
  nlohmann::ordered_json out{{"duration", r.duration},
                             {"completed", r.completed},
                             {"failed", r.failed},
                             {"total_input_tokens", r.total_input},
                             {"total_output_tokens", r.total_output},
                             {"request_throughput", r.request_throughput},
                             {"request_goodput", r.goodput >= 0 ? nlohmann::ordered_json(r.goodput) : nlohmann::ordered_json()},
                             {"output_throughput", r.output_throughput},
                             {"total_token_throughput", r.total_throughput},
                             {"max_output_tokens_per_s", r.peak_output_throughput},
                             {"max_concurrent_requests", r.peak_concurrency}};
  for (const char* metric : {"ttft", "tpot", "itl", "e2el"}) {
    const Report::Summary& s = r.ms.at(metric);
    const std::string suffix = std::string(metric) + "_ms";
    out["mean_" + suffix] = s.mean;
    out["median_" + suffix] = s.median;
    out["std_" + suffix] = s.std;
    for (std::size_t i = 0; i < options.percentiles.size(); ++i)
      out["p" + percentile_word(options.percentiles[i]) + "_" + suffix] = s.percentiles[i];
  }
  return out;
}

}  // namespace baton::app
