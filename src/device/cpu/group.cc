#include "device/cpu/group.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "base/spin.h"
#include "device/cpu/memory.h"
#include "device/cpu/split.h"

namespace baton::device::cpu {
namespace {

// Ranks come within microseconds of each other where each has its cores; beyond that somebody else may need this one.
constexpr std::int64_t kSpinNs = 50'000;
constexpr long kGrain = 16;  // floats in a cache line: no two ranks write to the same one

}  // namespace

Group::Group(int size, Duration deadline) : slots_(static_cast<std::size_t>(size)), deadline_(deadline) {}

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
bool Group::meet(int rank) {
  const std::uint64_t meeting = slots_[static_cast<std::size_t>(rank)].met.load(std::memory_order_relaxed) + 1;
  slots_[static_cast<std::size_t>(rank)].met.store(meeting, std::memory_order_release);
  std::int64_t end = 0;
  for (std::size_t other = 0; other < slots_.size(); ++other) {
    const auto here = [&] { return slots_[other].met.load(std::memory_order_acquire) >= meeting || failed(); };
    while (!spin(kSpinNs, here)) {
      const std::int64_t now = now_ns();
      if (end == 0) end = now + deadline_.count() * 1000;
      if (now >= end) {
        fail(Status(Code::kDeadlineExceeded, "rank " + std::to_string(other) + " did not come to a collective within " +
                                                 std::to_string(deadline_.count() / 1000) + " ms"));
        return false;
      }
      sched_yield();
    }
  }
  return !failed();
}

class Group::Member final : public Collective {
 public:
  Member(Group& group, Rank rank, Team& team) : group_(group), rank_(rank.value), team_(team) {}

  Rank rank() const override { return Rank(rank_); }
  int size() const override { return group_.size(); }

  void all_reduce(const Tensor& x) override {
    BATON_CHECK(x.dtype == DType::kF32);
    publish(bytes_of(x), static_cast<std::size_t>(x.elements()) * sizeof(float));
    if (!group_.meet(rank_)) return;
    const Range own = split(static_cast<long>(x.elements()), kGrain, rank_, size());
    team_.run([&](int member) {
      const Range part = split(own.end - own.begin, kGrain, member, team_.size());
      sum(own.begin + part.begin, own.begin + part.end);
    });
    (void)group_.meet(rank_);
  }

  void gather_columns(const Tensor& x, const Tensor& out) override {
    const std::int64_t rows = x.shape[0], width = x.shape[1];
    publish(bytes_of(x), static_cast<std::size_t>(width) * size_of(x.dtype));
    if (!group_.meet(rank_)) return;
    if (rank_ == 0) {
      BATON_CHECK(out.dtype == x.dtype && out.shape[0] == rows);
      const std::size_t row_bytes = static_cast<std::size_t>(out.shape[1]) * size_of(out.dtype);
      std::byte* to = bytes_of(out);
      for (const Slot& slot : group_.slots_) {
        for (std::int64_t r = 0; r < rows; ++r)
          std::memcpy(to + static_cast<std::size_t>(r) * row_bytes, slot.data + static_cast<std::size_t>(r) * slot.bytes, slot.bytes);
        to += slot.bytes;
      }
      BATON_CHECK(to == bytes_of(out) + row_bytes);
    }
    (void)group_.meet(rank_);
  }

  void barrier() override { (void)group_.meet(rank_); }
  void fail(const Status& why) override { group_.fail(why.with_context("rank " + std::to_string(rank_))); }

 private:
  void publish(std::byte* data, std::size_t bytes) {
    Slot& own = group_.slots_[static_cast<std::size_t>(rank_)];
    own.data = data, own.bytes = bytes;
  }

  // [begin, end) of everybody's data := their sum, in rank order.
  void sum(long begin, long end) {
    constexpr long kChunk = 512;  // stays in the first-level cache
    alignas(64) float total[kChunk];
    for (long at = begin; at < end; at += kChunk) {
      const long n = std::min(kChunk, end - at);
      std::copy_n(data(0) + at, n, total);
      for (int other = 1; other < size(); ++other) {
        const float* x = data(other) + at;
        for (long i = 0; i < n; ++i) total[i] += x[i];
      }
      for (int other = 0; other < size(); ++other) std::copy_n(total, n, data(other) + at);
    }
  }
  float* data(int rank) const { return reinterpret_cast<float*>(group_.slots_[static_cast<std::size_t>(rank)].data); }

  Group& group_;
  const int rank_;
  Team& team_;
};

std::unique_ptr<Collective> Group::join(Rank rank, Team& team) { return std::make_unique<Member>(*this, rank, team); }

}  // namespace baton::device::cpu
