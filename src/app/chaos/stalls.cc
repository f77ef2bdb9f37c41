#include "app/chaos/stalls.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

namespace baton::app {
namespace {

using Json = nlohmann::ordered_json;

struct Event {
  double ms = 0;  // since the request arrived
  std::string what, detail;
};

std::vector<Event> events_of(const std::string& served) {
  std::vector<Event> events;
  const Json json = Json::parse(served, nullptr, false);
  if (!json.is_object() || !json.contains("events") || !json["events"].is_array()) return events;
  for (const Json& e : json["events"])
    if (e.is_object()) events.push_back({e.value("ms", 0.0), e.value("event", ""), e.value("detail", "")});
  return events;
}

// The first event of this kind at or after `from`.
std::size_t find(const std::vector<Event>& events, std::size_t from, std::string_view kind) {
  while (from < events.size() && events[from].what != kind) ++from;
  return from;
}

}  // namespace

std::optional<Stall> find_stall(const StreamOutcome& stream, const Befallen& fault) {
  const std::vector<Event> events = events_of(stream.served);
  const double fault_ms = to_ms(fault.at - stream.sent);
  // It decoded there: the last commit before the fault names the worker, and it was not on its way to another one.
  std::size_t at = 0;
  const Event* held = nullptr;
  for (; at < events.size() && events[at].ms <= fault_ms; ++at) {
    if (events[at].what == "committed") held = &events[at];
    if (events[at].what == "decode_failed") held = nullptr;
  }
  if (!held || !held->detail.starts_with(fault.target + ",")) return std::nullopt;
  const std::size_t failed = find(events, at, "decode_failed");
  const std::size_t committed = find(events, failed, "committed");
  if (committed == events.size()) return std::nullopt;

  Stall stall{fault.kind, stream.id, stream.served};
  const double committed_ms = events[committed].ms;
  double before = -1, after = -1;
  for (const TimePoint time : stream.token_times) {
    const double ms = to_ms(time - stream.sent);
    // What was on its way when the worker failed still comes; a commit brings a token of its own.
    if (ms < committed_ms - 1) before = ms;
    if (ms >= committed_ms - 1 && after < 0) after = ms;
  }
  if (before < 0 || after < 0) return std::nullopt;
  stall.gap_ms = after - before;
  const auto ms_of = [&](std::size_t event) { return event < committed ? events[event].ms : -1.0; };
  // The last try counts as the prefill; those before it that failed are waiting.
  double reserved = -1, started = -1;
  for (std::size_t i = failed; i < committed; ++i) {
    if (events[i].what == "reserved") reserved = events[i].ms;
    if (events[i].what == "prefill_started") started = events[i].ms;
  }
  const double noticed = ms_of(failed);
  stall.noticed_ms = noticed - before;
  if (reserved >= 0) stall.reserved_ms = reserved - noticed;
  if (started >= 0) {
    stall.queued_ms = started - std::max(reserved, noticed);
    stall.prefill_ms = std::max(0.0, committed_ms - std::max(started, before));
  }
  stall.resumed_ms = after - committed_ms;
  return stall;
}

}  // namespace baton::app
