#include "net/event_loop.h"

#include <boost/asio/post.hpp>

#include "net/event_loop_impl.h"

namespace baton::net {

EventLoop::EventLoop() : impl_(std::make_unique<Impl>()) {}

EventLoop::~EventLoop() {
  impl_->closing = true;
  // Moved out first: destroying a callback may call back into this loop.
  auto timers = std::move(impl_->timers);
  timers.clear();
  auto watches = std::move(impl_->watches);
  for (const auto& watch : watches) watch->descriptor.release();
  watches.clear();
  impl_->signals.clear();
  impl_->work.reset();
  impl_->io.reset();
}

void EventLoop::run() {
  impl_->io->run();
  impl_->io->restart();
}

void EventLoop::stop() { impl_->io->stop(); }

void EventLoop::post(std::function<void()> work) {
  if (impl_->closing) return;
  asio::post(impl_->io->get_executor(), std::move(work));
}

Executor::TimerId EventLoop::after(Duration delay, std::function<void()> work) {
  if (impl_->closing) return 0;
  const TimerId id = impl_->next_timer++;
  auto timer = std::make_unique<Impl::Timer>(Impl::Timer{AsioTimer(impl_->io->get_executor()), std::move(work)});
  timer->timer.expires_after(delay);
  timer->timer.async_wait([impl = impl_.get(), id](error_code error) {
    if (error) return;
    // A timer that was cancelled after it had expired is no longer in the map.
    auto found = impl->timers.find(id);
    if (found == impl->timers.end()) return;
    auto due = std::move(found->second);
    impl->timers.erase(found);
    due->work();
  });
  impl_->timers.emplace(id, std::move(timer));
  return id;
}

void EventLoop::cancel(TimerId timer) {
  auto found = impl_->timers.find(timer);
  if (found == impl_->timers.end()) return;
  auto cancelled = std::move(found->second);
  impl_->timers.erase(found);
}

const Clock& EventLoop::clock() const { return impl_->clock; }

namespace {

using SignalSet = boost::asio::basic_signal_set<AsioExecutor>;

void wait_for_signal(const std::shared_ptr<SignalSet>& set, std::shared_ptr<std::function<void(int)>> handler) {
  // Weak: the loop owns the set, and the operation must not keep it alive.
  set->async_wait([weak = std::weak_ptr(set), handler = std::move(handler)](error_code error, int signal) {
    auto set = weak.lock();
    if (error || !set) return;
    wait_for_signal(set, handler);
    (*handler)(signal);
  });
}

}  // namespace

void EventLoop::on_signals(std::vector<int> signals, std::function<void(int)> handler) {
  auto set = std::make_shared<SignalSet>(impl_->io->get_executor());
  for (int signal : signals) set->add(signal);
  impl_->signals.push_back(set);
  wait_for_signal(set, std::make_shared<std::function<void(int)>>(std::move(handler)));
}

void EventLoop::on_readable(int fd, std::function<void()> handler) {
  auto watch = std::make_shared<Impl::Watch>(Impl::Watch{AsioDescriptor(impl_->io->get_executor()), std::move(handler)});
  error_code error;
  watch->descriptor.assign(fd, error);
  if (error) {  // not pollable, hence always readable
    post(std::move(watch->handler));
    return;
  }
  impl_->watches.insert(watch);
  watch->descriptor.async_wait(AsioDescriptor::wait_read, [impl = impl_.get(), weak = std::weak_ptr(watch)](error_code wait_error) {
    auto ready = weak.lock();
    if (wait_error || !ready) return;
    ready->descriptor.release();
    impl->watches.erase(ready);
    ready->handler();
  });
}

}  // namespace baton::net
