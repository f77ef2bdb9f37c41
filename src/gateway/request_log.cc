#include "gateway/request_log.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace baton::gateway {
namespace {

using Json = nlohmann::ordered_json;

bool is_retry(const std::string& event) {
  constexpr std::string_view kRetries[] = {"decode_refused", "decode_failed", "prefill_refused", "prefill_failed",
                                           "prefill_nacked", "retained",      "move_failed"};
  return std::ranges::find(kRetries, event) != std::end(kRetries);
}

// A worker's time in the request's own.
Json placed(Duration sent, std::int64_t us) { return us < 0 ? Json(nullptr) : Json(to_ms(sent + Duration(us))); }

Json layers(Duration sent, const std::vector<std::int64_t>& times) {
  Json out = Json::array();
  for (const std::int64_t us : times) out.push_back(placed(sent, us));
  return out;
}

Json side(const RequestRecord::Handoff::Side& s) {
  Json json = {{"worker", s.worker}, {"incarnation", s.incarnation.value}, {"sent_ms", to_ms(s.sent)}};
  if (!s.times) return json;
  const wire::HandoffTimes& t = *s.times;
  const std::pair<const char*, std::int64_t> stages[] = {
      {"started_ms", t.started_us},         {"attached_ms", t.attached_us}, {"granted_ms", t.granted_us}, {"computed_ms", t.computed_us},
      {"first_token_ms", t.first_token_us}, {"commit_ms", t.commit_us},     {"ended_ms", t.ended_us},
  };
  for (const auto& [name, us] : stages)
    if (us >= 0) json[name] = placed(s.sent, us);
  if (t.failure) json["failure"] = t.failure->to_string();
  if (!t.chunks.empty()) {
    Json& chunks = json["chunks"] = Json::array();
    for (const auto& [tokens, us] : t.chunks) chunks.push_back({tokens, placed(s.sent, us)});
  }
  json["slack_ms"] = to_ms(s.slack);
  return json;
}

Json handoff_json(const RequestRecord::Handoff& h) {
  Json json = {{"attempt", h.attempt.value}};
  if (h.claim) json["claim"] = true;
  if (h.local) json["local"] = true;
  const auto& p = h.prefill;
  const auto& d = h.decode;
  if (d.times && d.times->epoch != Epoch()) {
    json["epoch"] = d.times->epoch.value;
  } else if (p.times && p.times->epoch != Epoch()) {
    json["epoch"] = p.times->epoch.value;
  }
  if (!p.worker.empty()) json["prefill"] = side(p);
  if (!d.worker.empty()) json["decode"] = side(d);
  if (!p.numerics_id.empty() && !d.numerics_id.empty() && p.numerics_id != d.numerics_id)
    json["numerics_ids"] = {p.numerics_id, d.numerics_id};
  Json by_layer = Json::object();
  if (p.times && !p.times->ready_us.empty()) by_layer["ready_ms"] = layers(p.sent, p.times->ready_us);
  if (p.times && !p.times->announced_us.empty()) by_layer["announced_ms"] = layers(p.sent, p.times->announced_us);
  if (d.times && !d.times->verified_us.empty()) {
    by_layer["verified_ms"] = layers(d.sent, d.times->verified_us);
    by_layer["bytes"] = d.times->verified_bytes;
  }
  if (!by_layer.empty()) json["layers"] = std::move(by_layer);
  return json;
}

}  // namespace

void RequestRecord::add(Duration at, std::string what, std::string detail) {
  if (events.size() == kEventsMax) {
    ++events_dropped;
    return;
  }
  events.push_back({at, std::move(what), std::move(detail)});
}

void RequestRecord::add(Stall stall) {
  if (stalls.size() == kStallsMax) {
    ++stalls_dropped;
    return;
  }
  stalls.push_back(std::move(stall));
}

RequestRecord::Handoff* RequestRecord::handoff(Attempt attempt) {
  const auto at = std::ranges::lower_bound(handoffs, attempt, {}, &Handoff::attempt);
  if (at != handoffs.end() && at->attempt == attempt) return &*at;
  if (handoffs.size() == kHandoffsMax) {
    ++handoffs_dropped;
    return nullptr;
  }
  return &*handoffs.insert(at, Handoff{.attempt = attempt, .prefill = {}, .decode = {}});
}

