#include "sim/host.h"

#include <algorithm>
#include <utility>

namespace baton::sim {
namespace {

constexpr Duration kDelayMax = std::chrono::hours(200);  // beyond it a timer's time is not exact, which nobody lives to see

}  // namespace

void Host::OwnClock::change(Duration forward, std::int64_t gain_us) {
  own_ = now() + forward;
  real_ = queue_.now();
  gain_us_ = gain_us;
}

TimePoint Host::OwnClock::real(TimePoint own) const {
  if (gain_us_ == 0) return real_ + (own - own_);
  // The first moment at which it shows that much.
  const Duration wanted = own - own_;
  Duration guess(wanted.count() / (1'000'000 + gain_us_) * 1'000'000 +
                 wanted.count() % (1'000'000 + gain_us_) * 1'000'000 / (1'000'000 + gain_us_));
  while (elapsed(guess) < wanted) guess += Duration(1);
  return real_ + guess;
}

Host::Host(EventQueue& queue, std::string name, Duration ahead) : queue_(queue), name_(std::move(name)), clock_(queue, ahead) {}

Host::~Host() {
  // Work that is dropped may hold objects whose destructors post more: that goes too.
  while (!tasks_.empty()) {
    const auto dropped = std::exchange(tasks_, {});
    for (const auto& [timer, task] : dropped) queue_.cancel(task.event);
  }
}

net::Executor::TimerId Host::after(Duration delay, std::function<void()> work) {
  const TimerId timer = next_++;
  Task& task = tasks_[timer];
  task.due = clock_.now() + std::clamp(delay, Duration(0), kDelayMax);
  task.work = std::move(work);
  schedule(timer, task);
  return timer;
}

void Host::schedule(TimerId timer, Task& task) {
  task.event = queue_.at(clock_.real(task.due), [this, timer] { due(timer); });
}

void Host::cancel(TimerId timer) {
  const auto node = tasks_.extract(timer);
  if (!node.empty()) queue_.cancel(node.mapped().event);
}

void Host::due(TimerId timer) {
  if (frozen()) {
    held_.push_back(timer);
    return;
  }
  const auto node = tasks_.extract(timer);
  if (node.empty()) return;
  ++turns_;
  node.mapped().work();
}

void Host::thaw() {
  if (frozen_ == 0 || --frozen_ > 0) return;
  for (const TimerId timer : std::exchange(held_, {})) {
    const auto task = tasks_.find(timer);
    if (task != tasks_.end()) task->second.event = queue_.at(queue_.now(), [this, timer] { due(timer); });
  }
}

void Host::jump(Duration forward) { change_clock(forward, clock_.gain_us()); }
void Host::set_rate(std::int64_t gain_us) { change_clock(Duration(0), gain_us); }

void Host::change_clock(Duration forward, std::int64_t gain_us) {
  clock_.change(forward, gain_us);
  for (auto& [timer, task] : tasks_) {
    if (std::find(held_.begin(), held_.end(), timer) != held_.end()) continue;
    queue_.cancel(task.event);
    schedule(timer, task);
  }
}

}  // namespace baton::sim
