#pragma once
// How much memory this process may still take: the machine's, within its cgroup's limit.

namespace baton::app {

struct MemoryInfo {
  double total = 0, available = 0;  // bytes
};
MemoryInfo memory_info();

}  // namespace baton::app