void RequestRecord::add_times(bool prefill, const std::string& worker, Duration sent, Duration now, wire::HandoffTimes times) {
  Handoff* h = handoff(times.attempt);
  if (h == nullptr) return;
  // Believed as far as it can be: a report is no longer than ours would be.
  for (auto* layers : {&times.ready_us, &times.announced_us, &times.verified_us, &times.verified_bytes})
    if (layers->size() > wire::HandoffTimes::kLayersMax) layers->resize(wire::HandoffTimes::kLayersMax);
  if (times.chunks.size() > wire::HandoffTimes::kChunksMax) times.chunks.resize(wire::HandoffTimes::kChunksMax);
  const std::int64_t last = std::max({times.started_us, times.computed_us, times.first_token_us, times.commit_us, times.ended_us});
  Handoff::Side& s = prefill ? h->prefill : h->decode;
  s.worker = worker;
  s.sent = sent;
  s.slack = std::max(Duration(0), now - sent - Duration(std::clamp<std::int64_t>(last, 0, wire::kTimeoutMax.count())));
  s.times = std::move(times);
}

std::string to_json(const RequestRecord& record) {
  const wire::Served& s = record.served;
  Json events = Json::array(), retried = Json::array(), handoffs = Json::array(), stalls = Json::array();
  for (const auto& event : record.events) {
    Json e = {{"ms", to_ms(event.at)}, {"event", event.what}};
    if (!event.detail.empty()) e["detail"] = event.detail;
    if (is_retry(event.what)) retried.push_back(e);
    events.push_back(std::move(e));
  }
  for (const auto& handoff : record.handoffs) handoffs.push_back(handoff_json(handoff));
  for (const auto& stall : record.stalls) {
    stalls.push_back({{"at_ms", to_ms(stall.at)},
                      {"took_ms", to_ms(stall.took)},
                      {"choice", stall.choice},
                      {"cause", stall.cause},
                      {"resumed", stall.resumed}});
  }
  Json json = {
      {"id", record.id},
      {"state", record.finished ? "finished" : "running"},
      {"status", record.finished ? Json(to_string(record.status.code())) : Json(nullptr)},
      {"prefill_worker", s.prefill_worker},
      {"decode_worker", s.decode_worker},
      {"disaggregated", s.disaggregated},
      {"attempts", s.attempts},
      {"retries", record.retries},
      {"prompt_tokens", s.prompt_tokens},
      {"cached_tokens", s.cached_tokens},
      {"completion_tokens", record.tokens},
      {"kv_bytes", s.kv_bytes},
      {"kv_bytes_early", s.kv_bytes_early},
      {"reserved_ms", s.reserved_ms},
      {"prefill_start_ms", s.prefill_start_ms},
      {"prefill_end_ms", s.prefill_end_ms},
      {"committed_ms", s.committed_ms},
      {"first_token_ms", s.first_token_ms},
      {"events", std::move(events)},
      {"retried", std::move(retried)},
      {"handoffs", std::move(handoffs)},
      {"stalls", std::move(stalls)},
  };
  if (!record.trace_id.empty()) json["trace_id"] = record.trace_id, json["traceparent"] = record.traceparent;
  if (record.finished) json["total_ms"] = to_ms(record.total);
  if (!record.status.ok()) json["error"] = record.status.message();
  if (!record.fallback.empty()) json["fallback"] = record.fallback;
  if (record.events_dropped > 0) json["events_dropped"] = record.events_dropped;
  if (record.handoffs_dropped > 0) json["handoffs_dropped"] = record.handoffs_dropped;
  if (record.stalls_dropped > 0) json["stalls_dropped"] = record.stalls_dropped;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void RequestLog::put(RequestRecord record) {
  if (const auto old = by_id_.find(record.id); old != by_id_.end()) {
    records_.erase(old->second);
    by_id_.erase(old);
  }
  records_.push_front(std::move(record));
  by_id_[records_.front().id] = records_.begin();
  if (records_.size() > records_max_) {
    by_id_.erase(records_.back().id);
    records_.pop_back();
  }
}

const RequestRecord* RequestLog::find(const std::string& id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &*found->second;
}

}  // namespace baton::gateway
