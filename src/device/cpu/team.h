#pragma once
// The threads of one rank: pinned to disjoint cores, spinning briefly between regions, since a decode step has some two hundred regions and
// a futex wake costs tens of microseconds. The calling thread is member 0.

#include <memory>
#include <type_traits>
#include <vector>

namespace baton::device::cpu {

class Team {
 public:
  // One member per core; an empty list is one unpinned member.
  explicit Team(std::vector<int> cores);
  ~Team();
  int size() const { return size_; }
  // Runs fn(member) on every member and waits for all. `fn` must not allocate and must split work the same way whatever the size,
  // as far as bits are concerned.
  template <class F>
  void run(F&& fn) {
    run_erased([](void* f, int member) { (*static_cast<std::remove_reference_t<F>*>(f))(member); }, &fn);
  }

 private:
  void run_erased(void (*fn)(void*, int), void* user);
  int size_ = 1;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// [begin, end) of `count` items for `member` of `size`, in multiples of `grain`.
struct Range {
  long begin, end;
};
Range split(long count, long grain, int member, int size);

}  // namespace baton::device::cpu
