#include "sim/host.h"

#include <algorithm>
#include <utility>

namespace baton::sim {

Host::Host(EventQueue& queue, std::string name, Duration skew) : queue_(queue), name_(std::move(name)), clock_(queue, skew) {}

Host::~Host() {
  // Work that is dropped may hold objects whose destructors post more: that goes too.
  while (!tasks_.empty()) {
    const auto dropped = std::exchange(tasks_, {});
    for (const auto& [timer, task] : dropped) queue_.cancel(task.event);
  }
}

net::Executor::TimerId Host::after(Duration delay, std::function<void()> work) {
  const TimerId timer = next_++;
  delay = std::clamp(delay, Duration(0), kNever - queue_.now());
  tasks_[timer] = {queue_.at(queue_.now() + delay, [this, timer] { due(timer); }), std::move(work)};
  return timer;
}

void Host::cancel(TimerId timer) {
  const auto node = tasks_.extract(timer);
  if (!node.empty()) queue_.cancel(node.mapped().event);
}

void Host::due(TimerId timer) {
  if (frozen_) {
    held_.push_back(timer);
    return;
  }
  const auto node = tasks_.extract(timer);
  if (!node.empty()) node.mapped().work();
}

void Host::thaw() {
  frozen_ = false;
  for (const TimerId timer : std::exchange(held_, {})) {
    const auto task = tasks_.find(timer);
    if (task != tasks_.end()) task->second.event = queue_.at(queue_.now(), [this, timer] { due(timer); });
  }
}

}  // namespace baton::sim
