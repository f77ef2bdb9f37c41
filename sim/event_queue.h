#pragma once
// Virtual time: what will happen, in order. Equal times run in the order in which they were scheduled, so that a run is a function of its
// seed.

#include <cstdint>
#include <functional>
#include <map>
#include <unordered_map>
#include <utility>

#include "base/clock.h"

namespace baton::sim {

class EventQueue {
 public:
  using EventId = std::uint64_t;

  TimePoint now() const { return now_; }
  // A time that has passed means now.
  EventId at(TimePoint when, std::function<void()> work);
  void cancel(EventId event);
  // Runs the next event; false if there is none.
  bool run_one();
  std::size_t size() const { return events_.size(); }
  std::uint64_t executed() const { return executed_; }
  TimePoint next() const { return events_.empty() ? kNever : events_.begin()->first.first; }

 private:
  TimePoint now_{};
  EventId next_id_ = 1;
  std::uint64_t executed_ = 0;
  std::map<std::pair<TimePoint, EventId>, std::function<void()>> events_;
  std::unordered_map<EventId, TimePoint> times_;  // looked up, never walked
};

}  // namespace baton::sim
