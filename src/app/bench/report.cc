#include "app/bench/report.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>
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

// Most chunks that arrived within one second, seconds counted from the first start, and most requests open at once.
void peaks(const std::vector<RequestOutcome>& outcomes, Report& report) {
  double first = std::numeric_limits<double>::infinity();
  for (const RequestOutcome& o : outcomes)
    if (o.ok) first = std::min(first, o.start);
  std::map<std::int64_t, std::int64_t> chunks;
  std::vector<std::pair<double, int>> edges;
  for (const RequestOutcome& o : outcomes) {
    if (!o.ok) continue;
    double at = o.start + o.ttft - first;
    ++chunks[static_cast<std::int64_t>(at)];
    for (const double gap : o.itl) ++chunks[static_cast<std::int64_t>(at += gap)];
    edges.emplace_back(o.start, 1);
    edges.emplace_back(o.start + o.latency, -1);
  }
  std::sort(edges.begin(), edges.end());
  std::int64_t open = 0;
  for (const auto& [time, change] : edges) report.peak_concurrency = std::max(report.peak_concurrency, open += change);
  for (const auto& [second, count] : chunks)
    report.peak_output_throughput = std::max(report.peak_output_throughput, static_cast<double>(count));
}

// The words of an error without what differs between two of a kind: words with a digit in them, but for the status of "HTTP 503: ...".
std::string kind_of(const std::string& message) {
  const std::size_t kept = message.starts_with("HTTP ") ? std::min<std::size_t>(8, message.size()) : 0;
  std::string kind = message.substr(0, kept);
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)); };
  for (std::size_t i = kept; i < message.size();) {
    std::size_t end = i;
    while (end < message.size() && is_word(message[end])) ++end;
    if (end == i) {
      kind += message[i++];
      continue;
    }
    const std::string word = message.substr(i, end - i);
    kind += std::any_of(word.begin(), word.end(), [](char c) { return c >= '0' && c <= '9'; }) ? "#" : word;
    i = end;
  }
  return kind;
}

std::vector<std::pair<std::string, std::int64_t>> count_errors(const std::vector<RequestOutcome>& outcomes) {
  std::map<std::string, std::size_t> at;
  std::vector<std::pair<std::string, std::int64_t>> errors;
  for (const RequestOutcome& o : outcomes) {
    if (o.ok) continue;
    const auto [found, added] = at.emplace(kind_of(o.error), errors.size());
    if (added) errors.emplace_back(o.error, 0);
    ++errors[found->second].second;
  }
  std::stable_sort(errors.begin(), errors.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  return errors;
}

struct MetricName {
  const char *heading, *label;
};

MetricName name_of(const std::string& metric) {
  if (metric == "ttft") return {"Time to First Token", "TTFT"};
  if (metric == "tpot") return {"Time per Output Token (excl. 1st token)", "TPOT"};
  if (metric == "itl") return {"Inter-token Latency", "ITL"};
  if (metric == "e2el") return {"End-to-end Latency", "E2EL"};
  if (metric == "client_queue_time") return {"Client-side Queueing", "Client Queue Time"};
  return {"Queue-inclusive End-to-end Latency", "E2EL incl. Client Queue"};
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
  std::vector<double> ttft, tpots, itl, e2el, queued, e2el_queued;
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
    queued.push_back(o.queued);
    e2el_queued.push_back(o.latency + o.queued);
    good += within("ttft", o.ttft) && within("tpot", tpot(o)) && within("e2el", o.latency);
  }
  const auto per_second = [&](std::int64_t count) { return duration > 0 ? static_cast<double>(count) / duration : 0.0; };
  r.request_throughput = per_second(r.completed);
  r.output_throughput = per_second(r.total_output);
  r.total_throughput = per_second(r.total_input + r.total_output);
  if (!options.goodput_ms.empty()) r.goodput = per_second(good);
  peaks(outcomes, r);
  r.errors = count_errors(outcomes);
  r.ms["ttft"] = summary(std::move(ttft), options.percentiles);
  r.ms["tpot"] = summary(std::move(tpots), options.percentiles);
  r.ms["itl"] = summary(std::move(itl), options.percentiles);
  r.ms["e2el"] = summary(std::move(e2el), options.percentiles);
  if (options.max_concurrency > 0) r.ms["client_queue_time"] = summary(std::move(queued), options.percentiles);
  if (options.max_concurrency > 0 && options.request_rate > 0)
    r.ms["e2el_including_client_queue"] = summary(std::move(e2el_queued), options.percentiles);
  return r;
}

std::map<std::string, Report> summarize_by_kind(const std::vector<RequestOutcome>& outcomes, double duration,
                                                const ReportOptions& options) {
  std::map<std::string, std::vector<RequestOutcome>> parts;
  for (const RequestOutcome& o : outcomes) parts[o.kind].push_back(o);
  std::map<std::string, Report> out;
  if (parts.size() < 2) return out;
  for (const auto& [kind, some] : parts) out[kind] = summarize(some, duration, options);
  return out;
}

std::string kinds_table(const std::map<std::string, Report>& by_kind, const ReportOptions& options) {
  std::string out;
  for (const auto& [kind, r] : by_kind) {
    std::string p;
    const auto& itl = r.ms.at("itl");
    for (std::size_t i = 0; i < itl.percentiles.size(); ++i)
      p += fmt::format(", P{} {:.2f}", percentile_word(options.percentiles[i]), itl.percentiles[i]);
    out += fmt::format("{:<10} {} requests; ms: mean TTFT {:.2f}; ITL mean {:.2f}, median {:.2f}{}\n", kind + ":", r.completed,
                       r.ms.at("ttft").mean, itl.mean, itl.median, p);
  }
  return out;
}

std::string error_summary(const Report& r) {
  if (r.errors.empty()) return "";
  constexpr std::size_t kShown = 10;
  std::string out = fmt::format("{} of {} requests failed:\n", r.failed, r.failed + r.completed);
  for (std::size_t i = 0; i < std::min(kShown, r.errors.size()); ++i)
    out += fmt::format("{:>8} x {}\n", r.errors[i].second, r.errors[i].first);
  if (r.errors.size() > kShown) out += fmt::format("           and {} kinds more\n", r.errors.size() - kShown);
  return out;
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
  for (const char* metric : kMetrics) {
    const auto found = r.ms.find(metric);
    if (found == r.ms.end() || std::find(options.metrics.begin(), options.metrics.end(), metric) == options.metrics.end()) continue;
    const auto& [heading, label] = name_of(metric);
    const Report::Summary& s = found->second;
    out += fmt::format("{:-^50}\n", heading);
    real(fmt::format("Mean {} (ms):", label), s.mean);
    real(fmt::format("Median {} (ms):", label), s.median);
    for (std::size_t i = 0; i < options.percentiles.size(); ++i)
      real(fmt::format("P{} {} (ms):", percentile_word(options.percentiles[i]), label), s.percentiles[i]);
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
                             {"max_concurrent_requests", r.peak_concurrency},
                             {"rtfx", 0.0}};
  for (const auto& [message, count] : r.errors) out["error_counts"][message] = count;
  for (const char* metric : kMetrics) {
    const auto found = r.ms.find(metric);
    if (found == r.ms.end()) continue;
    const Report::Summary& s = found->second;
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
