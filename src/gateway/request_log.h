#pragma once
// What happened to the last requests, for /debug/requests/<id>: a bounded record, times as offsets from the request's arrival.

#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "wire/generate.h"

namespace baton::gateway {

struct RequestRecord {
  struct Event {
    Duration at{};  // since arrival
    std::string what, detail;
  };
  std::string id;
  std::string trace_id, traceparent;  // of the client's trace, with this gateway's span; empty: none
  bool finished = false;
  Status status;  // of the finished request
  wire::Served served;
  std::string fallback;  // why it was served without a hand-off although the cluster disaggregates
  int retries = 0;
  std::int64_t tokens = 0;  // emitted
  Duration total{};
  std::vector<Event> events;
  std::size_t events_dropped = 0;

  static constexpr std::size_t kEventsMax = 256;
  void add(Duration at, std::string what, std::string detail = {});
};

std::string to_json(const RequestRecord& record);

// The records of finished requests, the latest `records_max` of them. A client that reuses an id replaces its record.
class RequestLog {
 public:
  explicit RequestLog(std::size_t records_max) : records_max_(records_max) {}
  void put(RequestRecord record);
  const RequestRecord* find(const std::string& id) const;
  std::size_t size() const { return records_.size(); }

 private:
  const std::size_t records_max_;
  std::list<RequestRecord> records_;  // latest first
  std::unordered_map<std::string, std::list<RequestRecord>::iterator> by_id_;
};

}  // namespace baton::gateway
