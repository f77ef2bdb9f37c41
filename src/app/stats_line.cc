#include "app/stats_line.h"

#include <spdlog/fmt/fmt.h>

namespace baton::app {
namespace {

// A reservation may wait for as long as its prompt does, and what is retained goes by itself.
constexpr double kHeldLongMs = 5'000, kCreditLongMs = 60'000, kRetainedLongMs = 30'000;

}  // namespace

std::string kv_trouble(const wire::WorkerStatus& status) {
  std::string out;
  for (const auto& [reason, ms] : status.held_ms) {
    const double limit = reason == "credit" ? kCreditLongMs : reason == "retained" ? kRetainedLongMs : kHeldLongMs;
    if (ms >= limit) out += fmt::format(", {} held without progress for {:.1f} s", reason, ms / 1e3);
  }
  if (!status.balanced) {
    out += fmt::format(", KV BOOKS UNBALANCED: {} free + {} cached + {} held of {}", status.blocks_free, status.blocks_cached,
                       status.blocks_held, status.blocks_total);
  }
  return out;
}

std::vector<std::string> StatsLine::lines(const std::vector<gateway::Worker>& workers, double seconds) {
  std::vector<std::string> out;
  for (const gateway::Worker& worker : workers) {
    if (worker.liveness == gateway::Liveness::kUnknown) continue;
    const wire::WorkerStatus& s = worker.status;
    Counters& last = last_[worker.name()];
    const auto since = [](std::uint64_t now, std::uint64_t before) { return now >= before ? now - before : now; };
    const double prompt = static_cast<double>(since(s.prompt_tokens_computed, last.prompt)) / seconds;
    const double generated = static_cast<double>(since(s.generation_tokens, last.generated)) / seconds;
    last = {s.prompt_tokens_computed, s.generation_tokens};
    const std::string trouble = kv_trouble(s);
    if (prompt == 0 && generated == 0 && s.running == 0 && s.waiting == 0 && trouble.empty()) continue;
    const double usage = s.blocks_total > 0 ? 100.0 * (s.blocks_total - s.blocks_free - s.blocks_cached) / s.blocks_total : 0;
    const double hits = s.prefix_queries > 0 ? 100.0 * static_cast<double>(s.prefix_hits) / static_cast<double>(s.prefix_queries) : 0;
    out.push_back(
        fmt::format("Engine {}: Avg prompt throughput: {:.1f} tokens/s, Avg generation throughput: {:.1f} tokens/s, Running: {} reqs, "
                    "Waiting: {} reqs, "
                    "Preemptions: {}, KV cache usage: {:.1f}%, Prefix cache hit rate: {:.1f}%{}",
                    worker.name(), prompt, generated, s.running, s.waiting, s.preemptions, usage, hits, trouble));
  }
  return out;
}

}  // namespace baton::app
