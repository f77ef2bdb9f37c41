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
  // One attempt to compute the prompt and hand its KV over. Workers give their times from the moment at which they took the leg; that lies
  // between the leg's sending here and, at the latest, so long before their report came as the last of these times is old: `slack`.
  struct Handoff {
    struct Side {
      std::string worker;
      Incarnation incarnation;
      std::string numerics_id;
      Duration sent{-1};  // the leg, since arrival
      std::optional<wire::HandoffTimes> times;
      Duration slack{};
    };
    Attempt attempt;
    bool claim = false;  // of KV that the prefill worker had computed for an earlier one
    bool local = false;  // nothing is handed over
    Side prefill, decode;
  };
  // From the last word of a worker that was lost to the next token.
  struct Stall {
    Duration at{}, took{};
    int choice = 0;
    std::string cause;
    bool resumed = false;  // otherwise the request ended first
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
  std::vector<Handoff> handoffs;  // by attempt
  std::vector<Stall> stalls;
  std::size_t events_dropped = 0, handoffs_dropped = 0, stalls_dropped = 0;

  static constexpr std::size_t kEventsMax = 256, kHandoffsMax = 32, kStallsMax = 64;
  void add(Duration at, std::string what, std::string detail = {});
  void add(Stall stall);
  // The one of that attempt, made if it is new; null if there are too many.
  Handoff* handoff(Attempt attempt);
  // A worker's report, received at `now`. `sent`: when its leg was.
  void add_times(bool prefill, const std::string& worker, Duration sent, Duration now, wire::HandoffTimes times);
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
