#pragma once
// One simulated process: an event loop over the shared queue, with a clock of its own. What is in it runs one piece at a time; while it is
// frozen (SIGSTOP) nothing does, and what came meanwhile runs when it is thawed; when it is destroyed (kill -9) whatever was to run never
// will. Its timers go by its own clock, which may be ahead, jump forward, and run fast or slow.

#include <deque>
#include <functional>
#include <map>
#include <string>

#include "net/event_loop.h"
#include "sim/event_queue.h"

namespace baton::sim {

class Host final : public net::Executor {
 public:
  // `ahead`: its clock, of everybody's time.
  Host(EventQueue& queue, std::string name, Duration ahead = {});
  ~Host() override;
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  void post(std::function<void()> work) override { (void)after(Duration(0), std::move(work)); }
  TimerId after(Duration delay, std::function<void()> work) override;
  void cancel(TimerId timer) override;
  const Clock& clock() const override { return clock_; }

  const std::string& name() const { return name_; }
  TimePoint real_now() const { return queue_.now(); }
  // Pieces of work that have run.
  std::uint64_t turns() const { return turns_; }

  // --- faults
  void freeze() { ++frozen_; }  // once more than it is thawed
  void thaw();
  bool frozen() const { return frozen_ > 0; }
  void jump(Duration forward);
  // Its clock gains so many microseconds a second.
  void set_rate(std::int64_t gain_us);

 private:
  class OwnClock final : public Clock {
   public:
    OwnClock(const EventQueue& queue, Duration ahead) : queue_(queue), own_(queue.now() + ahead), real_(queue.now()) {}
    TimePoint now() const override { return own_ + elapsed(queue_.now() - real_); }
    std::int64_t unix_seconds() const override { return queue_.now().time_since_epoch().count() / 1'000'000; }
    void change(Duration forward, std::int64_t gain_us);
    std::int64_t gain_us() const { return gain_us_; }
    // When this clock will show `own`.
    TimePoint real(TimePoint own) const;

   private:
    Duration elapsed(Duration real) const { return real + Duration(real.count() * gain_us_ / 1'000'000); }
    const EventQueue& queue_;
    TimePoint own_, real_;  // the same moment
    std::int64_t gain_us_ = 0;
  };
  struct Task {
    EventQueue::EventId event = 0;
    TimePoint due{};  // by its clock
    std::function<void()> work;
  };
  void due(TimerId timer);
  void schedule(TimerId timer, Task& task);
  void change_clock(Duration forward, std::int64_t gain_us);

  EventQueue& queue_;
  const std::string name_;
  OwnClock clock_;
  std::map<TimerId, Task> tasks_;
  std::deque<TimerId> held_;  // due while frozen
  TimerId next_ = 1;
  std::uint64_t turns_ = 0;
  int frozen_ = 0;
};

}  // namespace baton::sim
