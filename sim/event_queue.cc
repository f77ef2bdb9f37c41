#include "sim/event_queue.h"

#include <algorithm>

namespace baton::sim {

EventQueue::EventId EventQueue::at(TimePoint when, std::function<void()> work) {
  when = std::max(when, now_);
  const EventId id = next_id_++;
  events_.emplace(std::pair(when, id), std::move(work));
  times_.emplace(id, when);
  return id;
}

void EventQueue::cancel(EventId event) {
  const auto found = times_.find(event);
  if (found == times_.end()) return;
  // Destroyed after both maps are whole again: what it holds may call back.
  const auto node = events_.extract(std::pair(found->second, event));
  times_.erase(found);
}

bool EventQueue::run_one() {
  if (events_.empty()) return false;
  const auto node = events_.extract(events_.begin());
  times_.erase(node.key().second);
  now_ = node.key().first;
  ++executed_;
  node.mapped()();
  return true;
}

}  // namespace baton::sim
