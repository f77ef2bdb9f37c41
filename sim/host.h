#pragma once
// One simulated process: an event loop over the shared queue, with a clock of its own. What is in it runs one piece at a time; while it is
// frozen (SIGSTOP) nothing does, and what came meanwhile runs when it is thawed; when it is destroyed (kill -9) whatever was to run never
// will.

#include <deque>
#include <functional>
#include <map>
#include <string>

#include "net/event_loop.h"
#include "sim/event_queue.h"

namespace baton::sim {

class Host final : public net::Executor {
 public:
  // `skew`: how far its clock is ahead.
  Host(EventQueue& queue, std::string name, Duration skew = {});
  ~Host() override;
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  void post(std::function<void()> work) override { (void)after(Duration(0), std::move(work)); }
  TimerId after(Duration delay, std::function<void()> work) override;
  void cancel(TimerId timer) override;
  const Clock& clock() const override { return clock_; }

  const std::string& name() const { return name_; }
  void freeze() { frozen_ = true; }
  void thaw();
  bool frozen() const { return frozen_; }

 private:
  class SkewedClock final : public Clock {
   public:
    SkewedClock(const EventQueue& queue, Duration skew) : queue_(queue), skew_(skew) {}
    TimePoint now() const override { return queue_.now() + skew_; }
    std::int64_t unix_seconds() const override { return queue_.now().time_since_epoch().count() / 1'000'000; }

   private:
    const EventQueue& queue_;
    const Duration skew_;
  };
  struct Task {
    EventQueue::EventId event = 0;
    std::function<void()> work;
  };
  void due(TimerId timer);

  EventQueue& queue_;
  const std::string name_;
  const SkewedClock clock_;
  std::map<TimerId, Task> tasks_;
  std::deque<TimerId> held_;  // due while frozen
  TimerId next_ = 1;
  bool frozen_ = false;
};

}  // namespace baton::sim
