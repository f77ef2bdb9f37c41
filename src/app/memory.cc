#include "app/memory.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace baton::app {
namespace {

// A number in a file, or `fallback` where there is none ("max", no such file).
double number_in(const char* path, double fallback) {
  std::ifstream in(path);
  double value = 0;
  return in >> value ? value : fallback;
}

}  // namespace

MemoryInfo memory_info() {
  MemoryInfo info;
  std::ifstream in("/proc/meminfo");
  std::string key, unit;
  for (double kib = 0; in >> key >> kib; std::getline(in, unit)) {
    if (key == "MemTotal:") info.total = kib * 1024;
    if (key == "MemAvailable:") info.available = kib * 1024;
  }
  const double limit =
      std::min(number_in("/sys/fs/cgroup/memory.max", info.total), number_in("/sys/fs/cgroup/memory/memory.limit_in_bytes", info.total));
  if (limit < info.total) {
    const double used = number_in("/sys/fs/cgroup/memory.current", number_in("/sys/fs/cgroup/memory/memory.usage_in_bytes", 0));
    info.total = limit;
    info.available = std::min(info.available, std::max(0.0, limit - used));
  }
  return info;
}

}  // namespace baton::app
