#pragma once
// Threads that run one function together, again and again: those of a device's cores, or one for each rank of an instance. They spin
// briefly between such regions, since a decode step has some two hundred and a futex wake costs tens of microseconds. The calling thread is
// member 0.

#include <memory>
#include <type_traits>
#include <vector>

namespace baton {

class Team {
 public:
  // One member per core, pinned to it where that is not kAnyCore; an empty list is one unpinned member.
  static constexpr int kAnyCore = -1;
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

}  // namespace baton
