#pragma once
// What happened, as one 64-bit number: two runs are the same if and only if (but for a collision) their hashes are. Every event has a time,
// a place, a name and numbers; text is written only where somebody wants to read it.

#include <concepts>
#include <cstdint>
#include <ostream>
#include <string_view>

#include "base/clock.h"

namespace baton::sim {

inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t x = (a ^ (b + 0x9E3779B97F4A7C15u)) * 0xBF58476D1CE4E5B9u;
  x ^= x >> 31;
  x *= 0x94D049BB133111EBu;
  return x ^ (x >> 29);
}
// FNV-1a over bytes; the same in every build and on every machine.
std::uint64_t hash_bytes(std::string_view bytes);

class Trace {
 public:
  explicit Trace(std::ostream* text = nullptr) : text_(text) {}

  template <std::integral... Numbers>
  void operator()(TimePoint now, std::string_view place, std::string_view event, Numbers... numbers) {
    ++events_;
    hash_ = mix(hash_, static_cast<std::uint64_t>(now.time_since_epoch().count()));
    hash_ = mix(mix(hash_, hash_bytes(place)), hash_bytes(event));
    ((hash_ = mix(hash_, static_cast<std::uint64_t>(numbers))), ...);
    if (text_ == nullptr) return;
    begin_line(now, place, event);
    ((*text_ << ' ' << +numbers), ...);
    *text_ << '\n';
  }

  std::uint64_t hash() const { return hash_; }
  std::uint64_t events() const { return events_; }

 private:
  void begin_line(TimePoint now, std::string_view place, std::string_view event);
  std::ostream* text_;
  std::uint64_t hash_ = 0, events_ = 0;
};

}  // namespace baton::sim
