#include "base/team.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "base/spin.h"

namespace baton {
namespace {

// How long a waiter spins before it sleeps: longer than the serial code between two regions of a step, short enough that an idle server, or
// two processes that share a core, lose nothing worth naming.
constexpr std::int64_t kSpinNs = 50'000;

void pin(int core) {
  if (core == Team::kAnyCore) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(core), &set);
  sched_setaffinity(0, sizeof set, &set);
}

}  // namespace

struct Team::Impl {
  std::vector<int> cores;
  cpu_set_t before{};  // the caller's affinity, restored at the end
  // The region: written by the caller before `epoch` grows, read by the members after.
  void (*fn)(void*, int) = nullptr;
  void* user = nullptr;
  bool stop = false;

  alignas(64) std::atomic<std::uint32_t> epoch{0};    // grows by one for each region
  alignas(64) std::atomic<std::uint32_t> running{0};  // members that are not done with it
  alignas(64) std::atomic<std::uint32_t> parked{0};   // members that sleep, or are about to
  alignas(64) std::atomic<bool> caller_parked{false};
  std::vector<std::jthread> threads;

  void member(int index);
};

void Team::Impl::member(int index) {
  pin(cores[static_cast<std::size_t>(index)]);
  for (std::uint32_t seen = 0;; ++seen) {
    if (!spin(kSpinNs, [&] { return epoch.load(std::memory_order_acquire) != seen; })) {
      // Announce first, look again after: the caller either sees the announcement and wakes us, or we see its epoch.
      parked.fetch_add(1, std::memory_order_seq_cst);
      while (epoch.load(std::memory_order_seq_cst) == seen) epoch.wait(seen, std::memory_order_seq_cst);
      parked.fetch_sub(1, std::memory_order_relaxed);
    }
    if (stop) return;
    fn(user, index);
    if (running.fetch_sub(1, std::memory_order_seq_cst) == 1 && caller_parked.load(std::memory_order_seq_cst)) running.notify_one();
  }
}

Team::Team(std::vector<int> cores) : size_(std::max<int>(1, static_cast<int>(cores.size()))) {
  if (cores.empty()) return;
  impl_ = std::make_unique<Impl>();
  impl_->cores = std::move(cores);
  sched_getaffinity(0, sizeof impl_->before, &impl_->before);
  pin(impl_->cores[0]);
  for (int i = 1; i < size_; ++i) impl_->threads.emplace_back([impl = impl_.get(), i] { impl->member(i); });
}

Team::~Team() {
  if (!impl_) return;
  impl_->stop = true;
  impl_->epoch.fetch_add(1, std::memory_order_seq_cst);
  impl_->epoch.notify_all();
  impl_->threads.clear();
  sched_setaffinity(0, sizeof impl_->before, &impl_->before);
}

void Team::run_erased(void (*fn)(void*, int), void* user) {
  if (size_ == 1) return fn(user, 0);
  Impl& t = *impl_;
  t.fn = fn;
  t.user = user;
  t.running.store(static_cast<std::uint32_t>(size_ - 1), std::memory_order_relaxed);
  t.epoch.fetch_add(1, std::memory_order_seq_cst);
  if (t.parked.load(std::memory_order_seq_cst) > 0) t.epoch.notify_all();
  fn(user, 0);
  if (spin(kSpinNs, [&] { return t.running.load(std::memory_order_acquire) == 0; })) return;
  t.caller_parked.store(true, std::memory_order_seq_cst);
  for (std::uint32_t left; (left = t.running.load(std::memory_order_seq_cst)) != 0;) t.running.wait(left, std::memory_order_seq_cst);
  t.caller_parked.store(false, std::memory_order_relaxed);
}

}  // namespace baton
