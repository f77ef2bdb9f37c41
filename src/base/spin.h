#pragma once
// Waiting without sleeping, for waits of microseconds.

#include <time.h>

#include <cstdint>

namespace baton {

inline std::int64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `done` came true within about `ns`.
template <class F>
bool spin(std::int64_t ns, F&& done) {
  for (std::int64_t end = 0;;) {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      relax();
    }
    const std::int64_t now = now_ns();
    if (end == 0) end = now + ns;
    if (now >= end) return false;
  }
}

}  // namespace baton
