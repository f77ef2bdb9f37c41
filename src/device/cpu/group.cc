#include "device/cpu/group.h"

#include <sched.h>

#include <algorithm>
#include <span>
#include <string>

#include "base/spin.h"
#include "device/cpu/memory.h"
#include "device/cpu/split.h"

namespace baton::device::cpu {
namespace {

// Ranks come within microseconds of each other where each has its cores; beyond that somebody else may need this one.
constexpr std::int64_t kSpinNs = 50'000;
constexpr std::int64_t kPauseNs = 500'000'000;
constexpr long kGrain = 16;  // floats in a cache line: no two ranks write to the same one

}  // namespace

Group::Group(int size, Duration deadline, std::shared_ptr<NodeGroup> nodes)
    : slots_(static_cast<std::size_t>(size)), strips_(slots_.size()), nodes_(std::move(nodes)), deadline_(deadline) {}

void Group::fail(Status why) {
  const std::lock_guard lock(mutex_);
  if (status_.ok()) status_ = std::move(why);
  failed_.store(true, std::memory_order_release);
}

Status Group::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

// False if the group has failed. What a rank wrote before it came, the others see.
bool Group::meet(int rank, Duration deadline) {
  const std::uint64_t meeting = slots_[static_cast<std::size_t>(rank)].met.load(std::memory_order_relaxed) + 1;
  slots_[static_cast<std::size_t>(rank)].met.store(meeting, std::memory_order_release);
  std::int64_t end = 0, looked = 0;
  for (std::size_t other = 0; other < slots_.size(); ++other) {
    const auto here = [&] { return slots_[other].met.load(std::memory_order_acquire) >= meeting || failed(); };
    while (!spin(kSpinNs, here)) {
      const std::int64_t now = now_ns();
      if (end == 0) end = now + deadline.count() * 1000;
      // So long between two looks only where the whole process stood still, and the others with it.
      if (looked != 0 && now - looked > kPauseNs) end += now - looked;
      looked = now;
      if (now >= end) {
        fail(Status(Code::kDeadlineExceeded, "rank " + std::to_string(first_rank() + static_cast<int>(other)) +
                                                 " did not come to a collective within " + std::to_string(deadline.count() / 1000) +
                                                 " ms"));
        return false;
      }
      sched_yield();
    }
  }
  return !failed();
}

class Group::Member final : public Collective {
 public:
  Member(Group& group, int local, Team& team) : group_(group), local_(local), team_(team) {}

  Rank rank() const override { return Rank(group_.first_rank() + local_); }
  int size() const override { return group_.size() * group_.nodes(); }

  void all_reduce(const Tensor& x) override {
    BATON_CHECK(x.dtype == DType::kF32);
    const auto floats = static_cast<long>(x.elements());
    publish(bytes_of(x), static_cast<std::size_t>(floats) * sizeof(float));
    if (!meet()) return;
    const Range own = split(floats, kGrain, local_, group_.size());
    team_.run([&](int member) {
      const Range part = split(own.end - own.begin, kGrain, member, team_.size());
      sum(own.begin + part.begin, own.begin + part.end);
    });
    if (!meet() || !group_.nodes_) return;
    if (local_ == 0) settle(group_.nodes_->sum(std::span(data(0), static_cast<std::size_t>(floats))));
    if (group_.size() == 1 || !meet_after_nodes()) return;
    if (local_ != 0) {
      team_.run([&](int member) {
        const Range part = split(floats, kGrain, member, team_.size());
        std::copy(data(0) + part.begin, data(0) + part.end, data(local_) + part.begin);
      });
    }
    (void)meet();
  }

  void gather_columns(const Tensor& x, const Tensor& out) override {
    const auto rows = static_cast<std::size_t>(x.shape[0]);
    publish(bytes_of(x), static_cast<std::size_t>(x.shape[1]) * size_of(x.dtype));
    if (!meet()) return;
    if (local_ == 0) {
      const bool whole = rank() == Rank(0);
      BATON_CHECK(!whole || (out.dtype == x.dtype && out.shape[0] == x.shape[0]));
      for (std::size_t s = 0; s < group_.slots_.size(); ++s) group_.strips_[s] = {group_.slots_[s].data, group_.slots_[s].bytes};
      std::byte* const to = whole ? bytes_of(out) : nullptr;
      const std::size_t row_bytes = whole ? static_cast<std::size_t>(out.shape[1]) * size_of(out.dtype) : 0;
      if (group_.nodes_) {
        settle(group_.nodes_->gather(rows, group_.strips_, to, row_bytes));
      } else {
        BATON_CHECK(place_strips(rows, group_.strips_, to, row_bytes) == to + row_bytes);
      }
    }
    (void)meet_after_nodes();
  }

  void barrier() override {
    if (!meet() || !group_.nodes_) return;
    if (local_ == 0) settle(group_.nodes_->barrier());
    (void)meet_after_nodes();
  }

  void fail(const Status& why) override {
    group_.fail(why.with_context("rank " + std::to_string(rank().value)));
    tell_nodes();
  }

 private:
  void publish(std::byte* data, std::size_t bytes) {
    Slot& own = group_.slots_[static_cast<std::size_t>(local_)];
    own.data = data, own.bytes = bytes;
  }
  bool meet() { return meet(group_.deadline_); }
  // While the first rank may be waiting for other hosts.
  bool meet_after_nodes() { return meet(group_.nodes_ ? 2 * group_.deadline_ : group_.deadline_); }
  bool meet(Duration deadline) {
    if (group_.meet(local_, deadline)) return true;
    tell_nodes();
    return false;
  }
  // A failure here is the other hosts' too.
  void tell_nodes() {
    if (local_ == 0 && group_.nodes_) group_.nodes_->fail(group_.status());
  }
  // And theirs is ours.
  void settle(const Status& status) {
    if (!status.ok()) group_.fail(status);
  }

  // [begin, end) of everybody's data := their sum, in rank order.
  void sum(long begin, long end) {
    constexpr long kChunk = 512;  // stays in the first-level cache
    alignas(64) float total[kChunk];
    for (long at = begin; at < end; at += kChunk) {
      const long n = std::min(kChunk, end - at);
      std::copy_n(data(0) + at, n, total);
      for (int other = 1; other < group_.size(); ++other) {
        const float* x = data(other) + at;
        for (long i = 0; i < n; ++i) total[i] += x[i];
      }
      for (int other = 0; other < group_.size(); ++other) std::copy_n(total, n, data(other) + at);
    }
  }
  float* data(int local) const { return reinterpret_cast<float*>(group_.slots_[static_cast<std::size_t>(local)].data); }

  Group& group_;
  const int local_;
  Team& team_;
};

std::unique_ptr<Collective> Group::join(int local, Team& team) { return std::make_unique<Member>(*this, local, team); }

}  // namespace baton::device::cpu
