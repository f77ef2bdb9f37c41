#include "sim/trace.h"

#include <iomanip>

namespace baton::sim {

std::uint64_t hash_bytes(std::string_view bytes) {
  std::uint64_t h = 0xCBF29CE484222325u;
  for (const char c : bytes) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return h;
}

void Trace::begin_line(TimePoint now, std::string_view place, std::string_view event) {
  const auto us = now.time_since_epoch().count();
  *text_ << std::setw(4) << us / 1'000'000 << '.' << std::setw(6) << std::setfill('0') << us % 1'000'000 << std::setfill(' ') << ' '
         << std::left << std::setw(10) << place << ' ' << std::setw(14) << event << std::right;
}

}  // namespace baton::sim
