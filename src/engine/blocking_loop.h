#pragma once
// For tests of executors.

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <utility>

#include "base/clock.h"
#include "net/event_loop.h"

namespace baton::engine {

// Work posted by executors' threads, run by the test's.
class BlockingLoop final : public net::Executor {
 public:
  void post(std::function<void()> work) override {
    {
      std::lock_guard lock(mutex_);
      work_.push_back(std::move(work));
    }
    ready_.notify_one();
  }
  TimerId after(Duration, std::function<void()>) override { return 1; }  // deadlines here are an hour away
  void cancel(TimerId) override {}
  const Clock& clock() const override { return clock_; }
  // False after five minutes without work.
  template <class Done>
  bool run_until(Done done) {
    while (!done()) {
      std::function<void()> work;
      {
        std::unique_lock lock(mutex_);
        if (!ready_.wait_for(lock, std::chrono::minutes(5), [&] { return !work_.empty(); })) return false;
        work = std::move(work_.front());
        work_.pop_front();
      }
      work();
    }
    return true;
  }

 private:
  SystemClock clock_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> work_;
};

}  // namespace baton::engine
