#include "gateway/request_log.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace baton::gateway {

void RequestRecord::add(Duration at, std::string what, std::string detail) {
  if (events.size() == kEventsMax) {
    ++events_dropped;
    return;
  }
  events.push_back({at, std::move(what), std::move(detail)});
}

std::string to_json(const RequestRecord& record) {
  using Json = nlohmann::ordered_json;
  const wire::Served& s = record.served;
  Json events = Json::array();
  for (const auto& event : record.events) {
    Json e = {{"ms", to_ms(event.at)}, {"event", event.what}};
    if (!event.detail.empty()) e["detail"] = event.detail;
    events.push_back(std::move(e));
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
  };
  if (!record.trace_id.empty()) json["trace_id"] = record.trace_id, json["traceparent"] = record.traceparent;
  if (record.finished) json["total_ms"] = to_ms(record.total);
  if (!record.status.ok()) json["error"] = record.status.message();
  if (!record.fallback.empty()) json["fallback"] = record.fallback;
  if (record.events_dropped > 0) json["events_dropped"] = record.events_dropped;
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
