#pragma once
// Time is passed, never asked for: cores get `now` as an argument, shells hold a Clock&. Integers only, so that a simulated trace is the
// same in every build.

#include <chrono>
#include <cstdint>

namespace baton {

using Duration = std::chrono::microseconds;

// Monotonic time since an arbitrary start.
struct MonotonicEpoch {
  using rep = Duration::rep;
  using period = Duration::period;
  using duration = Duration;
  using time_point = std::chrono::time_point<MonotonicEpoch, Duration>;
  static constexpr bool is_steady = true;
};
using TimePoint = MonotonicEpoch::time_point;
constexpr TimePoint kNever = TimePoint::max();

class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint now() const = 0;
  // Wall-clock seconds since 1970, for `created` fields and logs only.
  virtual std::int64_t unix_seconds() const = 0;
};

// The machine's monotonic clock.
class SystemClock final : public Clock {
 public:
  TimePoint now() const override;
  std::int64_t unix_seconds() const override;
};

// A clock that a test or the simulation moves by hand.
class ManualClock final : public Clock {
 public:
  TimePoint now() const override { return now_; }
  std::int64_t unix_seconds() const override { return now_.time_since_epoch().count() / 1'000'000; }
  void set(TimePoint t) { now_ = t; }
  void advance(Duration d) { now_ += d; }

 private:
  TimePoint now_{};
};

inline double to_ms(Duration d) { return static_cast<double>(d.count()) / 1e3; }
inline double to_seconds(Duration d) { return static_cast<double>(d.count()) / 1e6; }

}  // namespace baton
