#pragma once
// One thread, timers, posted work, signals. Everything in net/ runs its callbacks on its loop's thread; only post() and stop() may be
// called from another one.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/clock.h"

namespace baton::net {

// Runs callbacks later. Cores never see it; shells do, and the simulation supplies its own.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual void post(std::function<void()> work) = 0;
  using TimerId = std::uint64_t;
  // Runs `work` once after `delay`. A cancelled timer does not run.
  virtual TimerId after(Duration delay, std::function<void()> work) = 0;
  virtual void cancel(TimerId timer) = 0;
  virtual const Clock& clock() const = 0;
};

class EventLoop final : public Executor {
 public:
  EventLoop();
  ~EventLoop() override;
  void run();                                      // until stop()
  void stop();                                     // thread-safe
  void post(std::function<void()> work) override;  // thread-safe
  TimerId after(Duration delay, std::function<void()> work) override;
  void cancel(TimerId timer) override;
  const Clock& clock() const override;
  // Calls `handler(signal)` on the loop for each of `signals`.
  void on_signals(std::vector<int> signals, std::function<void(int)> handler);
  // Calls `handler` once when `fd` is readable (a pipe's other end closed, a pidfd's process ended). The fd stays the caller's.
  void on_readable(int fd, std::function<void()> handler);

  struct Impl;
  Impl& impl() { return *impl_; }  // for net/ itself

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace baton::net
