#pragma once
// What EventLoop is made of, for net/*.cc only.

#include <boost/asio/basic_signal_set.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <memory>
#include <set>
#include <unordered_map>
#include <vector>

#include "net/asio.h"
#include "net/event_loop.h"

namespace baton::net {

struct EventLoop::Impl {
  struct Timer {
    AsioTimer timer;
    std::function<void()> work;
  };
  struct Watch {
    AsioDescriptor descriptor;
    std::function<void()> handler;
  };
  using SignalSet = asio::basic_signal_set<AsioExecutor>;

  static constexpr std::size_t kScratchBytes = 64u << 10;

  SystemClock clock;
  // A pointer, because handlers that are destroyed with it may still call cancel() and the like on the members below.
  std::unique_ptr<asio::io_context> io = std::make_unique<asio::io_context>(1);
  asio::executor_work_guard<AsioExecutor> work = asio::make_work_guard(*io);
  bool closing = false;
  TimerId next_timer = 1;
  std::unordered_map<TimerId, std::unique_ptr<Timer>> timers;
  std::set<std::shared_ptr<Watch>> watches;
  std::vector<std::shared_ptr<SignalSet>> signals;
  // Every socket of the loop reads through this one buffer, so an idle connection owns none. Valid until the current callback returns.
  std::unique_ptr<char[]> scratch = std::make_unique<char[]>(kScratchBytes);
};

}  // namespace baton::net
